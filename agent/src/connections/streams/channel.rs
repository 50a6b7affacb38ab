//! The end of a pipe or the master of a terminal, in non-blocking mode.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::common::sys;

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

    /// Reads into the buffer, and returns the number of bytes; 0 at the end.
    pub(super) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        async_io(&self.0, Interest::READABLE, |fd| Ok(read_or_end(fd, buffer)?)).await
    }

    /// Reads without waiting; None if nothing is there.
    pub(super) fn read_now(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match read_or_end(self, buffer) {
            Ok(count) => Ok(Some(count)),
            Err(Errno::AGAIN) => Ok(None),
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

/// read(2), with 0 for the end: a terminal's master answers EIO when nobody has the other side open any more.
///
/// The first EIO is not the end. The kernel (`n_tty_read` in the pinned 6.12) waits for the worker that hands over what has
/// been written, looks for bytes, and only then whether the other side is closed. What is written and closed between the
/// wait and the last look is still with the worker, and the answer is EIO. The next read waits for the worker again, and
/// after a close nothing more is written.
fn read_or_end(fd: impl AsFd, buffer: &mut [u8]) -> Result<usize, Errno> {
    end_is_eio_twice(|| rustix::io::read(&fd, &mut *buffer))
}

fn end_is_eio_twice(mut read: impl FnMut() -> Result<usize, Errno>) -> Result<usize, Errno> {
    match read() {
        Err(Errno::IO) => match read() {
            Err(Errno::IO) => Ok(0),
            other => other,
        },
        other => other,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_hands_over_after_it_said_eio_is_read() {
        let mut answers = vec![Ok(9), Err(Errno::IO), Ok(5), Err(Errno::IO), Err(Errno::IO)].into_iter();
        let mut read = || end_is_eio_twice(|| answers.next().unwrap());
        assert_eq!([read(), read(), read()], [Ok(9), Ok(5), Ok(0)]);
    }

    #[test]
    fn a_terminal_that_is_opened_again_has_not_ended() {
        let mut answers = vec![Err(Errno::IO), Err(Errno::AGAIN)].into_iter();
        assert_eq!(end_is_eio_twice(|| answers.next().unwrap()), Err(Errno::AGAIN));
    }
}
