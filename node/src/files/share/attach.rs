//! Attaches trees of mounts in the shared directory, and unmounts what is mounted there.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, UnmountFlags, move_mount, unmount};

use super::error::ShareError;
use crate::host::mountinfo;
use crate::host::path_error::PathError;
use crate::host::sys::{self, SetAttr};

/// Attaches a cloned tree.
///
/// The clone of a shared mount is its peer, or a slave: unmounting below it would unmount on the host as well, or
/// whatever the guest uses would be EBUSY when the host unmounts it. So it becomes private: [`super::mirror`] is how a source gets
/// what the host mounts there later. virtiofsd neither opens a device node nor runs a program: neither is of use here.
pub(super) fn attach(tree: &OwnedFd, target: &Path, read_only: bool) -> Result<(), ShareError> {
    let error = |operation, source| ShareError::from(PathError::new(operation, target, source));
    harden(tree, read_only).map_err(|source| error("set the attributes of", source))?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(tree, "", rustix::fs::CWD, target, flags).map_err(|errno| error("mount on", errno.into()))
}

/// What every mount gets that the guest is to have.
pub(super) fn harden(tree: &OwnedFd, read_only: bool) -> io::Result<()> {
    sys::mount_setattr(tree.as_fd(), SetAttr::PrivateRecursive)?;
    sys::mount_setattr(tree.as_fd(), SetAttr::InertRecursive)?;
    if read_only {
        sys::mount_setattr(tree.as_fd(), SetAttr::ReadOnlyRecursive)?;
    }
    Ok(())
}

/// Unmounts everything on and below `path` in the caller's mount namespace, the last mount first.
///
/// Only mounts that are below no other are named: what is below them goes with them, and the guest, which may rename
/// directories there, has no say in what is unmounted. What is still open, in virtiofsd for example, is taken away from
/// here, and goes when it is closed.
///
/// # Errors
/// The list of mounts cannot be read, or one of them cannot be unmounted.
pub fn unmount_below(path: &Path) -> Result<(), ShareError> {
    let mounts = mountinfo::below(path).map_err(|source| PathError::new("list the mounts of", path, source))?;
    let points: HashSet<&Path> = mounts.iter().map(|mount| mount.mountpoint.as_path()).collect();
    let covered = |point: &Path| point.ancestors().skip(1).any(|above| points.contains(above));
    for mount in mounts.iter().rev() {
        if covered(&mount.mountpoint) {
            continue;
        }
        match unmount(&mount.mountpoint, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            // Not there any more: somebody else has removed it at the same time.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(errno) => return Err(io_error("unmount", &mount.mountpoint, errno)),
        }
    }
    Ok(())
}

pub(super) fn io_error(operation: &'static str, path: &Path, errno: Errno) -> ShareError {
    ShareError::from(PathError::new(operation, path, errno))
}
