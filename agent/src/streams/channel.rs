//! A pipe's end or a terminal's master, without blocking.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::sys;

/// Cheap to clone; closed with its last clone.
#[derive(Debug, Clone)]
pub(super) struct Channel(Arc<AsyncFd<OwnedFd>>);

impl Channel {
    /// # Errors
    /// The descriptor cannot be watched.
    pub(super) fn new(fd: OwnedFd, interest: Interest) -> io::Result<Self> {
        fcntl_setfl(&fd, fcntl_getfl(&fd)? | OFlags::NONBLOCK)?;
        Ok(Self(Arc::new(sys::watched(fd, interest)?)))
    }

    /// 0: the end. A terminal's master answers EIO when nobody has the other side open any more.
    pub(super) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = |fd: &OwnedFd| match rustix::io::read(fd, &mut *buffer) {
            Err(Errno::IO) => Ok(0),
            other => other.map_err(io::Error::from),
        };
        async_io(&self.0, Interest::READABLE, read).await
    }

    /// What is there now; None: nothing.
    pub(super) fn read_now(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match rustix::io::read(self.as_fd(), buffer) {
            Ok(count) => Ok(Some(count)),
            Err(Errno::AGAIN) => Ok(None),
            Err(Errno::IO) => Ok(Some(0)),
            Err(error) => Err(error.into()),
        }
    }

    /// # Errors
    /// EPIPE where nobody can read it any more.
    pub(super) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let write = |fd: &OwnedFd| rustix::io::write(fd, bytes).map_err(io::Error::from);
            let count = async_io(&self.0, Interest::WRITABLE, write).await?;
            bytes = bytes.get(count..).unwrap_or_default();
        }
        Ok(())
    }

    /// Resolves when nobody can read what is written any more (EPOLLERR on a pipe's writing end, poll(2)).
    pub(super) async fn reader_gone(&self) -> io::Result<()> {
        let mut ready = self.0.ready(Interest::ERROR).await?;
        ready.retain_ready();
        Ok(())
    }
}

async fn async_io(
    fd: &AsyncFd<OwnedFd>,
    interest: Interest,
    mut operation: impl FnMut(&OwnedFd) -> io::Result<usize>,
) -> io::Result<usize> {
    fd.async_io(interest, |fd| operation(fd)).await
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
