//! A recorded process of the host, which may have ended when the record is read.
//!
//! The pid alone may belong to another process by then. The pid with the process's start time may not.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use base::process::stat;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// How far up a process's parents are looked at.
const GENERATIONS: usize = 4;

/// A pid and when that process started, in clock ticks since boot (field 22 of `/proc/PID/stat`, proc_pid_stat(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRef {
    /// The pid, which another process may have by now.
    pub pid: i32,
    /// Its start, in clock ticks since boot.
    pub start_time: u64,
}

impl ProcessRef {
    /// The process that has this pid now; none if there is none.
    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        let start_time = stat(pid)?.starttime;
        Some(Self { pid, start_time })
    }

    /// The calling process; none if /proc cannot be read.
    #[must_use]
    pub fn own() -> Option<Self> {
        Self::of(i32::try_from(std::process::id()).ok()?)
    }

    /// Whether it is still there and not dead. Never so for this process itself and for init.
    pub fn is_alive(&self) -> bool {
        let alive = |pidfd| wait_for(&pidfd, Instant::now()).is_ok_and(|dead| !dead);
        self.open().is_some_and(alive)
    }

    /// Whether it has ended, or does until then. Blocks.
    pub fn ends_by(&self, deadline: Instant) -> bool {
        self.open()
            .is_none_or(|pidfd| wait_for(&pidfd, deadline).unwrap_or(false))
    }

    /// Whether it is stopped by a signal or a debugger: it does nothing until it is continued.
    pub fn is_stopped(&self) -> bool {
        stat(self.pid).is_some_and(|stat| stat.starttime == self.start_time && matches!(stat.state, 'T' | 't'))
    }

    /// Kills it if it is still the same process. Never this process itself.
    pub fn kill(&self) {
        if let Some(pidfd) = self.open() {
            // Gone in between: that is what was wanted.
            let _ = pidfd_send_signal(&pidfd, Signal::KILL);
        }
    }

    /// A descriptor for the process if it is still the same one. None for this process itself and for init.
    fn open(&self) -> Option<OwnedFd> {
        if self.pid <= 1 || i32::try_from(std::process::id()) == Ok(self.pid) {
            return None;
        }
        let pidfd = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        // Compared after opening: if it is the same process now, then it was when the descriptor was made.
        (Self::of(self.pid) == Some(*self)).then_some(pidfd)
    }
}

/// Kills these processes and waits for their end, at most until the deadline. Blocks.
pub fn kill_all(processes: &[ProcessRef], deadline: Instant) {
    let pidfds: Vec<OwnedFd> = processes.iter().filter_map(ProcessRef::open).collect();
    for pidfd in &pidfds {
        let _ = pidfd_send_signal(pidfd, Signal::KILL);
    }
    for pidfd in &pidfds {
        // After an error there is nothing better than to go on.
        let _ = wait_for(pidfd, deadline);
    }
}

/// A pidfd is readable once the process is dead (pidfd_open(2)).
fn wait_for(pidfd: &OwnedFd, deadline: Instant) -> rustix::io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 0, tv_nsec: 0 });
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => {}
            ready => return ready.map(|count| count > 0),
        }
    }
}

/// The processes that come from this one by a few generations.
pub fn descendants() -> io::Result<Vec<i32>> {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let numbers = fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    Ok(numbers.filter(|pid| *pid != own && is_descendant(*pid)).collect())
}

/// Whether a process is this one, or comes from it by a few generations.
pub fn is_descendant(pid: i32) -> bool {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let mut ancestor = pid;
    for _ in 0..GENERATIONS {
        if ancestor == own {
            return true;
        }
        match stat(ancestor).map(|stat| stat.ppid) {
            Some(parent) if parent > 1 => ancestor = parent,
            _ => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use std::time::Duration;

    #[test]
    fn who_is_dead_and_not_reaped_is_not_alive() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let process = ProcessRef::of(child.id().try_into().unwrap()).unwrap();
        assert!(process.is_alive());
        kill_all(&[process], Instant::now() + Duration::from_secs(5));
        assert!(ProcessRef::of(process.pid).is_some());
        assert!(!process.is_alive());
        child.wait().unwrap();
        assert!(!process.is_alive());
    }

    #[test]
    fn a_process_is_killed_and_one_that_only_has_its_pid_is_not() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let real = ProcessRef::of(child.id().try_into().unwrap()).unwrap();
        let other = ProcessRef {
            start_time: real.start_time + 1,
            ..real
        };
        kill_all(&[other], Instant::now() + Duration::from_secs(5));
        assert_eq!(child.try_wait().unwrap(), None);
        kill_all(&[real], Instant::now() + Duration::from_secs(5));
        assert!(!child.wait().unwrap().success());
    }

    #[test]
    fn nobody_kills_themselves_or_init() {
        kill_all(
            &[ProcessRef::own().unwrap(), ProcessRef::of(1).unwrap()],
            Instant::now(),
        );
    }
}
