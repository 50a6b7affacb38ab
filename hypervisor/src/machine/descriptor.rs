//! Descriptors as QEMU and the helpers are told of them.

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

/// A descriptor's number, for a program's arguments.
pub(crate) fn number(fd: BorrowedFd<'_>) -> RawFd {
    fd.as_raw_fd()
}
