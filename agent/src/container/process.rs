//! One process that the host requested: its pid, its pidfd, its streams. It knows no container.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;

use nix::unistd::Pid;
use tokio::sync::watch;

use crate::common::sys;
use crate::connections::streams::Streams;

/// A process, from its launch to its Delete.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: Pid,
    /// Names this process and no later one of the same number. None where it had ended before it was registered.
    pub(crate) pidfd: Option<OwnedFd>,
    pub(crate) streams: Streams,
    /// The signal that ended it while it waited to be started: it was sent SIGKILL for that.
    pub(crate) ended_by: OnceLock<u32>,
    pub(crate) ended: bool,
    /// Its exit has been handed to the event queue.
    pub(crate) published: watch::Sender<bool>,
}

impl Process {
    pub(crate) fn new(pid: Pid, pidfd: Option<OwnedFd>, streams: Streams) -> Self {
        Self {
            pid,
            pidfd,
            streams,
            ended_by: OnceLock::new(),
            ended: false,
            published: watch::Sender::new(false),
        }
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// ESRCH where it has been reaped.
    pub(crate) fn signal(&self, signal: i32) -> io::Result<()> {
        match &self.pidfd {
            Some(pidfd) if !self.ended => sys::send_signal(pidfd.as_fd(), signal),
            Some(_) | None => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        }
    }
}
