//! The system calls that need `unsafe`: what a child does between fork and exec, the vhost-vsock ioctl, and CPUID.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;

use rustix::process::{Gid, Pid, Signal, Uid};
use rustix::thread::LinkNameSpaceType;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::rootless::User;

/// What a child does about its network namespace.
#[derive(Debug)]
pub(crate) enum Network {
    /// Nothing.
    Inherited,
    /// Enters this one.
    Entered(Arc<OwnedFd>),
}

/// What a child does to itself before it becomes its program.
#[derive(Debug)]
pub(crate) struct BeforeExec {
    /// Its network namespace.
    pub(crate) netns: Network,
    /// Whose rights it has; its parent's, if none.
    pub(crate) user: Option<User>,
    /// `cgroup.procs` files, open for writing, through which the child moves itself.
    pub(crate) cgroups: Vec<File>,
    /// The only descriptors, but for the standard ones, that the program inherits; their numbers stay.
    pub(crate) pass: Vec<OwnedFd>,
}

impl BeforeExec {
    /// Arranges that `command` does all this, and that its process is killed when the thread that spawns it ends.
    pub(crate) fn attach(self, command: &mut Command) {
        let parent = rustix::process::getpid();
        // SAFETY: the closure only makes system calls on descriptors that were opened before the fork. It allocates
        // nothing and takes no lock, as signal-safety(7) demands of the child of a process with threads.
        unsafe {
            command.pre_exec(move || {
                self.apply(parent).map_err(|(step, errno)| {
                    // The errno alone reaches the parent, so the step goes where its complaints are read.
                    let _ = rustix::io::write(io::stderr(), step);
                    io::Error::from(errno)
                })
            });
        }
    }

    fn apply(&self, parent: Pid) -> Result<(), Failed> {
        die_with(parent)?;
        for cgroup in &self.cgroups {
            // 0 is the writer itself, in both versions of cgroups.
            rustix::io::write(cgroup, b"0").map_err(|errno| (&b"cannot move into the cgroup"[..], errno))?;
        }
        match &self.netns {
            Network::Inherited => {}
            Network::Entered(netns) => {
                rustix::thread::move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
                    .map_err(|errno| (&b"cannot enter the network namespace"[..], errno))?;
            }
        }
        if let Some(user) = self.user {
            become_user(user).map_err(|errno| (&b"cannot become an unprivileged user"[..], errno))?;
            // Another user's process is not to be ended by its parent any more (prctl(2), PR_SET_PDEATHSIG).
            die_with(parent)?;
        }
        close_on_exec_from(3).map_err(|errno| (&b"cannot mark descriptors close-on-exec"[..], errno))?;
        for fd in &self.pass {
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())
                .map_err(|errno| (&b"cannot pass a descriptor"[..], errno))?;
        }
        Ok(())
    }
}

/// The step that failed, and why.
type Failed = (&'static [u8], rustix::io::Errno);

fn die_with(parent: Pid) -> Result<(), Failed> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|errno| (&b"cannot ask for a parent-death signal"[..], errno))?;
    // The parent may have died before the signal was asked for: nobody would send it then.
    if rustix::process::getppid() == Some(parent) {
        Ok(())
    } else {
        Err((b"the parent has died", rustix::io::Errno::SRCH))
    }
}

/// Gives up all groups and every capability, for good (capabilities(7): a change from root to another user clears them).
fn become_user(user: User) -> Result<(), rustix::io::Errno> {
    let (uid, gid) = (Uid::from_raw(user.number()), Gid::from_raw(user.number()));
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    rustix::thread::set_no_new_privs(true)
}

/// Marks every descriptor from `first` upwards (close_range(2)).
fn close_on_exec_from(first: u32) -> Result<(), rustix::io::Errno> {
    // SAFETY: the call takes three integers, closes nothing now and touches no memory.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(errno()) }
}

fn errno() -> rustix::io::Errno {
    rustix::io::Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(rustix::io::Errno::INVAL)
}

mod ioctl {
    // _IOW(VHOST_VIRTIO, 0x60, __u64), include/uapi/linux/vhost.h
    nix::ioctl_write_ptr!(vhost_vsock_set_guest_cid, 0xAF, 0x60, u64);
}

/// Gives the device behind `/dev/vhost-vsock` its guest's CID; EADDRINUSE if another guest has it.
pub(crate) fn set_guest_cid(device: &File, cid: u32) -> nix::Result<()> {
    let cid = u64::from(cid);
    // SAFETY: the ioctl reads one u64 through the pointer, which is valid for the call.
    unsafe { ioctl::vhost_vsock_set_guest_cid(device.as_raw_fd(), &raw const cid) }.map(drop)
}

/// The frequency of the time stamp counter in kHz, if CPUID tells it.
///
/// Leaf 0x15 is Intel's (SDM, CPUID), leaf 0x40000010 that of hypervisors (VMware's interface, offered by KVM's users).
#[cfg(target_arch = "x86_64")]
pub(crate) fn tsc_khz() -> Option<u32> {
    use std::arch::x86_64::{__cpuid, __cpuid_count};

    let basic = __cpuid(0).eax;
    if basic >= 0x15 {
        let leaf = __cpuid_count(0x15, 0);
        if leaf.eax != 0 && leaf.ebx != 0 && leaf.ecx != 0 {
            let hertz = u64::from(leaf.ecx) * u64::from(leaf.ebx) / u64::from(leaf.eax);
            return u32::try_from(hertz / 1000).ok();
        }
    }
    let in_a_guest = __cpuid(1).ecx & (1 << 31) != 0;
    if in_a_guest && __cpuid(0x4000_0000).eax >= 0x4000_0010 {
        let khz = __cpuid(0x4000_0010).eax;
        return (khz != 0).then_some(khz);
    }
    None
}

/// Other architectures have no such counter.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn tsc_khz() -> Option<u32> {
    None
}

/// Lets the runtime tell when a descriptor becomes readable.
pub(crate) fn watch_readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the value owns its descriptor, which is neither replaced nor closed while it is registered.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(Into::into)
}

/// A descriptor's number, for a program's arguments.
pub(crate) fn number(fd: BorrowedFd<'_>) -> RawFd {
    fd.as_raw_fd()
}
