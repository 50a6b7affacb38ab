//! The system calls that need `unsafe`: what a child does between fork and exec (`child`, `namespaces`, `root`), and the
//! registration of descriptors with the runtime.
#![allow(unsafe_code)]

pub(crate) mod child;
mod namespaces;
pub(crate) mod root;

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Lets the runtime tell when a descriptor becomes readable.
pub(crate) fn watch_readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the value owns its descriptor, which is neither replaced nor closed while it is registered.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(Into::into)
}
