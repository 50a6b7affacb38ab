//! The ioctl of kernel patch 0200, and attributes of mounts.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use base::mount_attributes::mount_setattr;

/// Longest name: NAME_MAX of `linux/limits.h`.
const LONGEST_NAME: usize = 255;

/// `struct fuse_host_change`.
#[repr(C)]
struct FuseHostChange {
    mask: u32,
    cookie: u32,
    name: [u8; LONGEST_NAME + 1],
}

nix::ioctl_write_ptr!(fuse_host_change, 229, 0xa0, FuseHostChange);

/// Tells that something has happened to a name in the directory `file`, or to `file` itself if the name is empty.
pub(super) fn tell(file: &OwnedFd, mask: u32, cookie: u32, name: &[u8]) -> io::Result<()> {
    let mut change = FuseHostChange {
        mask,
        cookie,
        name: [0; LONGEST_NAME + 1],
    };
    if name.len() > LONGEST_NAME || name.contains(&0) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    change.name[..name.len()].copy_from_slice(name);
    // SAFETY: the request's size is that of the struct, which is valid for the call and only read; the kernel checks
    // the rest. On a file of another kind the request has no meaning and is refused.
    unsafe { fuse_host_change(file.as_raw_fd(), &raw const change) }?;
    Ok(())
}

/// Sets attributes (`MOUNT_ATTR_*`) of a mount and of all that is mounted in it, and makes them private.
pub(super) fn restrict(tree: &OwnedFd, attributes: u64) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: attributes,
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    mount_setattr(tree.as_fd(), c"", libc::AT_RECURSIVE, &attributes)
}
