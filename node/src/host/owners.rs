//! The owners of the host's files in a guest. It knows of a specification its mappings alone, and nothing of mounts.

use oci_spec::runtime::LinuxIdMapping;

/// Owners on the source's file system, and who they are in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdMap {
    /// Lines of uid_map (user_namespaces(7)).
    pub users: String,
    /// Lines of gid_map.
    pub groups: String,
    /// What is mounted below the source is mapped, too.
    pub recursive: bool,
}

/// A line of uid_map or gid_map.
pub(crate) fn line(inside: u32, outside: u32, size: u32) -> String {
    format!("{inside} {outside} {size}\n")
}

/// All lines of one.
pub(crate) fn lines(mappings: &[LinuxIdMapping]) -> String {
    let of = |map: &LinuxIdMapping| line(map.container_id(), map.host_id(), map.size());
    mappings.iter().map(of).collect()
}
