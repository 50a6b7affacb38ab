//! The one place that needs `unsafe`: code that runs between fork and exec.
#![allow(unsafe_code)]

use std::{os::unix::process::CommandExt, process::Command};

use rustix::process::{Signal, set_parent_process_death_signal};

/// Has the kernel kill the child when the thread that spawns it ends (`PR_SET_PDEATHSIG`, prctl(2)).
pub(crate) fn die_with_parent(command: &mut Command) {
    // SAFETY: the closure makes one system call and allocates nothing, as is required after fork in a process that
    // may have threads.
    unsafe {
        command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
    }
}
