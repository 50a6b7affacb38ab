//! System calls that have no safe wrapper.
#![allow(unsafe_code)]

use std::io;

/// `unshare(CLONE_NEWNS)` for the calling thread.
pub(crate) fn unshare_mount_namespace() -> io::Result<()> {
    // SAFETY: CLONE_NEWNS changes this thread's view of the file systems and nothing about memory or descriptors.
    match unsafe { libc::unshare(libc::CLONE_NEWNS) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
