//! A second process of a test, and the steps that the two wait for each other with.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
};

use nix::{
    sys::wait::{WaitStatus, waitpid},
    unistd::Pid,
};

use crate::{error::Result, sys};

/// One end of the connection between the two.
#[derive(Debug)]
pub(super) struct Link(UnixStream);

impl Link {
    /// Lets the other go on.
    pub(super) fn go(&mut self) -> Result<()> {
        Ok(self.0.write_all(&[0])?)
    }

    /// Waits until the other lets this one go on.
    pub(super) fn wait(&mut self) -> Result<()> {
        Ok(self.0.read_exact(&mut [0])?)
    }

    /// Whether the other has let this one go on, without waiting.
    pub(super) fn may_go(&mut self) -> Result<bool> {
        self.0.set_nonblocking(true)?;
        let read = self.0.read(&mut [0]);
        self.0.set_nonblocking(false)?;
        match read {
            Ok(0) => Err("the other process has ended".into()),
            Ok(_) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Tells the other a figure.
    pub(super) fn tell(&mut self, figure: i64) -> Result<()> {
        Ok(self.0.write_all(&figure.to_le_bytes())?)
    }

    /// Waits for a figure of the other's.
    pub(super) fn hear(&mut self) -> Result<i64> {
        let mut bytes = [0; 8];
        self.0.read_exact(&mut bytes)?;
        Ok(i64::from_le_bytes(bytes))
    }
}

/// A forked process; it has what its parent had at that moment, descriptors and all, but not its mappings of perf buffers.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) link: Link,
    pid: Pid,
}

impl Peer {
    /// Starts `work` in a process of its own.
    pub(super) fn start(work: impl FnOnce(&mut Link) -> Result<()>) -> Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let ours_there = ours.try_clone()?;
        let pid = sys::forked(move || {
            drop(ours_there);
            match work(&mut Link(theirs)) {
                Ok(()) => 0,
                Err(error) => {
                    eprintln!("guest-probe: the other process: {error}");
                    1
                }
            }
        })?;
        Ok(Self { link: Link(ours), pid })
    }

    /// Waits until it has ended, which it must have done well.
    pub(super) fn end(self) -> Result<()> {
        match waitpid(self.pid, None)? {
            WaitStatus::Exited(_, 0) => Ok(()),
            other => Err(format!("the other process ended with {other:?}").into()),
        }
    }

    /// Waits until a signal has killed it.
    pub(super) fn killed(self) -> Result<()> {
        match waitpid(self.pid, None)? {
            WaitStatus::Signaled(..) => Ok(()),
            other => Err(format!("the other process was to be killed and ended with {other:?}").into()),
        }
    }
}
