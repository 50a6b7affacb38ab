//! Passes descriptors to a child under fixed numbers.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use tokio::process::Command;

/// The child gets `descriptors` as 3, 4 and so on. They must have numbers above those.
pub(super) fn pass_descriptors(command: &mut Command, descriptors: Vec<OwnedFd>) {
    let install = move || {
        for (number, descriptor) in (3..).zip(&descriptors) {
            // SAFETY: dup2 takes and gives plain numbers; the source is open because the closure owns it. The copy has
            // no close-on-exec flag (dup2(2)), which is what is wanted.
            if unsafe { libc::dup2(descriptor.as_raw_fd(), number) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure only calls dup2, which is async-signal-safe (signal-safety(7)), and
    // allocates nothing.
    unsafe { command.pre_exec(install) };
}
