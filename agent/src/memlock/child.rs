//! The child of a probe: one thread that becomes the user of a process, maps perf buffers, reports how many it got, and
//! ends.
//!
//! It opens its events while it is still root, so that a refusal can only be about locked memory. Whether the user could
//! have opened an event is checked separately.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use caps::{CapSet, Capability, CapsHashSet};
use nix::sched::{CloneFlags, setns};
use rustix::process::{Gid, Resource, Rlimit, Uid, setrlimit};
use rustix::thread::{set_keep_capabilities, set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use serde::{Deserialize, Serialize};

use super::sys;
use crate::proc::Status;

/// For all of it, in seconds: a child that takes longer is ended by the kernel.
const ALARM: u32 = 20;

/// Largest plan, in bytes: a list of CPUs and a few numbers.
const MAX_PLAN: u64 = 64 << 10;

/// Mappings that measure an allowance: one or two of each size that a buffer can have, and some single pages.
const MEASURES: usize = 80;

/// What the child is to be, and to do.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Plan {
    /// Whose user, groups and capabilities it takes.
    pub(super) pid: i32,
    /// That process is in a user namespace of its own.
    pub(super) user_namespace: bool,
    /// RLIMIT_MEMLOCK in bytes; the largest number is none.
    pub(super) limit: u64,
    /// CAP_IPC_LOCK effective or not; `None`: as the process has it.
    pub(super) ipc_lock: Option<bool>,
    pub(super) task: Task,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Task {
    /// A buffer of so many data pages on each of these CPUs.
    Buffers { cpus: Vec<u32>, pages: u32 },
    /// As many pages as are granted, up to so many.
    Allowance { most: u64 },
}

#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Outcome {
    /// Pages that were mapped, headers included.
    pub(super) mapped: u64,
    /// Of the mapping that was refused; 0 where none was.
    pub(super) errno: i32,
    /// Of the user's own attempt to open an event; 0 where it may.
    pub(super) open_errno: i32,
}

pub(super) fn main() -> ExitCode {
    nix::unistd::alarm::set(ALARM);
    let answer: Result<Outcome, String> = carry_out();
    let written = serde_json::to_vec(&answer).map(|bytes| io::stdout().write_all(&bytes));
    match written {
        Ok(Ok(())) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn carry_out() -> Result<Outcome, String> {
    let mut bytes = Vec::new();
    let read = io::stdin().take(MAX_PLAN).read_to_end(&mut bytes);
    read.map_err(failed("read the plan"))?;
    let plan: Plan = serde_json::from_slice(&bytes).map_err(|error| format!("cannot read the plan: {error}"))?;
    let events = open_events(&plan.task)?;
    become_like(&plan)?;
    let mut outcome = match &plan.task {
        Task::Buffers { pages, .. } => map_all(&events, *pages),
        Task::Allowance { most } => map_as_much_as_granted(&events, *most),
    };
    outcome.open_errno = sys::open_event(-1).err().map_or(0, |error| number(&error));
    Ok(outcome)
}

fn failed<E: Into<io::Error>>(what: &str) -> impl FnOnce(E) -> String {
    move |error| format!("cannot {what}: {}", error.into())
}

fn number(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

fn open_events(task: &Task) -> Result<Vec<OwnedFd>, String> {
    let cpus = match task {
        Task::Buffers { cpus, .. } => cpus.iter().map(|cpu| cpu.cast_signed()).collect(),
        Task::Allowance { .. } => vec![-1; MEASURES],
    };
    let open = |cpu| sys::open_event(cpu).map_err(failed("open a perf event"));
    cpus.into_iter().map(open).collect()
}

/// Limits first, while they may still be raised; then the namespace, the user, and the capabilities.
fn become_like(plan: &Plan) -> Result<(), String> {
    let limit = (plan.limit != u64::MAX).then_some(plan.limit);
    let limit = Rlimit {
        current: limit,
        maximum: limit,
    };
    setrlimit(Resource::Memlock, limit).map_err(failed("set RLIMIT_MEMLOCK"))?;
    if plan.user_namespace {
        let namespace = File::open(format!("/proc/{}/ns/user", plan.pid)).map_err(failed("find its user namespace"))?;
        setns(namespace.as_fd(), CloneFlags::CLONE_NEWUSER).map_err(failed("enter its user namespace"))?;
    }
    // Inside that namespace, so that the numbers are those that mean something there.
    let status = Status::of(plan.pid).map_err(failed("look at the process"))?;
    let unreadable = || "cannot read who the process is".to_owned();
    let uids = status.ids("Uid").ok_or_else(unreadable)?;
    let gids = status.ids("Gid").ok_or_else(unreadable)?;
    let mut effective = set_of(status.mask("CapEff").ok_or_else(unreadable)?);
    let mut permitted = set_of(status.mask("CapPrm").ok_or_else(unreadable)?);
    match plan.ipc_lock {
        Some(true) => {
            effective.insert(Capability::CAP_IPC_LOCK);
            permitted.insert(Capability::CAP_IPC_LOCK);
        }
        Some(false) => {
            effective.remove(&Capability::CAP_IPC_LOCK);
        }
        None => {}
    }
    set_keep_capabilities(true).map_err(failed("keep the capabilities"))?;
    // Groups have no part in what is probed; a user namespace may forbid to leave them.
    let _ = set_thread_groups(&[]);
    let [real, now, saved] = gids.map(Gid::from_raw);
    set_thread_res_gid(real, now, saved).map_err(failed("become its group"))?;
    let [real, now, saved] = uids.map(Uid::from_raw);
    set_thread_res_uid(real, now, saved).map_err(failed("become its user"))?;
    // What is held now has all of it: first less is effective, then less permitted, then what is wanted is effective.
    for (which, set) in [
        (CapSet::Effective, CapsHashSet::new()),
        (CapSet::Permitted, permitted),
        (CapSet::Effective, effective),
    ] {
        caps::set(None, which, &set).map_err(|error| format!("cannot set its capabilities: {error}"))?;
    }
    Ok(())
}

fn set_of(mask: u64) -> CapsHashSet {
    let all = caps::all().into_iter();
    all.filter(|capability| capability.bitmask() & mask != 0).collect()
}

fn map_all(events: &[OwnedFd], pages: u32) -> Outcome {
    let mut outcome = Outcome::default();
    for event in events {
        match sys::map_buffer(event.as_fd(), pages) {
            Ok(()) => outcome.mapped += u64::from(pages) + 1,
            Err(error) => {
                outcome.errno = number(&error);
                break;
            }
        }
    }
    outcome
}

/// From the largest buffer that may be needed down to a header alone, so that few mappings find the last page.
fn map_as_much_as_granted(events: &[OwnedFd], most: u64) -> Outcome {
    let mut outcome = Outcome::default();
    let mut size = u32::try_from(most.next_power_of_two()).unwrap_or(1 << 31);
    for event in events {
        let mapped = loop {
            let fits = u64::from(size) < most - outcome.mapped;
            match fits.then(|| sys::map_buffer(event.as_fd(), size)) {
                Some(Ok(())) => break true,
                Some(Err(error)) => outcome.errno = number(&error),
                None => {}
            }
            if size == 0 {
                break false;
            }
            size /= 2;
        };
        if !mapped {
            break;
        }
        outcome.mapped += u64::from(size) + 1;
    }
    outcome
}
