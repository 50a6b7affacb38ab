//! Id-mapped clones of the host's mounts: the kernel translates the owners of files, in both directions, for every process that uses the
//! clone, including virtiofsd.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use base::mount_attributes;

use crate::host::owners::IdMap;

/// Maps the owners of a tree that is attached nowhere.
///
/// # Errors
/// The mapping is not one, or a file system of the tree cannot have it.
pub(super) fn apply(tree: &OwnedFd, map: &IdMap) -> io::Result<()> {
    let users = mount_attributes::user_namespace(&map.users, &map.groups)?;
    let mapped = mount_attributes::map_owners(tree.as_fd(), users.as_fd(), map.recursive);
    mapped.map_err(|error| match error.raw_os_error() {
        Some(libc::EINVAL) => io::Error::new(
            io::ErrorKind::Unsupported,
            "its file system on the host knows no id-mapped mounts, or its mount is mapped already",
        ),
        _ => error,
    })
}
