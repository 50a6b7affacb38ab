//! Steps of a child, which has one thread, between fork and exec: new namespaces, and another root. System calls alone.

use std::io;

use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
use rustix::process::{chdir, chroot, pivot_root};

/// The step that failed, and why.
pub(super) type Failed = (&'static [u8], rustix::io::Errno);

/// Makes new namespaces, a mount namespace among them, for the calling process.
pub(super) fn leave_namespaces(new: libc::c_int) -> Result<(), Failed> {
    unshare(new)?;
    // What the host unmounts is unmounted here too: where the old root stays, a private copy would keep it alive as long as
    // the program runs. What is mounted here does not reach the host.
    mount_change(c"/", MountPropagationFlags::REC | MountPropagationFlags::DOWNSTREAM)
        .map_err(|errno| (&b"cannot leave the host's mounts"[..], errno))
}

/// Makes new namespaces for the calling process (unshare(2)).
pub(super) fn unshare(new: libc::c_int) -> Result<(), Failed> {
    // SAFETY: the flags are of namespaces alone: they change what the calling thread, the only one, sees of the system, and
    // nothing about memory or descriptors.
    if unsafe { libc::unshare(new) } == 0 {
        Ok(())
    } else {
        Err((b"cannot make namespaces", errno()))
    }
}

/// Makes the working directory, which is a mount's root, the root, and lets go of the old one.
pub(super) fn change_root() -> rustix::io::Result<()> {
    match pivot_root(c".", c".") {
        Ok(()) => unmount(c".", UnmountFlags::DETACH)?,
        // The host runs in its initial RAM file system, of which nobody can let go. Without capabilities nobody leaves the new
        // root either.
        Err(rustix::io::Errno::INVAL) => chroot(c".")?,
        Err(error) => return Err(error),
    }
    chdir(c"/")
}

/// Of the system call that has just failed.
pub(super) fn errno() -> rustix::io::Errno {
    rustix::io::Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(rustix::io::Errno::INVAL)
}
