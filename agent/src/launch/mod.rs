//! Starts a process of a container, its first one or an exec, from a re-executed single-threaded child.
//!
//! ```text
//!  agent (tokio)                child                          process
//!   launch() ── instructions ──► namespaces ── fork ──────────► rootfs, mounts, devices, identity
//!            ◄── Made(pid) ────── ends                              │
//!            ◄── Ready, terminal ──────────────────────────────────┤ waits at the gate
//!   Gate::open() ── Go ───────────────────────────────────────────► hooks, cgroup, seccomp, execve
//!            ◄── end of the channel: it runs ─────────────────────┘
//! ```
//!
//! It owns the sequence from a specification to a running program. It knows nothing about the container's later life, the
//! cgroup's limits, or the shim. It never waits for a process: the caller reaps every child.

mod affinity;
mod attributes;
mod capabilities;
mod channel;
mod child;
mod devices;
mod fault;
mod filter;
mod guard;
mod hooks;
mod identity;
mod instructions;
mod kernel_mounts;
mod masked;
mod memory_policy;
mod mounts;
mod namespaces;
mod newer_calls;
mod number_list;
mod options;
mod owners;
mod program;
mod request;
mod rlimits;
mod rootfs;
mod seccomp;
mod sys;
mod sysctl;
mod terminal;
mod tree;
mod verify;

use std::{
    io,
    os::fd::OwnedFd,
    path::Path,
    process::{Command, ExitCode, Stdio as CommandStdio},
    time::{Duration, Instant},
};

use channel::{AgentEnd, Order, Report};
use fault::Fault;
use guard::Guard;
use instructions::Transfer;
use nix::unistd::Pid;
pub use request::{LaunchRequest, Stdio, Target};

/// The first argument that makes this program a child of [`launch`]: `main` then calls [`child_main`].
pub const VERB: &str = "launch";

/// A process that waits at the gate.
#[derive(Debug)]
pub struct Launched {
    /// In the guest's root PID namespace.
    pub pid: Pid,
    /// The master of the terminal, if one was asked for.
    pub terminal: Option<OwnedFd>,
    /// What lets it go on. Dropped unopened, it kills the process.
    pub gate: Gate,
}

/// Why a process could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The specification asks for something that cannot be carried out: the sentence is for the user.
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Internal(String),
    /// The child was killed before it could say anything.
    #[error("the process ended while it was being set up, without a word")]
    Vanished,
    /// The child could not be made or talked to.
    #[error("cannot {what} the child that sets up the process")]
    Child {
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

impl LaunchError {
    fn child(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Child { what, source }
    }
}

impl From<Fault> for LaunchError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Refused(text) => Self::Refused(text),
            Fault::Internal(text) => Self::Internal(text),
        }
    }
}

/// Starts a process up to the gate: everything but its program's execution is done.
///
/// The caller must reap the processes that end, which are one or two more than it is told of: the child that makes the
/// process ends at once. No step has a time limit of its own: a caller that gives up drops the future, and everything
/// that was started is killed then.
///
/// # Errors
/// [`LaunchError::Refused`] where the specification cannot be carried out; otherwise what failed.
pub async fn launch(request: LaunchRequest) -> Result<Launched, LaunchError> {
    launch_by(Path::new("/proc/self/exe"), request).await
}

/// [`launch`] with another program as the child: one whose `main` calls [`child_main`] when its argument is [`VERB`].
///
/// # Errors
/// As [`launch`].
pub async fn launch_by(program: &Path, request: LaunchRequest) -> Result<Launched, LaunchError> {
    let began = Instant::now();
    let expected = verify::Expected::of(&request);
    let transfer = Transfer::pack(request).map_err(LaunchError::child("instruct"))?;
    let (channel, mut guard) = spawn(program).map_err(LaunchError::child("start"))?;
    channel
        .send(&Order::Prepare, &transfer.descriptors())
        .await
        .map_err(LaunchError::child("instruct"))?;
    let started = began.elapsed();
    // The child has its own copies: held here, the ends of pipes would keep them open.
    drop(transfer);
    let (mut made, mut made_after) = (None, Duration::ZERO);
    loop {
        match channel.receive().await.map_err(LaunchError::child("hear"))? {
            Some((Report::Made(pid), fds)) => {
                made = Some(Pid::from_raw(pid));
                made_after = began.elapsed();
                guard.hold(fds);
            }
            Some((Report::Failed(fault), _)) => return Err(fault.into()),
            Some((Report::Ready, fds)) => {
                let pid = made.ok_or(LaunchError::Vanished)?;
                expected.check(pid).map_err(LaunchError::Internal)?;
                tracing::debug!(%pid, ?started, made = ?made_after, ready = ?began.elapsed(), "waits at the gate");
                return Ok(Launched {
                    pid,
                    terminal: fds.into_iter().next(),
                    gate: Gate { channel, guard },
                });
            }
            None => return Err(LaunchError::Vanished),
        }
    }
}

/// Starts the child with its end of the channel as its standard input.
///
/// It inherits nothing else but the agent's own stdout and stderr: every descriptor of the agent is close-on-exec.
fn spawn(program: &Path) -> io::Result<(AgentEnd, Guard)> {
    let (ours, theirs) = channel::pair()?;
    // The handle is dropped and nobody waits by it: the agent reaps every child of its.
    let child = Command::new(program)
        .arg(VERB)
        .env_clear()
        .stdin(CommandStdio::from(theirs))
        .spawn()?;
    Ok((ours, Guard::new(&child)?))
}

/// Holds a process back until it is opened.
#[derive(Debug)]
pub struct Gate {
    // Dropped before the channel: the process is killed, and does not end by itself first because nobody listens.
    guard: Guard,
    channel: AgentEnd,
}

impl Gate {
    /// Lets the process execute its program. Returns when that has been done. Given up before that, it kills the process.
    ///
    /// # Errors
    /// [`LaunchError::Refused`] where the program cannot be executed; the process has ended or is about to.
    pub async fn open(self) -> Result<(), LaunchError> {
        self.channel
            .send(&Order::Go, &[])
            .await
            .map_err(|source| match source.kind() {
                io::ErrorKind::BrokenPipe => LaunchError::Vanished,
                _ => LaunchError::Child {
                    what: "go on with",
                    source,
                },
            })?;
        match self.channel.receive().await {
            Ok(None) => {
                self.guard.release();
                Ok(())
            }
            Ok(Some((Report::Failed(fault), _))) => Err(fault.into()),
            Ok(Some(_)) => Err(LaunchError::Internal("the child spoke out of turn".to_owned())),
            Err(source) => Err(LaunchError::Child { what: "hear", source }),
        }
    }
}

/// The `main` of the child: standard input is its end of the channel.
#[must_use]
pub fn child_main() -> ExitCode {
    child::main()
}
