//! A process of the host that was written down and may be gone when it is read again.
//!
//! A pid alone can belong to somebody else by then; with the time of its start it cannot.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// A pid and when that process started, in clock ticks since boot (field 22 of `/proc/PID/stat`, proc_pid_stat(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRef {
    /// The process's number.
    pub pid: i32,
    /// Its start, in clock ticks since boot.
    pub start_time: u64,
}

impl ProcessRef {
    /// The process that has this pid now; none if there is none.
    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(Self {
            pid,
            start_time: start_time(&stat)?,
        })
    }

    /// This process.
    #[must_use]
    pub fn own() -> Option<Self> {
        Self::of(i32::try_from(std::process::id()).ok()?)
    }

    /// Whether the process is still there, as a zombie too.
    #[must_use]
    pub fn exists(&self) -> bool {
        Self::of(self.pid) == Some(*self)
    }

    /// Kills it if it is still the same process. Never this process itself.
    pub fn kill(&self) {
        if self.pid > 1 && i32::try_from(std::process::id()) != Ok(self.pid) && self.exists() {
            // Gone in between: that is what was wanted.
            let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
    }
}

/// The command, field 2, is in parentheses and may itself contain spaces and parentheses: count from the last one.
fn start_time(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}
