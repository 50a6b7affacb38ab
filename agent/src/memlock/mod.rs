//! How much memory a process may lock, and a probe of whether perf buffers would be granted to it.
//!
//! The kernel charges the pages of a perf buffer to the user, up to kernel.perf_event_mlock_kb on each online CPU, and
//! the rest to the process, up to RLIMIT_MEMLOCK. CAP_IPC_LOCK in the guest's initial user namespace lifts the limit
//! (`perf_mmap`, kernel/events/core.c). The probe uses the kernel itself: a child (see [`child`]) becomes that user, with
//! that limit less the memory that the process has used of it, and maps the buffers. They are released when the child
//! ends.

mod arithmetic;
mod child;
mod sys;

use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use protocol::agent::{IpcLockSets, MemlockAttempt, MemlockProbe, MemlockReport};

use self::arithmetic::{Charges, online};
use self::child::{Outcome, Plan, Task};
use crate::proc::{Limits, Status};
use protobuf::MessageField;

/// The first argument that makes this program a child of the probe: `main` then calls [`child_main`].
pub const VERB: &str = "memlock-probe";

/// CAP_IPC_LOCK (include/uapi/linux/capability.h).
const IPC_LOCK: u64 = 1 << 14;

const PERF_EVENT_MLOCK_KB: &str = "/proc/sys/kernel/perf_event_mlock_kb";

/// Largest answer of the child, in bytes: a few numbers.
const MAX_ANSWER: u64 = 4096;

#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// A number of pages that no perf buffer can have.
    #[error("{0} pages: a perf buffer has a power of two of them (perf_event_open(2))")]
    NotAPowerOfTwo(u32),
    /// The guest would be short of memory while they are mapped.
    #[error("{pages} pages on each of {cpus} CPUs take {needed} bytes, and half of the guest's free memory is {most}")]
    TooMany {
        pages: u32,
        cpus: u64,
        /// With their headers, in bytes.
        needed: u64,
        /// What may be taken, in bytes.
        most: u64,
    },
    #[error("process {0} is gone")]
    Gone(i32),
    /// The process is not of the container, or no longer.
    #[error("process {0} is none of the container's: its processes are those that `ps` shows in it")]
    Foreign(u32),
    #[error("cannot {0}")]
    System(String, #[source] io::Error),
    #[error("the probe ended without an answer")]
    NoAnswer,
    /// The child could not become what it should be.
    #[error("the probe: {0}")]
    Child(String),
}

fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> ProbeError {
    move |source| ProbeError::System(what.into(), source)
}

/// The `main` of the child: the plan on standard input, the answer on standard output.
#[must_use]
pub fn child_main() -> ExitCode {
    child::main()
}

/// The numbers of a process: in the guest's PID namespace, and so on down to the one that it is in.
///
/// # Errors
/// There is no such process.
pub fn numbers(pid: i32) -> io::Result<Vec<u32>> {
    Status::of(pid).map(|status| status.numbers("NSpid"))
}

/// Reports on a process; with `pages`, data pages on each CPU, also probes. It blocks, and only one may run at a time:
/// the sysctl is changed for a moment.
///
/// # Errors
/// The process is gone, the pages are too many, or the kernel cannot be asked.
pub fn report(pid: i32, pages: u32) -> Result<MemlockReport, ProbeError> {
    report_by(Path::new("/proc/self/exe"), pid, pages)
}

/// [`report`] with another program as the child: one whose `main` calls [`child_main`] when its argument is [`VERB`].
///
/// # Errors
/// As [`report`].
pub fn report_by(program: &Path, pid: i32, pages: u32) -> Result<MemlockReport, ProbeError> {
    let gone = |_| ProbeError::Gone(pid);
    let status = Status::of(pid).map_err(gone)?;
    let limits = Limits::of(pid).map_err(gone)?;
    let (soft, hard) = limits.get("Max locked memory").ok_or(ProbeError::Gone(pid))?;
    let [_, uid, _] = status.ids("Uid").ok_or(ProbeError::Gone(pid))?;
    let [_, gid, _] = status.ids("Gid").ok_or(ProbeError::Gone(pid))?;
    let has = |key: &str| status.mask(key).is_some_and(|mask| mask & IPC_LOCK != 0);
    let cpus = read("/sys/devices/system/cpu/online")?;
    let cpus = online(&cpus);
    let kb = number(PERF_EVENT_MLOCK_KB)?;
    let report = MemlockReport {
        pid: pid.unsigned_abs(),
        command: status.name().to_owned(),
        uid,
        gid,
        soft_limit: soft,
        hard_limit: hard,
        locked: status.bytes("VmLck"),
        pinned: status.bytes("VmPin"),
        resident: status.bytes("VmRSS"),
        ipc_lock: Some(IpcLockSets {
            inheritable: has("CapInh"),
            permitted: has("CapPrm"),
            effective: has("CapEff"),
            bounding: has("CapBnd"),
            ambient: has("CapAmb"),
            ..Default::default()
        })
        .into(),
        user_namespace: in_another_user_namespace(pid)?,
        seccomp: status.number("Seccomp").is_some_and(|mode| mode != 0),
        perf_event_mlock_kb: u32::try_from(kb).unwrap_or(0),
        perf_event_paranoid: number("/proc/sys/kernel/perf_event_paranoid")?,
        online_cpus: u32::try_from(cpus.len()).unwrap_or(u32::MAX),
        page_size: u32::try_from(sys::page_size()).unwrap_or(u32::MAX),
        ..Default::default()
    };
    if pages == 0 {
        return Ok(report);
    }
    let prober = Prober {
        program,
        report: &report,
        cpus,
        pages,
    };
    let probe = prober.probe()?;
    Ok(MemlockReport {
        probe: Some(probe).into(),
        ..report
    })
}

struct Prober<'a> {
    program: &'a Path,
    report: &'a MemlockReport,
    cpus: Vec<u32>,
    pages: u32,
}

impl Prober<'_> {
    fn probe(&self) -> Result<MemlockProbe, ProbeError> {
        if !self.pages.is_power_of_two() {
            return Err(ProbeError::NotAPowerOfTwo(self.pages));
        }
        let charges = Charges::of(self.report, self.cpus.len() as u64, self.pages);
        let most = available()? / 2;
        if charges.needed_bytes() > most {
            return Err(ProbeError::TooMany {
                pages: self.pages,
                cpus: charges.cpus,
                needed: charges.needed_bytes(),
                most,
            });
        }
        let measured = self.run(Task::Allowance { most: charges.needed }, 0, Some(false))?;
        let left = measured.mapped.min(charges.needed);
        let buffers = || Task::Buffers {
            cpus: self.cpus.clone(),
            pages: self.pages,
        };
        let as_is = self.run(buffers(), charges.limit_left(), None)?;
        let mut probe = MemlockProbe {
            pages: self.pages,
            needed: charges.needed,
            allowance_left: left,
            as_is: attempt(&as_is),
            open: attempt(&Outcome {
                mapped: 0,
                errno: as_is.open_errno,
                ..as_is
            }),
            ..Default::default()
        };
        if as_is.errno == 0 {
            return Ok(probe);
        }
        probe.limit_needed = charges.limit_needed(left);
        // Never less than there is: a refusal for another reason is not mended by taking from others.
        probe.kb_needed = charges.kb_needed(left).max(self.report.perf_event_mlock_kb);
        let with_limit = self.run(buffers(), probe.limit_needed - self.report.pinned, None)?;
        probe.with_limit = attempt(&with_limit);
        let with_capability = self.run(buffers(), charges.limit_left(), Some(true))?;
        probe.with_capability = attempt(&with_capability);
        let raised = Raised::to(probe.kb_needed, self.report.perf_event_mlock_kb)?;
        let with_sysctl = self.run(buffers(), charges.limit_left(), None);
        drop(raised);
        probe.with_sysctl = attempt(&with_sysctl?);
        Ok(probe)
    }

    /// Has a child do the task as the process would, with `limit` bytes, and CAP_IPC_LOCK as it has it unless told.
    fn run(&self, task: Task, limit: u64, ipc_lock: Option<bool>) -> Result<Outcome, ProbeError> {
        let plan = Plan {
            pid: self.report.pid.cast_signed(),
            user_namespace: self.report.user_namespace,
            limit,
            ipc_lock,
            task,
        };
        let plan = serde_json::to_vec(&plan).map_err(|error| ProbeError::Child(error.to_string()))?;
        // The handle is dropped and nobody waits by it: the agent reaps every child of its.
        let mut child = Command::new(self.program)
            .arg(VERB)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(system("start the probe"))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A child that has ended already says so by its silence.
            let _ = stdin.write_all(&plan);
        }
        let mut answer = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            let read = stdout.take(MAX_ANSWER).read_to_end(&mut answer);
            read.map_err(system("hear the probe"))?;
        }
        let answer: Result<Outcome, String> = serde_json::from_slice(&answer).map_err(|_| ProbeError::NoAnswer)?;
        answer.map_err(ProbeError::Child)
    }
}

fn attempt(outcome: &Outcome) -> MessageField<MemlockAttempt> {
    Some(MemlockAttempt {
        granted: outcome.errno == 0,
        errno: outcome.errno.unsigned_abs(),
        mapped: outcome.mapped,
        ..Default::default()
    })
    .into()
}

/// The sysctl at another value, until it is dropped.
struct Raised {
    before: u32,
}

impl Raised {
    fn to(kb: u32, before: u32) -> Result<Self, ProbeError> {
        let raised = Self { before };
        std::fs::write(PERF_EVENT_MLOCK_KB, kb.to_string()).map_err(system(format!("set {PERF_EVENT_MLOCK_KB}")))?;
        Ok(raised)
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        if let Err(error) = std::fs::write(PERF_EVENT_MLOCK_KB, self.before.to_string()) {
            tracing::error!(%error, kb = self.before, "kernel.perf_event_mlock_kb cannot be set back");
        }
    }
}

fn read(path: &str) -> Result<String, ProbeError> {
    std::fs::read_to_string(path).map_err(system(format!("read {path}")))
}

fn number(path: &str) -> Result<i32, ProbeError> {
    let parsed = read(path)?.trim().parse();
    parsed.map_err(|error| system(format!("read {path}"))(io::Error::other(error)))
}

/// MemAvailable (proc_meminfo(5)), in bytes.
fn available() -> Result<u64, ProbeError> {
    let available = base::meminfo::read().and_then(|meminfo| meminfo.mem_available);
    available.ok_or_else(|| system("read /proc/meminfo")(io::ErrorKind::InvalidData.into()))
}

fn in_another_user_namespace(pid: i32) -> Result<bool, ProbeError> {
    let namespace = |of: &str| std::fs::metadata(format!("/proc/{of}/ns/user")).map(|file| file.ino());
    let own = namespace("self").map_err(system("look at the agent's user namespace"))?;
    let its = namespace(&pid.to_string()).map_err(|_| ProbeError::Gone(pid))?;
    Ok(own != its)
}
