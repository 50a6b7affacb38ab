//! The system calls that the safe crates do not offer in the needed form. It knows no policy.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::process::Pid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Watches a descriptor with the runtime's epoll; it must be non-blocking to be of use.
///
/// # Errors
/// The descriptor is of a kind that epoll does not take.
pub(crate) fn watched(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open, its number does not change, and it is closed only when the AsyncFd that now owns it
    // is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

/// What waitid(2) says of a child that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ended {
    /// Its process id; the kernel may give it to another process from now on.
    pub(crate) pid: Pid,
    /// Its exit code, or 128 + the signal that ended it.
    pub(crate) status: u32,
}

/// What there was to do for a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Child {
    /// It has been reaped.
    Ended(Ended),
    /// It was stopped, and goes on.
    Released,
}

/// Reaps one child that has ended, or lets one go on that was traced and stopped, without waiting; None: there is nothing to do.
///
/// A process that calls `ptrace(PTRACE_TRACEME)` makes its parent its tracer, whether that wants it or not, and stops at its next signal (ptrace(2)). Whoever
/// wrote it means a parent that knows; we let it go on.
///
/// The wrappers of the crates in use either hide the pid or refuse real-time signals.
///
/// # Errors
/// ECHILD where there is no child.
pub(crate) fn reap_one() -> io::Result<Option<Child>> {
    // SAFETY: siginfo_t is plain data for which all zeroes is a valid value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` is a valid, writable siginfo_t for the duration of the call.
    if unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, libc::WEXITED | libc::WNOHANG) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: waitid filled in a SIGCHLD record, or left the zeroes, for which both fields read as 0.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    let Some(pid) = Pid::from_raw(pid) else {
        return Ok(None);
    };
    let status = match info.si_code {
        libc::CLD_EXITED => status,
        libc::CLD_KILLED | libc::CLD_DUMPED => 128 + status,
        // Stops of other children are not asked for: this one is traced.
        _ => {
            release(pid, status);
            return Ok(Some(Child::Released));
        }
    };
    let status = status.unsigned_abs();
    Ok(Some(Child::Ended(Ended { pid, status })))
}

/// Ends the tracing of a stopped process, which then gets the signal that it was stopped by.
fn release(pid: Pid, signal: libc::c_int) {
    let pid = pid.as_raw_nonzero().get();
    // SAFETY: siginfo_t is plain data for which all zeroes is a valid value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one siginfo_t, and there is one.
    let asked = unsafe { libc::ptrace(libc::PTRACE_GETSIGINFO, pid, 0, &raw mut info) };
    // The kernel's SIGTRAP after execve(2), which only a tracer is meant to see. One of a breakpoint is SI_KERNEL or TRAP_BRKPT.
    let after_exec = signal == libc::SIGTRAP && asked == 0 && info.si_code == libc::SI_USER;
    let signal = if after_exec { 0 } else { signal };
    // SAFETY: no memory of ours is involved. It fails if the process is gone or is not ours to trace: then nothing is held up.
    unsafe { libc::ptrace(libc::PTRACE_DETACH, pid, 0, libc::c_long::from(signal)) };
}

// The C library names none of these: linux/random.h, `RNDADDENTROPY` (`_IOW('R', 0x03, int [2])`) and `RNDRESEEDCRNG` (`_IO('R', 0x07)`), and
// linux/vm_sockets.h, `IOCTL_VM_SOCKETS_GET_LOCAL_CID` (`_IO(7, 0xb9)`).
const ADD_ENTROPY: libc::Ioctl = 0x4008_5203;
const RESEED: libc::Ioctl = 0x5207;
const GET_LOCAL_CID: libc::Ioctl = 0x07b9;

/// The guest's own CID; `VMADDR_CID_ANY` or `VMADDR_CID_LOCAL` if it has no device (vsock(7)).
///
/// # Errors
/// There is no `/dev/vsock`.
pub(crate) fn local_cid() -> io::Result<u32> {
    let device = std::fs::File::open("/dev/vsock")?;
    let mut cid: u32 = 0;
    // SAFETY: the kernel writes one u32, and there is one.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), GET_LOCAL_CID, &raw mut cid) };
    if result == 0 {
        Ok(cid)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// `RNDADDENTROPY` of random(4): bytes for the kernel's random number generator, credited in full.
///
/// # Errors
/// More than [`protocol::SEED`] bytes, or the kernel refuses.
pub(crate) fn add_entropy(random: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    /// `struct rand_pool_info` (linux/random.h), with room.
    #[repr(C)]
    struct Entropy {
        bits: libc::c_int,
        bytes: libc::c_int,
        buffer: [u8; protocol::SEED],
    }
    let count = libc::c_int::try_from(bytes.len()).map_err(io::Error::other)?;
    let mut entropy = Entropy {
        bits: count.saturating_mul(8),
        bytes: count,
        buffer: [0; protocol::SEED],
    };
    let room = entropy.buffer.get_mut(..bytes.len());
    room.ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(bytes);
    // SAFETY: the kernel reads the structure's head and as many bytes behind it as the head says, which are there.
    let result = unsafe { libc::ioctl(random.as_raw_fd(), ADD_ENTROPY, &raw const entropy) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// `RNDRESEEDCRNG` of random(4): the generator uses at once what has been added.
///
/// # Errors
/// The generator has not been seeded at all.
pub(crate) fn reseed(random: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: it takes no argument.
    let result = unsafe { libc::ioctl(random.as_raw_fd(), RESEED) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Sends any signal, real-time ones included, to the process behind a pidfd (pidfd_send_signal(2)).
///
/// # Errors
/// ESRCH where the process has been reaped; EINVAL where there is no such signal.
pub(crate) fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: the descriptor is valid while it is borrowed; a null siginfo asks the kernel to fill it in.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Sets the interface's IFF_UP (netdevice(7)) through any socket of the network namespace.
///
/// # Errors
/// ENODEV where there is no such interface.
pub(crate) fn interface_up(socket: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    // SAFETY: ifreq is plain data for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    // SAFETY: `request` is a valid ifreq with a terminated name; the kernel fills in the flags.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above made `ifru_flags` the live member of the union.
    unsafe {
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
    }
    // SAFETY: as above.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Puts the calling thread into a network namespace of its own (unshare(2)).
///
/// # Errors
/// The kernel has no memory left.
pub(crate) fn unshare_network_namespace() -> io::Result<()> {
    // SAFETY: the call takes one integer; the flag touches neither memory nor descriptors.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Puts the clock forward by so many microseconds (ADJ_SETOFFSET, adjtimex(2)).
pub(crate) fn step_clock(micros: i64) -> io::Result<()> {
    // SAFETY: a timex is plain data for which zeroes are valid.
    let mut change: libc::timex = unsafe { std::mem::zeroed() };
    change.modes = libc::ADJ_SETOFFSET | libc::ADJ_MICRO;
    change.time.tv_sec = micros.div_euclid(1_000_000);
    change.time.tv_usec = micros.rem_euclid(1_000_000);
    adjust_clock(&mut change)
}

/// Has the clock run at another pace: microseconds a tick, and parts per million beside it (adjtimex(2)).
pub(crate) fn pace_clock(tick: i64, ppm: i64) -> io::Result<()> {
    /// The kernel counts in 2^-16 parts per million.
    const SCALE: i64 = 1 << 16;
    // SAFETY: a timex is plain data for which zeroes are valid.
    let mut change: libc::timex = unsafe { std::mem::zeroed() };
    change.modes = libc::ADJ_TICK | libc::ADJ_FREQUENCY;
    change.tick = tick;
    change.freq = ppm * SCALE;
    adjust_clock(&mut change)
}

fn adjust_clock(change: &mut libc::timex) -> io::Result<()> {
    // SAFETY: the kernel reads and writes one timex, which outlives the call.
    let done = unsafe { libc::adjtimex(change) };
    nix::errno::Errno::result(done).map(drop).map_err(io::Error::from)
}
