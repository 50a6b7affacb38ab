//! Waits for what the kernel reports of a cgroup: an inotify event when a `*.events` file changes, and a priority event when
//! its processes have waited too long for a resource (the kernel's Documentation/accounting/psi.rst).

use std::fs::File;
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::common::sys;

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

/// Tells when processes of a cgroup have waited for long.
#[derive(Debug)]
pub(crate) struct Stalls(AsyncFd<OwnedFd>);

impl Stalls {
    /// Tells whenever some process has waited for `stalled` within `window`, at most once a window. `path` is a pressure file.
    ///
    /// # Errors
    /// There is no such file, or the kernel does not take these times.
    pub(crate) fn new(path: &Path, stalled: Duration, window: Duration) -> io::Result<Self> {
        let mut options = File::options();
        let mut file = options
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)?;
        // In one write: each is a trigger.
        let trigger = format!("some {} {}", stalled.as_micros(), window.as_micros());
        file.write_all(trigger.as_bytes())?;
        Ok(Self(sys::watched(file.into(), Interest::PRIORITY)?))
    }

    /// Resolves once it is so again.
    ///
    /// # Errors
    /// The cgroup is gone.
    pub(crate) async fn next(&self) -> io::Result<()> {
        self.0.ready(Interest::PRIORITY).await?.clear_ready();
        Ok(())
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
