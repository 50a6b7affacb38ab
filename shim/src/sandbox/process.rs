//! One process that containerd knows: a container's first one or an exec. Its phases and its record after the exit.
//!
//! ```text
//! init:  Busy ──► Created ──► Busy ──► Running ──► Stopped
//! exec:           Created ──► Busy ──► Running ──► Stopped
//!                                 └────────────────► (a start that fails, or the VM's end, stops from any phase)
//! ```
//! `Busy` is held by the one task that is creating or starting it. An exit that arrives meanwhile waits, so that
//! containerd sees TaskStart before TaskExit.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tokio::sync::watch;

use crate::error::Error;
use crate::id::{ContainerId, ExecId};
use crate::streams::{StdioPaths, Streams};

/// Names a process in calls, messages and events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessName {
    /// Its container.
    pub container: ContainerId,
    /// None for the container's first process.
    pub exec: Option<ExecId>,
}

impl ProcessName {
    /// The exec's id; empty for the first process, as the protocols have it.
    #[must_use]
    pub fn exec_id(&self) -> &str {
        self.exec.as_ref().map_or("", ExecId::as_str)
    }

    /// The agent's form.
    #[must_use]
    pub fn to_agent(&self) -> protocol::agent::ProcessId {
        protocol::agent::ProcessId {
            container_id: self.container.to_string(),
            exec_id: self.exec_id().to_owned(),
            ..Default::default()
        }
    }
}

impl fmt::Display for ProcessName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.exec {
            Some(exec) => write!(formatter, "exec {exec} of container {}", self.container),
            None => write!(formatter, "container {}", self.container),
        }
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// The exit code, or 128 + the signal's number.
    pub status: u32,
    /// When.
    pub at: SystemTime,
}

/// Where a process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Being created or started by somebody.
    Busy,
    /// Not started yet.
    Created,
    /// Started.
    Running,
    /// Ended, its output passed on.
    Stopped(Exit),
}

impl Phase {
    /// For messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Phase::Busy => "being started",
            Phase::Created => "created and not started",
            Phase::Running => "running",
            Phase::Stopped(_) => "stopped",
        }
    }
}

/// A process.
pub struct Process {
    /// Its name.
    pub name: ProcessName,
    /// What containerd named as its streams.
    pub stdio: StdioPaths,
    /// The OCI `process` of an exec as JSON; empty for the first process.
    pub spec: Vec<u8>,
    phase: watch::Sender<Phase>,
    streams: Mutex<Option<Arc<Streams>>>,
    exiting: AtomicBool,
    size: Mutex<Option<(u32, u32)>>,
}

impl Process {
    /// A process in its first phase.
    #[must_use]
    pub fn new(name: ProcessName, stdio: StdioPaths, spec: Vec<u8>) -> Self {
        let phase = if name.exec.is_some() {
            Phase::Created
        } else {
            Phase::Busy
        };
        Self {
            name,
            stdio,
            spec,
            phase: watch::Sender::new(phase),
            streams: Mutex::default(),
            exiting: AtomicBool::new(false),
            size: Mutex::default(),
        }
    }

    /// Its phase now.
    #[must_use]
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Moves it on. A stopped process stays stopped.
    pub(super) fn set_phase(&self, phase: Phase) {
        self.set_phase_telling(phase, || {});
    }

    /// The same, and tells of it if it moves. Whoever hears of it and asks for the phase gets the new one, and whoever sees the new one
    /// comes after it was told: Docker deletes a task at the event of its exit, and containerd's events have an order.
    /// `tell` must not ask for the phase.
    pub(super) fn set_phase_telling(&self, phase: Phase, tell: impl FnOnce()) {
        self.phase.send_if_modified(|now| {
            let moves = !matches!(now, Phase::Stopped(_));
            if moves {
                tell();
                *now = phase;
            }
            moves
        });
    }

    /// Takes the right to start it.
    pub(super) fn begin_start(&self) -> Result<(), Error> {
        let mut before = Phase::Busy;
        self.phase.send_if_modified(|phase| {
            before = *phase;
            if before == Phase::Created {
                *phase = Phase::Busy;
            }
            before == Phase::Created
        });
        if before == Phase::Created {
            return Ok(());
        }
        Err(self.not_allowed("start", before))
    }

    /// The error for a verb that the phase does not allow.
    pub(super) fn not_allowed(&self, operation: &'static str, phase: Phase) -> Error {
        Error::State {
            operation,
            subject: self.name.to_string(),
            state: phase.name(),
        }
    }

    /// Waits for the phase.
    pub(super) async fn reach(&self, wanted: impl Fn(Phase) -> bool) -> Phase {
        let mut phases = self.phase.subscribe();
        let reached = phases.wait_for(|phase| wanted(*phase)).await.map(|phase| *phase);
        // The sender is in self: it cannot be gone.
        reached.unwrap_or_else(|_| self.phase())
    }

    /// Waits for its end.
    pub async fn stopped(&self) -> Exit {
        loop {
            if let Phase::Stopped(exit) = self.reach(|phase| matches!(phase, Phase::Stopped(_))).await {
                return exit;
            }
        }
    }

    /// Whether this is the first report of its exit.
    pub(super) fn claim_exit(&self) -> bool {
        !self.exiting.swap(true, Ordering::AcqRel)
    }

    pub(super) fn set_streams(&self, streams: Arc<Streams>) {
        *self.streams.lock().unwrap_or_else(PoisonError::into_inner) = Some(streams);
    }

    pub(super) fn streams(&self) -> Option<Arc<Streams>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Closes what is open.
    pub(super) fn drop_streams(&self) -> Option<Arc<Streams>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Remembers a terminal's size for a process that has not started, columns first.
    pub(super) fn remember_size(&self, size: (u32, u32)) {
        *self.size.lock().unwrap_or_else(PoisonError::into_inner) = Some(size);
    }

    /// The size that was asked for before the start.
    pub(super) fn remembered_size(&self) -> Option<(u32, u32)> {
        self.size.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn who_hears_of_a_phase_finds_it() {
        let name = ProcessName {
            container: ContainerId::new("c").unwrap(),
            exec: None,
        };
        let process = Arc::new(Process::new(name, StdioPaths::default(), Vec::new()));
        let (tell, told) = mpsc::channel();
        let hears = Arc::clone(&process);
        let hears = thread::spawn(move || {
            told.recv().unwrap();
            hears.phase()
        });
        process.set_phase_telling(Phase::Running, || {
            tell.send(()).unwrap();
            // Time for whoever hears of it to ask.
            thread::sleep(Duration::from_millis(20));
        });
        assert_eq!(hears.join().unwrap(), Phase::Running);
        let stopped = Phase::Stopped(Exit {
            status: 0,
            at: SystemTime::now(),
        });
        process.set_phase(stopped);
        process.set_phase_telling(Phase::Running, || panic!("a stopped process stays stopped"));
    }
}
