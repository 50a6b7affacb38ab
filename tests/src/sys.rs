//! The one place that needs `unsafe`: code that runs between fork and exec, and an ioctl(2).
#![allow(unsafe_code)]

use std::{
    fs::File,
    io,
    os::{fd::AsRawFd, unix::process::CommandExt},
    process::Command,
};

use rustix::process::{Signal, set_parent_process_death_signal};

/// Has the kernel kill the child when the thread that spawns it ends (`PR_SET_PDEATHSIG`, prctl(2)).
pub(crate) fn die_with_parent(command: &mut Command) {
    // SAFETY: the closure makes one system call and allocates nothing, as is required after fork in a process that
    // may have threads.
    unsafe {
        command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
    }
}

nix::ioctl_write_int_bad!(loop_ctl_remove, LOOP_CTL_REMOVE);

/// include/uapi/linux/loop.h.
const LOOP_CTL_REMOVE: nix::libc::c_int = 0x4C81;

/// Removes a loop device that nobody uses (loop(4)).
pub(crate) fn remove_loop_device(number: u32) -> io::Result<()> {
    let control = File::open("/dev/loop-control")?;
    let number = number.try_into().map_err(io::Error::other)?;
    // SAFETY: the argument is a number, and the descriptor is open.
    unsafe { loop_ctl_remove(control.as_raw_fd(), number)? };
    Ok(())
}
