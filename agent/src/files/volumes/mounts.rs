//! The mounts of volumes: made by the first lookup, held open, unmounted. Each function may wait for the host, also for ever.

use std::fmt::Debug;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use super::sys;

/// What the table of volumes needs of the kernel.
pub(super) trait Mounts: Debug + Send + Sync {
    /// Mounts what a name of the shared directory stands for, if it is not mounted yet, and opens its root as such: nothing is opened
    /// at the host.
    fn hold(&self, place: &Path) -> Result<OwnedFd, Errno>;

    /// Unmounts it. Pages that were written through a mapping have been written to the host when it returns.
    fn unmount(&self, place: &Path);

    /// Whether the host no longer has a name. It is asked, whatever the kernel believes.
    fn is_gone(&self, name: &Path) -> bool;
}

#[derive(Debug)]
pub(super) struct Kernel;

impl Mounts for Kernel {
    fn hold(&self, place: &Path) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        // A directory is a mount of its own that the first look at it mounts. O_PATH alone does not look (the kernel's
        // follow_automount), and what it gave would not be what the container has.
        match rustix::fs::open(place, flags | OFlags::DIRECTORY, Mode::empty()) {
            Err(Errno::NOTDIR) => rustix::fs::open(place, flags, Mode::empty()),
            held => held,
        }
    }

    fn unmount(&self, place: &Path) {
        match unmount(place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            // It is no mount, a file for one, or the container came to nothing.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(error) => tracing::warn!(mount = %place.display(), %error, "what is not used stays mounted"),
        }
    }

    fn is_gone(&self, name: &Path) -> bool {
        let (Some(directory), Some(last)) = (name.parent(), name.file_name()) else {
            return true;
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        if let Ok(directory) = rustix::fs::open(directory, flags, Mode::empty()) {
            // A kernel without the patch believes it for as long as the cache mode says.
            let _ = sys::tell(&directory, libc::IN_DELETE, 0, last.as_bytes());
        }
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        matches!(statx(CWD, name, flags, StatxFlags::TYPE), Err(Errno::NOENT))
    }
}
