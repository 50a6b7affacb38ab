//! Child processes: started by one thread, watched by pidfd, killed when their owner is dropped.
//!
//! A parent-death signal belongs to the *thread* that spawned the child (prctl(2), PR_SET_PDEATHSIG). So one thread that
//! lives as long as the process spawns all children. It has the namespaces of the thread that started the first VM.

use std::ffi::OsString;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, OnceLock, mpsc};

use base::spawn::{Accounting, CoreDumps, OpenFiles, Score};
use base::tail::Tail;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, waitid};
use rustix::thread::CapabilitySet;
use tokio::io::unix::AsyncFd;
use tokio::sync::{oneshot, watch};

use crate::process::child_name::ChildName;
use crate::process::jail::Jail;
use crate::process::rootless::User;
use crate::process::stderr;
use crate::process::sys::child::{BeforeExec, Entry, Network, ProcessLimits};
use crate::process::sys::root::Root;

/// How a child ended, and what it said last.
#[derive(Debug, Clone)]
pub struct ChildDeath {
    /// The program that has ended.
    pub child: ChildName,
    /// Its process, which is gone.
    pub pid: u32,
    /// As from wait(2).
    pub status: ExitStatus,
    /// The end of its standard error, at most 16 KiB, harmless to a terminal.
    pub stderr_tail: String,
}

impl ChildDeath {
    /// The signal that ended it, if one did.
    #[must_use]
    pub fn signal(&self) -> Option<i32> {
        self.status.signal()
    }
}

impl fmt::Display for ChildDeath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ended with {}", self.child, self.status)?;
        if !self.stderr_tail.is_empty() {
            write!(f, ": {}", self.stderr_tail)?;
        }
        Ok(())
    }
}

/// Why a child could not be started.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what they are")]
pub enum SpawnError {
    /// A namespace or cgroup that it is to enter cannot be opened.
    #[error("{child}: {path:?} cannot be opened")]
    Open {
        /// The program that was to be started.
        child: ChildName,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// fork(2), what is done before exec, or execve(2) failed.
    #[error("{child}: {program:?} cannot be started{}", if step.is_empty() { String::new() } else { format!(" ({step})") })]
    Spawn {
        /// The program that was to be started.
        child: ChildName,
        program: PathBuf,
        /// What failed before exec; empty if something else did.
        step: String,
        #[source]
        source: io::Error,
    },
    /// The thread, a pipe or the pidfd cannot be had.
    #[error("{child}: no resources to start it")]
    Resources {
        /// The program that was to be started.
        child: ChildName,
        #[source]
        source: io::Error,
    },
}

#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) child: ChildName,
    pub(crate) path: PathBuf,
    pub(crate) args: Vec<OsString>,
    pub(crate) network: Network,
    /// All that it sees of the host's files; what we see, if none, unless it is kept in a jail.
    pub(crate) root: Option<Root>,
    /// The user whose rights it has; ours, if none.
    pub(crate) user: Option<User>,
    /// The capabilities that it may have as root; ours, if none.
    pub(crate) capabilities: Option<CapabilitySet>,
    /// Where it is kept, if anywhere; as the jail's user then.
    pub(crate) jail: Option<Jail>,
    /// Its private memory and threads.
    pub(crate) limits: ProcessLimits,
    /// The `cgroup.procs` files into which it moves.
    pub(crate) cgroup_procs: Vec<PathBuf>,
    /// Its score for the host's OOM killer.
    pub(crate) score: Score,
    /// The descriptors that it inherits, under the numbers that they have here.
    pub(crate) pass: Vec<OwnedFd>,
}

/// What can be known of a child, and done to it, without owning it.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    pub(crate) name: ChildName,
    pub(crate) pid: u32,
    pidfd: Arc<OwnedFd>,
    status: watch::Receiver<Option<ExitStatus>>,
    stderr: Tail,
    stderr_drained: watch::Receiver<bool>,
}

impl Handle {
    /// SIGKILL. Nothing happens if it has ended: a pidfd never names another process.
    pub(crate) fn kill(&self) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// Waits until it has ended and is reaped.
    pub(crate) async fn wait(&self) -> ExitStatus {
        let mut status = self.status.clone();
        // Bound before the match, so that the lock inside is released before this function suspends again.
        let ended = status.wait_for(Option::is_some).await.ok().and_then(|status| *status);
        match ended {
            Some(status) => status,
            // The runtime is going down, and this task with it.
            None => std::future::pending().await,
        }
    }

    /// How it ended. Waits a moment for its last words: a grandchild may hold the pipe.
    pub(crate) async fn death(&self) -> ChildDeath {
        let status = self.wait().await;
        let mut drained = self.stderr_drained.clone();
        let _ = tokio::time::timeout(stderr::DRAIN_TIMEOUT, drained.wait_for(|drained| *drained)).await;
        ChildDeath {
            child: self.name,
            pid: self.pid,
            status,
            stderr_tail: self.stderr.text(),
        }
    }
}

/// A child that is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Child(Handle);

impl Child {
    pub(crate) fn handle(&self) -> &Handle {
        &self.0
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.0.kill();
    }
}

/// Starts a program, with an empty environment. Standard input and output are `/dev/null`, standard error is logged and its
/// end kept.
pub(crate) async fn spawn(program: Program) -> Result<Child, SpawnError> {
    let name = program.child;
    let resources = |source| SpawnError::Resources { child: name, source };
    let (done, started) = oneshot::channel();
    let job: Job = Box::new(move || {
        // If nobody waits any more, the child is dropped and thereby killed.
        let _ = done.send(start(program));
    });
    spawner()
        .map_err(resources)?
        .send(job)
        .map_err(|_| resources(io::Error::other("the spawning thread is gone")))?;
    let Started { process, pipe } = started
        .await
        .map_err(|_| resources(io::Error::other("the spawning thread is gone")))??;
    let pid = process.child.id();
    let pidfd = Arc::clone(&process.pidfd);
    let stderr = Tail::default();
    let stderr_drained = stderr::collect(name, pid, pipe, stderr.clone()).map_err(resources)?;
    let watched = pidfd
        .try_clone()
        .and_then(crate::process::sys::watch_readable)
        .map_err(resources)?;
    let (sender, status) = watch::channel(None);
    tokio::spawn(reap(name, process, watched, sender));
    Ok(Child(Handle {
        name,
        pid,
        pidfd,
        status,
        stderr,
        stderr_drained,
    }))
}

/// Waits for the child's end and takes its status.
async fn reap(
    name: ChildName,
    mut process: Process,
    watched: AsyncFd<OwnedFd>,
    status: watch::Sender<Option<ExitStatus>>,
) {
    loop {
        // A pidfd becomes readable when its process ends (pidfd_open(2)).
        let ready = watched.readable().await;
        match process.child.try_wait() {
            Ok(Some(ended)) => {
                tracing::debug!(child = %name, status = %ended, "a child has ended");
                status.send_replace(Some(ended));
                return;
            }
            Ok(None) => {
                if let Ok(mut ready) = ready {
                    ready.clear_ready();
                }
            }
            Err(error) => {
                tracing::error!(child = %name, %error, "a child cannot be waited for");
                return;
            }
        }
    }
}

struct Started {
    process: Process,
    pipe: OwnedFd,
}

/// A process that is killed and reaped if nobody takes it over.
struct Process {
    child: std::process::Child,
    pidfd: Arc<OwnedFd>,
}

impl Drop for Process {
    fn drop(&mut self) {
        // None of it matters for a child that has been reaped.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
            // One that hangs in the kernel dies when that lets go of it: no thread of the runtime waits for it.
            let pidfd = Arc::clone(&self.pidfd);
            let reap = move || waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
            let _ = std::thread::Builder::new().name(String::from("reaper")).spawn(reap);
        }
    }
}

/// Runs on the spawning thread.
fn start(program: Program) -> Result<Started, SpawnError> {
    let Program {
        child: name,
        path,
        args,
        network,
        root,
        user,
        capabilities,
        jail,
        limits,
        cgroup_procs,
        score,
        pass,
    } = program;
    let resources = |source| SpawnError::Resources { child: name, source };
    let open = |path: &PathBuf, options: &OpenOptions| {
        options.open(path).map_err(|source| SpawnError::Open {
            child: name,
            path: path.clone(),
            source,
        })
    };
    let cgroups: Result<Vec<File>, _> = cgroup_procs
        .iter()
        .map(|path| open(path, OpenOptions::new().write(true)))
        .collect();
    let user = jail.as_ref().map(|jail| jail.user).or(user);
    let entry = jail.map(|jail| Entry::new(jail, &path, &args)).transpose();
    let entry = entry.map_err(|source| SpawnError::Open {
        child: name,
        path: path.clone(),
        source,
    })?;
    // A service manager's usual soft limit of open files, 1024, is less than the vsock daemon needs for some hundred processes with
    // streams.
    let accounting = Accounting {
        score,
        open_files: OpenFiles::Many,
        core_dumps: CoreDumps::Never,
    };
    let before_exec = BeforeExec {
        network,
        root,
        user,
        // Another user has none.
        capabilities: if user.is_some() {
            Some(CapabilitySet::empty())
        } else {
            capabilities
        },
        jail: entry,
        cgroups: cgroups?,
        limits,
        accounting: accounting.prepare().map_err(resources)?,
        pass,
    };

    let (pipe, writer) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|errno| resources(errno.into()))?;
    let mut command = Command::new(&path);
    command
        .args(&args)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(writer)
        .process_group(0);
    before_exec.attach(&mut command);
    let spawned = command.spawn();
    // The write end and the passed descriptors are closed here: the child has its own.
    drop(command);
    let child = spawned.map_err(|source| SpawnError::Spawn {
        child: name,
        program: path,
        step: stderr::read_rest(&pipe),
        source,
    })?;
    match pidfd(&child) {
        Ok(pidfd) => Ok(Started {
            process: Process {
                child,
                pidfd: Arc::new(pidfd),
            },
            pipe,
        }),
        Err(source) => {
            let mut child = child;
            let _ = child.kill();
            let _ = child.wait();
            Err(resources(source))
        }
    }
}

fn pidfd(child: &std::process::Child) -> io::Result<OwnedFd> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
    Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
}

type Job = Box<dyn FnOnce() + Send>;

fn spawner() -> io::Result<&'static mpsc::Sender<Job>> {
    static SPAWNER: OnceLock<Result<mpsc::Sender<Job>, io::ErrorKind>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        let thread = std::thread::Builder::new().name(String::from("spawner"));
        // The sender is never dropped, so the thread never ends.
        thread
            .spawn(move || jobs.into_iter().for_each(|job| job()))
            .map_err(|error| error.kind())?;
        Ok(sender)
    });
    spawner.as_ref().map_err(|kind| io::Error::from(*kind))
}

#[cfg(test)]
mod tests;
