//! Kills the processes of a launch unless the launch succeeds. It handles an error, a cancelled request and a gate that
//! is never opened, whatever the processes are blocked in.

use std::{io, os::fd::OwnedFd, process::Child};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// The processes of one launch.
#[derive(Debug)]
pub(super) struct Guard(Vec<OwnedFd>);

impl Guard {
    /// Holds the child of a launch. It must not be reaped before: who reaps runs on this thread, or later.
    pub(super) fn new(child: &Child) -> io::Result<Self> {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self(vec![pidfd_open(pid, PidfdFlags::empty())?]))
    }

    /// Holds the process that the child has made, too.
    pub(super) fn hold(&mut self, pidfds: Vec<OwnedFd>) {
        self.0.extend(pidfds);
    }

    /// The program runs: what ends it is its container's business.
    pub(super) fn release(mut self) {
        self.0.clear();
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        for process in &self.0 {
            // ESRCH: it has ended.
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
    }
}
