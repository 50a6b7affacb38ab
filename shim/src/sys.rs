//! System calls that have no safe wrapper.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The descriptor by which the server gets its listening socket.
const LISTENER_FD: i32 = 3;

/// `unshare(CLONE_NEWNS)` for the calling thread.
pub(crate) fn unshare_mount_namespace() -> io::Result<()> {
    unshare(libc::CLONE_NEWNS)
}

/// `unshare(CLONE_FS)`: from now on the calling thread has a working directory of its own.
pub(crate) fn unshare_working_directory() -> io::Result<()> {
    unshare(libc::CLONE_FS)
}

/// `unshare(CLONE_NEWNET)`: from now on the calling thread is in a network namespace of its own.
pub(crate) fn unshare_network_namespace() -> io::Result<()> {
    unshare(libc::CLONE_NEWNET)
}

fn unshare(flags: i32) -> io::Result<()> {
    // SAFETY: the flags that are used here change this thread's view of the file systems or of the network, and nothing
    // about memory or descriptors.
    match unsafe { libc::unshare(flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What `mount_setattr(2)` is used for here.
#[derive(Debug, Clone, Copy)]
pub(crate) enum SetAttr {
    /// The mount alone becomes read-only.
    ReadOnly,
    /// The mount alone can be written to.
    Writable,
    /// The mount and all below it become read-only.
    ReadOnlyRecursive,
    /// Device nodes and set-id programs of the mount, and of all below it, do nothing.
    InertRecursive,
    /// The mount and all below it become slaves.
    SlaveRecursive,
    /// The mount and all below it become private.
    PrivateRecursive,
}

/// `mount_setattr(2)` on the mount that the descriptor is the root of.
pub(crate) fn mount_setattr(mount: BorrowedFd<'_>, change: SetAttr) -> io::Result<()> {
    // SAFETY: all fields of the struct are integers, for which zero means "no change".
    let mut attributes: libc::mount_attr = unsafe { std::mem::zeroed() };
    let mut flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    match change {
        SetAttr::ReadOnly => {
            attributes.attr_set = libc::MOUNT_ATTR_RDONLY;
            flags = libc::AT_EMPTY_PATH;
        }
        SetAttr::Writable => {
            attributes.attr_clr = libc::MOUNT_ATTR_RDONLY;
            flags = libc::AT_EMPTY_PATH;
        }
        SetAttr::ReadOnlyRecursive => attributes.attr_set = libc::MOUNT_ATTR_RDONLY,
        SetAttr::InertRecursive => attributes.attr_set = libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSUID,
        SetAttr::SlaveRecursive => attributes.propagation = libc::MS_SLAVE,
        SetAttr::PrivateRecursive => attributes.propagation = libc::MS_PRIVATE,
    }
    // SAFETY: the descriptor is open, the path is an empty C string, the struct is initialised and of the stated size.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Lets the child lead a session of its own and have `listener` as descriptor 3.
pub(crate) fn detach_with_listener(command: &mut Command, listener: OwnedFd) {
    let prepare = move || {
        // SAFETY: setsid, dup2 and fcntl are async-signal-safe (signal-safety(7)); the listener is open, as this
        // closure owns it.
        unsafe {
            if libc::setsid() < 0 {
                return Err(io::Error::last_os_error());
            }
            let result = match listener.as_raw_fd() {
                // dup2 onto itself would leave close-on-exec set.
                LISTENER_FD => libc::fcntl(LISTENER_FD, libc::F_SETFD, 0),
                fd => libc::dup2(fd, LISTENER_FD),
            };
            if result < 0 {
                Err(io::Error::last_os_error())
            } else {
                Ok(())
            }
        }
    };
    // SAFETY: the closure calls nothing but async-signal-safe functions and does not allocate.
    unsafe {
        command.pre_exec(prepare);
    }
}

/// Takes over the listening socket that [`detach_with_listener`] has left. To be called once, before anything else
/// opens a descriptor.
pub(crate) fn inherited_listener() -> io::Result<OwnedFd> {
    // SAFETY: F_SETFD takes no pointer; it fails if there is no such descriptor.
    if unsafe { libc::fcntl(LISTENER_FD, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, and nobody else owns it: the parent put it there for us.
    Ok(unsafe { OwnedFd::from_raw_fd(LISTENER_FD) })
}

/// A child that does nothing: a copy of this process without its descriptors, in the network namespace `network`, until the other end
/// of `until` is closed. It is to be waited for.
pub(crate) fn spawn_idle(until: &OwnedFd, network: Option<BorrowedFd<'_>>, name: &CStr) -> io::Result<i32> {
    // SAFETY: the child calls nothing but async-signal-safe functions (signal-safety(7)) and system calls of its own, on memory that
    // was made ready before, and never returns from here. The descriptors are open in it as they are here.
    unsafe {
        let child = libc::fork();
        if child != 0 {
            return match child {
                -1 => Err(io::Error::last_os_error()),
                child => Ok(child),
            };
        }
        if let Some(network) = network {
            // Only who looks for the network by this pid misses it.
            libc::setns(network.as_raw_fd(), libc::CLONE_NEWNET);
        }
        libc::prctl(libc::PR_SET_NAME, name.as_ptr());
        if libc::dup2(until.as_raw_fd(), 0) == 0 {
            libc::syscall(libc::SYS_close_range, 1_u32, u32::MAX, 0_u32);
            let mut byte = 0_u8;
            // Nothing is ever written: it ends with the other end, or begins anew after a signal.
            while libc::read(0, (&raw mut byte).cast(), 1) < 0 && *libc::__errno_location() == libc::EINTR {}
        }
        libc::_exit(0)
    }
}

/// Lets a task wait until the descriptor is readable.
pub(crate) fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd always gives the same descriptor, and it stays open as long as the AsyncFd owns it.
    unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }.map_err(Into::into)
}

/// Fills it with what nobody can guess.
pub(crate) fn fill_random(bytes: &mut [u8]) {
    let mut filled = 0;
    while filled < bytes.len() {
        // getrandom(2) gives up to 256 bytes at once; it can only be interrupted, and then it is asked again.
        let rest = bytes.get_mut(filled..).unwrap_or_default();
        if let Ok(count) = rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty()) {
            filled += count;
        }
    }
}
