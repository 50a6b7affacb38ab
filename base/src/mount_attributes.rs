//! mount_setattr(2), and user namespaces for id-mapped mounts.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, waitpid};

use crate::idle;

/// Changes attributes of the mount at `path` from `mount`, with AT_EMPTY_PATH and the other `flags` (AT_RECURSIVE).
///
/// # Errors
/// As mount_setattr(2).
pub fn mount_setattr(
    mount: BorrowedFd<'_>,
    path: &CStr,
    flags: libc::c_int,
    attributes: &libc::mount_attr,
) -> io::Result<()> {
    // SAFETY: the descriptor is open, the path is a C string, the attributes are initialised and of the stated size.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            path.as_ptr(),
            libc::AT_EMPTY_PATH | flags,
            std::ptr::from_ref(attributes),
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Maps the owners of a mount's files by a user namespace (MOUNT_ATTR_IDMAP). The mount must not have been attached yet.
///
/// # Errors
/// As mount_setattr(2); EINVAL if a file system knows no id-mapped mounts, or the mount is mapped already.
pub fn map_owners(mount: BorrowedFd<'_>, users: BorrowedFd<'_>, recursive: bool) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        // The number is that of a descriptor that is open during the call.
        userns_fd: u64::from(users.as_raw_fd().cast_unsigned()),
    };
    mount_setattr(mount, c"", if recursive { libc::AT_RECURSIVE } else { 0 }, &attributes)
}

/// A user namespace with these maps (lines of user_namespaces(7)): the kernel takes a mapping of a mount in no other form.
/// Nobody is in it.
///
/// # Errors
/// No child can be started, or the kernel does not take a map.
pub fn user_namespace(users: &str, groups: &str) -> io::Result<OwnedFd> {
    let (mut until, other) = UnixStream::pair()?;
    let other = OwnedFd::from(other);
    // SAFETY: unshare is a system call that touches no memory.
    let pid = unsafe { idle::spawn(&other, || libc::unshare(libc::CLONE_NEWUSER) == 0) }?;
    drop(other);
    let made = until.read_exact(&mut [0]).and_then(|()| {
        let write = |file: &str, field: &str, lines: &str| {
            let written = fs::write(format!("/proc/{pid}/{file}"), lines);
            written.map_err(|error| {
                io::Error::new(
                    error.kind(),
                    format!("the kernel does not take the {field} {lines:?}: {error}"),
                )
            })
        };
        write("uid_map", "uidMappings", users)?;
        write("gid_map", "gidMappings", groups)?;
        File::open(format!("/proc/{pid}/ns/user"))
    });
    drop(until);
    if let Some(pid) = Pid::from_raw(pid) {
        while matches!(waitpid(Some(pid), WaitOptions::empty()), Err(Errno::INTR)) {}
    }
    made.map(OwnedFd::from)
}
