//! Opens files below a directory that the guest can change at the same time, by virtio-fs.
//!
//! The kernel resolves the path without following links, which could lead anywhere on the host. The file is then used by
//! its descriptor, because the name may refer to another file a moment later.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

/// What is at `place` below `directory`, whose own path is ours alone; the directory itself if the place is empty.
pub fn open(directory: &Path, place: &Path) -> io::Result<OwnedFd> {
    let root = rustix::fs::open(directory, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    if place.as_os_str().is_empty() {
        return Ok(root);
    }
    open_in(&root, place)
}

/// The same for a directory that is open.
pub fn open_in(directory: &OwnedFd, place: &Path) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat2(directory, place, flags, Mode::empty(), resolve)?)
}

/// A name for what is open, for calls that want one (proc_pid_fd(5)). It is good as long as the descriptor is.
pub fn name_of(file: &impl AsFd) -> String {
    format!("/proc/self/fd/{}", file.as_fd().as_raw_fd())
}
