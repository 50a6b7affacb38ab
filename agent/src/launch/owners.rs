//! Id-mapped mounts of the guest's own file systems: a volume in its memory or on a disk. The host maps its own files.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use base::mount_attributes;
use oci_spec::runtime::{LinuxIdMapping, Mount};

use super::namespaces::map_lines;

/// Maps the owners of a tree that is attached nowhere as the mount asks for it, if it does.
///
/// # Errors
/// The mapping is not one, or a file system of the tree cannot have it.
pub(super) fn map(tree: &OwnedFd, mount: &Mount, recursive: bool) -> io::Result<()> {
    let lines = |list: &Option<Vec<LinuxIdMapping>>| list.as_deref().map(map_lines).unwrap_or_default();
    let (users, groups) = (lines(mount.uid_mappings()), lines(mount.gid_mappings()));
    if users.is_empty() && groups.is_empty() {
        return Ok(());
    }
    let namespace = mount_attributes::user_namespace(&users, &groups)?;
    let mapped = mount_attributes::map_owners(tree.as_fd(), namespace.as_fd(), recursive);
    mapped.map_err(|error| match error.raw_os_error() {
        Some(libc::EINVAL) => io::Error::new(
            io::ErrorKind::Unsupported,
            "its file system knows no id-mapped mounts (uidMappings, gidMappings)",
        ),
        _ => error,
    })
}
