//! Waits for a change of a cgroup's file: the kernel raises an inotify event for the `*.events` files.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::sys;

/// Bytes for a handful of events; they are not looked at.
const BUFFER: usize = 512;

/// A change that happens after it was made is never missed.
#[derive(Debug)]
pub(crate) struct Watch(AsyncFd<OwnedFd>);

impl Watch {
    /// # Errors
    /// There is no such file.
    pub(crate) fn new(path: &Path) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        inotify::add_watch(&inotify, path, WatchFlags::MODIFY)?;
        Ok(Self(sys::watched(inotify, Interest::READABLE)?))
    }

    /// Resolves once the file has changed since the last call.
    ///
    /// # Errors
    /// The descriptor cannot be read.
    pub(crate) async fn changed(&self) -> io::Result<()> {
        loop {
            let mut ready = self.0.readable().await?;
            let mut buffer = [MaybeUninit::uninit(); BUFFER];
            match rustix::io::read(self.0.get_ref(), &mut buffer) {
                Ok(_) => return Ok(()),
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_write_before_the_wait_is_seen() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let watch = Watch::new(file.path()).unwrap();
        std::fs::write(file.path(), "x").unwrap();
        watch.changed().await.unwrap();
    }
}
