//! The system calls without a safe wrapper. Each function says why its call is sound; none decides anything.
#![allow(unsafe_code)]

use std::{
    ffi::CStr,
    io, mem,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use super::filter::Filter;
use nix::unistd::ForkResult;
use tokio::io::{Interest, unix::AsyncFd};

/// Watches a socket for reading and writing.
pub(super) fn watch(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd names the same open descriptor for as long as it lives, and the AsyncFd owns it.
    Ok(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE | Interest::WRITABLE) }?)
}

/// fork(2). Only for the child of a launch, which has one thread.
pub(super) fn fork() -> io::Result<ForkResult> {
    // SAFETY: the caller is single-threaded, so that no lock can be held by a thread that the copy lacks.
    Ok(unsafe { nix::unistd::fork() }?)
}

/// mount_setattr(2) on a mount that is named by a descriptor of its root; `MS_*` propagation.
pub(super) fn mount_setattr(
    mount: BorrowedFd<'_>,
    path: &CStr,
    recursive: bool,
    set: u64,
    clear: u64,
    propagation: u64,
) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: set,
        attr_clr: clear,
        propagation,
        userns_fd: 0,
    };
    let flags = if recursive { libc::AT_RECURSIVE } else { 0 };
    base::mount_attributes::mount_setattr(mount, path, flags, &attributes)
}

/// Gives every signal its default action again: an ignored one would stay ignored in the program.
///
/// By the kernel's own call: the C library keeps two signals to itself, which may be ignored all the same.
pub(super) fn reset_signal_actions() {
    const LAST_SIGNAL: libc::c_int = 64;
    const SIGNAL_SET_SIZE: usize = 8;
    // The kernel's sigaction: handler, flags, restorer and mask. All zeroes is SIG_DFL without flags.
    let default = [0_u64; 4];
    for signal in 1..=LAST_SIGNAL {
        // SAFETY: the kernel reads one sigaction, which is not larger than the array. SIGKILL and SIGSTOP refuse it.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                std::ptr::null_mut::<u64>(),
                SIGNAL_SET_SIZE,
            )
        };
    }
}

/// Marks every descriptor from this one on as close-on-exec (close_range(2)).
pub(super) fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: nothing is closed before the program is replaced; descriptors keep their owners until then.
    let done = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    nix::errno::Errno::result(done).map(drop).map_err(io::Error::from)
}

/// personality(2).
pub(super) fn personality(domain: libc::c_ulong) -> io::Result<()> {
    // SAFETY: takes and returns numbers.
    nix::errno::Errno::result(unsafe { libc::personality(domain) })
        .map(drop)
        .map_err(io::Error::from)
}

/// Joins the session keyring of this name, or makes it, and returns its serial number (keyctl(2)).
pub(super) fn join_session_keyring(name: &CStr) -> io::Result<libc::c_long> {
    // SAFETY: the name is a C string.
    let serial = unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) };
    nix::errno::Errno::result(serial).map_err(io::Error::from)
}

pub(super) fn set_key_permissions(serial: libc::c_long, permissions: u32) -> io::Result<()> {
    // SAFETY: takes numbers alone.
    let done = unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_SETPERM, serial, permissions) };
    nix::errno::Errno::result(done).map(drop).map_err(io::Error::from)
}

/// ioprio_set(2) for the calling process.
pub(super) fn set_io_priority(class_and_level: libc::c_int) -> io::Result<()> {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    // SAFETY: takes numbers alone.
    let done = unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, class_and_level) };
    nix::errno::Errno::result(done).map(drop).map_err(io::Error::from)
}

/// Brings the loopback interface of the process's network namespace up (netdevice(7)).
pub(super) fn loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    // SAFETY: an ifreq is plain data for which zeroes are valid.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which outlives the call.
    let done = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    nix::errno::Errno::result(done).map(drop).map_err(io::Error::from)
}

/// setdomainname(2).
pub(super) fn set_domain_name(name: &str) -> io::Result<()> {
    // SAFETY: the pointer and the length are those of one string.
    let done = unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) };
    nix::errno::Errno::result(done).map(drop).map_err(io::Error::from)
}

/// Has a program that is about to be started killed when the calling process ends (PR_SET_PDEATHSIG, prctl(2)).
///
/// The signal belongs to the thread that starts it: only for the child of a launch, which has one.
pub(super) fn die_with_parent(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    let parent = rustix::process::getpid();
    // SAFETY: the closure makes two system calls and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
            // Who ended before that was not heard. A parent has no number in a PID namespace that it is not in.
            match rustix::process::getppid() {
                Some(now) if now != parent => Err(io::ErrorKind::BrokenPipe.into()),
                _ => Ok(()),
            }
        })
    };
}

/// Has a program that is about to be started enter a cgroup, by its open `cgroup.procs`, and put a filter in force.
pub(super) fn confine(command: &mut std::process::Command, cgroup: OwnedFd, filter: Option<Filter>) {
    use std::os::unix::process::CommandExt;
    // SAFETY: the closure makes two system calls and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            rustix::io::write(&cgroup, b"0")?;
            filter.as_ref().map_or(Ok(()), set_seccomp_filter)
        })
    };
}

/// Sets the effective, permitted and inheritable capabilities of the calling thread at once (capset(2)).
pub(super) fn set_capabilities(effective: u64, permitted: u64, inheritable: u64) -> io::Result<()> {
    /// _LINUX_CAPABILITY_VERSION_3 (linux/capability.h): masks of 64 bits, in two halves.
    const VERSION: u32 = 0x2008_0522;
    #[repr(C)]
    struct Header {
        version: u32,
        pid: libc::c_int,
    }
    #[repr(C)]
    struct Half {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let half = |shift: u32| {
        let part = |mask: u64| ((mask >> shift) & u64::from(u32::MAX)) as u32;
        Half {
            effective: part(effective),
            permitted: part(permitted),
            inheritable: part(inheritable),
        }
    };
    let header = Header {
        version: VERSION,
        pid: 0,
    };
    let halves = [half(0), half(32)];
    // SAFETY: the kernel reads one header, and the two halves that its version says follow.
    let done = unsafe { libc::syscall(libc::SYS_capset, &raw const header, halves.as_ptr()) };
    nix::errno::Errno::result(done).map(drop).map_err(io::Error::from)
}

/// sched_setattr(2) for the calling process. `attributes` begins with its own size.
pub(super) fn set_scheduler(attributes: &libc::sched_attr) -> io::Result<()> {
    // SAFETY: the kernel reads as many bytes as the structure says that it has, which is its size.
    let done = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const *attributes, 0) };
    nix::errno::Errno::result(done).map(drop).map_err(io::Error::from)
}

/// set_mempolicy(2) for the calling process.
pub(super) fn set_memory_policy(mode: libc::c_int, nodes: u64) -> io::Result<()> {
    /// Bits of the mask, and one more: the kernel reads one less than it is told.
    const MASK_BITS: libc::c_ulong = u64::BITS as libc::c_ulong + 1;
    let mask = [nodes];
    // SAFETY: the kernel reads as many bits of the mask as it is told, less one, and writes nothing.
    let done = unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask.as_ptr(), MASK_BITS) };
    nix::errno::Errno::result(done).map(drop).map_err(io::Error::from)
}

/// Puts a seccomp filter in force for the calling process (seccomp(2)).
pub(super) fn set_seccomp_filter(filter: &Filter) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(filter.program.len()).map_err(io::Error::other)?,
        filter: filter.program.as_ptr().cast_mut(),
    };
    // SAFETY: the program names as many instructions as it says, and the kernel only reads them.
    let done = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            filter.flags,
            &raw const program,
        )
    };
    nix::errno::Errno::result(done).map(drop).map_err(io::Error::from)
}
