//! A child that does nothing: a copy of this process, without a program of its own, that stands for namespaces as long as they are needed.
//!
//! What executes a program is started by [`crate::spawn`] instead.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// Forks a child that calls `prepare`, closes all its descriptors but `until`, one end of a pair of sockets, writes a byte to that, and ends when
/// the other end is closed. Where `prepare` is false it ends at once. The caller waits for it.
///
/// # Errors
/// There can be no more processes.
///
/// # Safety
/// `prepare` runs in the child of a process that may have threads: it may call nothing but async-signal-safe functions
/// (signal-safety(7)), on memory that was made ready before, and must not panic.
pub unsafe fn spawn(until: &OwnedFd, prepare: impl FnOnce() -> bool) -> io::Result<i32> {
    // SAFETY: the child makes system calls alone, beside what the caller vouches for, and never returns from here. The descriptor is open in it
    // as it is here.
    unsafe {
        let child = libc::fork();
        if child != 0 {
            return match child {
                -1 => Err(io::Error::last_os_error()),
                child => Ok(child),
            };
        }
        if prepare() && libc::dup2(until.as_raw_fd(), 0) == 0 {
            libc::syscall(libc::SYS_close_range, 1_u32, u32::MAX, 0_u32);
            let mut byte = 0_u8;
            libc::write(0, (&raw const byte).cast(), 1);
            // Nothing is ever written: it ends with the other end, or begins anew after a signal.
            while libc::read(0, (&raw mut byte).cast(), 1) < 0 && *libc::__errno_location() == libc::EINTR {}
        }
        libc::_exit(0)
    }
}
