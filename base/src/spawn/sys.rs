//! What a child does between fork and exec.
#![allow(unsafe_code)]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::accounting::Prepared;

/// The child takes its score and limits.
pub(super) fn account(command: &mut Command, prepared: Prepared) {
    // SAFETY: `apply` only makes system calls on memory that was made ready before the fork: it allocates nothing and takes no lock, as
    // signal-safety(7) demands of the child of a process with threads.
    unsafe {
        command.pre_exec(move || prepared.apply().map_err(|(_, errno)| errno.into()));
    }
}

/// The child leads a session of its own.
pub(super) fn lead_session(command: &mut Command) {
    // SAFETY: setsid is async-signal-safe (signal-safety(7)), and the closure does nothing else.
    unsafe {
        command.pre_exec(|| rustix::process::setsid().map(drop).map_err(io::Error::from));
    }
}
