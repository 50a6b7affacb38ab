//! Watching a descriptor with the runtime's epoll. It decides nothing.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// # Errors
/// The descriptor is of a kind that epoll does not take.
pub(crate) fn watched(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open, its number does not change, and it is closed only when the AsyncFd that now owns it
    // is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}
