//! Id-mapped mounts of what is the guest's own: a volume in its memory or on a disk. Files of the host are mapped by the host.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};

use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::waitpid;
use nix::unistd::ForkResult;
use oci_spec::runtime::{LinuxIdMapping, Mount};

use super::{namespaces::map_lines, sys};

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
    let namespace = user_namespace(&users, &groups)?;
    sys::map_owners(tree.as_fd(), namespace.as_fd(), recursive).map_err(|error| match error.raw_os_error() {
        Some(libc::EINVAL) => io::Error::new(
            io::ErrorKind::Unsupported,
            "its file system knows no id-mapped mounts (uidMappings, gidMappings)",
        ),
        _ => error,
    })
}

/// A user namespace with these maps, which the kernel takes in no other form. Nobody stays in it.
fn user_namespace(users: &str, groups: &str) -> io::Result<OwnedFd> {
    let ((made, tells), (stays, ends)) = (nix::unistd::pipe()?, nix::unistd::pipe()?);
    let ForkResult::Parent { child } = sys::fork()? else {
        drop((made, ends));
        if unshare(CloneFlags::CLONE_NEWUSER).is_ok() && nix::unistd::write(&tells, b"!").is_ok() {
            let _ = File::from(stays).read(&mut [0]);
        }
        std::process::exit(0);
    };
    drop((tells, stays));
    let namespace = File::from(made).read_exact(&mut [0]).and_then(|()| {
        let write = |file: &str, lines: &str| {
            let refused = |error: io::Error| io::Error::new(error.kind(), format!("{file} {lines:?}: {error}"));
            fs::write(format!("/proc/{child}/{file}"), lines).map_err(refused)
        };
        write("uid_map", users)?;
        write("gid_map", groups)?;
        File::open(format!("/proc/{child}/ns/user"))
    });
    drop(ends);
    while waitpid(child, None) == Err(nix::errno::Errno::EINTR) {}
    namespace.map(OwnedFd::from)
}
