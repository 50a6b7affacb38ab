//! Clones of the host's mounts whose files belong to others: the kernel translates the owners, in both directions, for whoever uses them,
//! virtiofsd among them.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::process::{Pid, WaitOptions, waitpid};

use crate::owners::IdMap;
use crate::sys;

/// Maps the owners of a tree that is attached nowhere.
///
/// # Errors
/// The mapping is not one, or a file system of the tree cannot have it.
pub(super) fn apply(tree: &OwnedFd, map: &IdMap) -> io::Result<()> {
    let users = user_namespace(map)?;
    sys::map_owners(tree.as_fd(), users.as_fd(), map.recursive).map_err(|error| match error.raw_os_error() {
        Some(libc::EINVAL) => io::Error::new(
            io::ErrorKind::Unsupported,
            "its file system on the host knows no id-mapped mounts, or its mount is mapped already",
        ),
        _ => error,
    })
}

/// A user namespace with these maps: the kernel takes a mapping in no other form. Nobody is in it.
fn user_namespace(map: &IdMap) -> io::Result<OwnedFd> {
    let (mut until, other) = UnixStream::pair()?;
    let other = OwnedFd::from(other);
    let pid = sys::spawn_in_user_namespace(&other)?;
    drop(other);
    let made = until.read_exact(&mut [0]).and_then(|()| {
        let failed = |file: &str| {
            let file = file.to_owned();
            move |error: io::Error| {
                io::Error::new(error.kind(), format!("the kernel does not take the {file}: {error}"))
            }
        };
        fs::write(format!("/proc/{pid}/uid_map"), &map.users).map_err(failed("uidMappings"))?;
        fs::write(format!("/proc/{pid}/gid_map"), &map.groups).map_err(failed("gidMappings"))?;
        File::open(format!("/proc/{pid}/ns/user"))
    });
    drop(until);
    if let Some(pid) = Pid::from_raw(pid) {
        while matches!(waitpid(Some(pid), WaitOptions::empty()), Err(rustix::io::Errno::INTR)) {}
    }
    made.map(OwnedFd::from)
}
