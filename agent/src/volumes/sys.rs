//! The ioctl of kernel patch 0200.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

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
