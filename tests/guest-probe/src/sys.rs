//! The one place that needs `unsafe`: system calls that no crate here wraps.
#![allow(unsafe_code)]

use std::{
    ffi::c_void,
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    process, ptr,
};

use nix::{
    libc,
    unistd::{ForkResult, Pid, fork},
};

/// The size of a page on every architecture that the guest kernel is built for.
pub(crate) const PAGE: usize = 4096;
/// `struct perf_event_attr` in its first version (PERF_ATTR_SIZE_VER0), as eight words.
const ATTR_SIZE: u64 = 64;
/// The bits `disabled` and `exclude_kernel` in its fifth word.
const DISABLED: u64 = 1;
const EXCLUDE_KERNEL: u64 = 1 << 5;
/// `_IO('$', 5)`, linux/perf_event.h.
const PERF_EVENT_IOC_SET_OUTPUT: libc::c_ulong = 0x2405;
/// Where `aux_offset` and `aux_size` are in `struct perf_event_mmap_page`, in words.
const AUX_OFFSET: usize = 1072 / 8;
const AUX_SIZE: usize = 1080 / 8;

/// The CPU's time stamp counter; 0 where there is none.
pub(crate) fn cycles() -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: every CPU of this architecture has the instruction, and it touches no memory.
        unsafe { std::arch::x86_64::_rdtsc() }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        0
    }
}

/// Opens a perf event of this process, on any CPU (perf_event_open(2)).
pub(crate) fn perf_event(kind: u32, config: u64) -> io::Result<OwnedFd> {
    open_perf_event(0, kind, config, EXCLUDE_KERNEL)
}

/// Opens a perf event of another process that does not count until it is told to.
pub(crate) fn idle_perf_event(pid: u32, kind: u32, config: u64) -> io::Result<OwnedFd> {
    open_perf_event(pid, kind, config, DISABLED | EXCLUDE_KERNEL)
}

fn open_perf_event(pid: u32, kind: u32, config: u64, flags: u64) -> io::Result<OwnedFd> {
    let attr: [u64; 8] = [u64::from(kind) | ATTR_SIZE << 32, config, 0, 0, 0, flags, 0, 0];
    // SAFETY: the attribute is as long as it says, and the kernel only reads it.
    let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, attr.as_ptr(), pid, -1, -1, 0) };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `struct file_handle` with a handle of three words.
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    words: [u32; 3],
}

/// open_by_handle_at(2), for reading and without waiting.
pub(crate) fn open_by_handle(mount: impl AsFd, kind: i32, words: [u32; 3]) -> io::Result<OwnedFd> {
    let handle = Handle { bytes: 12, kind, words };
    let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_CLOEXEC;
    // SAFETY: the handle is as long as it says, and the kernel only reads it.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            mount.as_fd().as_raw_fd(),
            &raw const handle,
            flags,
        )
    };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Has an event write into the buffer of another.
pub(crate) fn set_output(event: impl AsFd, target: impl AsFd) -> io::Result<()> {
    // SAFETY: the call takes two descriptors and no pointer.
    let done = unsafe {
        libc::ioctl(
            event.as_fd().as_raw_fd(),
            PERF_EVENT_IOC_SET_OUTPUT as _,
            target.as_fd().as_raw_fd(),
        )
    };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// A shared mapping of an event's buffer, unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    at: *mut c_void,
    length: usize,
}

impl Mapping {
    /// Maps `pages` of an event's file, `offset` pages from its beginning.
    pub(crate) fn new(event: impl AsFd, pages: usize, offset: usize) -> io::Result<Self> {
        let length = pages * PAGE;
        let offset = i64::try_from(offset * PAGE).map_err(io::Error::other)?;
        // SAFETY: a new mapping at an address of the kernel's choice; nothing that exists is touched.
        let at = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                event.as_fd().as_raw_fd(),
                offset,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { at, length })
    }

    /// Says in a data area's first page where the AUX area is to be and how long, in pages.
    pub(crate) fn announce_aux(&mut self, offset: usize, pages: usize) {
        let words = self.at.cast::<u64>();
        // SAFETY: the first page of the mapping is mapped writable, and both words are in it.
        unsafe {
            words.add(AUX_OFFSET).write_volatile((offset * PAGE) as u64);
            words.add(AUX_SIZE).write_volatile((pages * PAGE) as u64);
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's alone, and no reference into it is ever given out. It can only fail for
        // arguments that are no mapping.
        let _ = unsafe { libc::munmap(self.at, self.length) };
    }
}

/// Runs `work` in a forked process, which ends with its result as its exit code.
pub(crate) fn forked(work: impl FnOnce() -> i32) -> io::Result<Pid> {
    // SAFETY: the probe has one thread whenever it forks, so the child may do all that a process may.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => process::exit(work()),
    }
}

/// Whether iptables would find a target: IPT_SO_GET_REVISION_TARGET (linux/netfilter_ipv4/ip_tables.h) of revision 0.
pub(crate) fn xtables_target(raw: std::os::fd::BorrowedFd<'_>, name: &str) -> io::Result<()> {
    const GET_REVISION_TARGET: i32 = 67;
    // struct xt_get_revision: a name of 29 bytes and the revision.
    let mut question = [0u8; 30];
    for (to, from) in question.iter_mut().take(28).zip(name.bytes()) {
        *to = from;
    }
    let mut length: libc::socklen_t = 30;
    // SAFETY: the buffer has the length that is given, and outlives the call.
    let done = unsafe {
        libc::getsockopt(
            raw.as_raw_fd(),
            libc::IPPROTO_IP,
            GET_REVISION_TARGET,
            question.as_mut_ptr().cast::<c_void>(),
            &raw mut length,
        )
    };
    nix::errno::Errno::result(done).map(drop).map_err(io::Error::from)
}

/// Whether the device mapper has a target: DM_GET_TARGET_VERSION (linux/dm-ioctl.h).
pub(crate) fn device_mapper_target(control: &std::path::Path, name: &str) -> io::Result<()> {
    /// `_IOWR(0xfd, 17, struct dm_ioctl)`, which has 312 bytes.
    const GET_TARGET_VERSION: libc::c_ulong = 3 << 30 | 312 << 16 | 0xfd << 8 | 17;
    /// Where the name is in it.
    const NAME: usize = 48;
    let control = std::fs::File::options().read(true).write(true).open(control)?;
    let mut question = [0u8; 4096];
    question[..4].copy_from_slice(&4u32.to_ne_bytes());
    question[12..16].copy_from_slice(&4096u32.to_ne_bytes());
    question[16..20].copy_from_slice(&312u32.to_ne_bytes());
    for (to, from) in question[NAME..].iter_mut().take(127).zip(name.bytes()) {
        *to = from;
    }
    // SAFETY: the buffer has the size that it names, and outlives the call.
    let done = unsafe { libc::ioctl(control.as_raw_fd(), GET_TARGET_VERSION, question.as_mut_ptr()) };
    nix::errno::Errno::result(done).map(drop).map_err(io::Error::from)
}

/// bpf(2) with attributes that the kernel takes to be zero beyond their end. The answer is a descriptor, or 0.
fn bpf(command: libc::c_int, attributes: &mut [u8]) -> io::Result<i32> {
    // SAFETY: the attributes have the size that is given, and what they point to outlives the call.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), attributes.len()) };
    let done = nix::errno::Errno::result(done)?;
    i32::try_from(done).map_err(io::Error::other)
}

fn bpf_descriptor(command: libc::c_int, attributes: &mut [u8]) -> io::Result<OwnedFd> {
    let descriptor = bpf(command, attributes)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn put<const LENGTH: usize>(attributes: &mut [u8], at: usize, value: [u8; LENGTH]) {
    attributes[at..at + LENGTH].copy_from_slice(&value);
}

/// A map with one value of 8 bytes (linux/bpf.h: BPF_MAP_CREATE, BPF_MAP_TYPE_ARRAY).
pub(crate) fn bpf_array() -> io::Result<OwnedFd> {
    let mut attributes = [0; 16];
    for (at, value) in [(0, 2u32), (4, 4), (8, 8), (12, 1)] {
        put(&mut attributes, at, value.to_ne_bytes());
    }
    bpf_descriptor(0, &mut attributes)
}

/// The map's value (BPF_MAP_LOOKUP_ELEM).
pub(crate) fn bpf_array_value(map: &OwnedFd) -> io::Result<u64> {
    let (key, mut value) = (0u32, 0u64);
    let mut attributes = [0; 24];
    put(&mut attributes, 0, map.as_raw_fd().to_ne_bytes());
    put(&mut attributes, 8, (&raw const key as u64).to_ne_bytes());
    put(&mut attributes, 16, (&raw mut value as u64).to_ne_bytes());
    bpf(1, &mut attributes)?;
    Ok(value)
}

/// Has a program run at the entry of a function of the kernel, which is named by the number of its type, until the answer is closed
/// (BPF_PROG_LOAD of BPF_PROG_TYPE_TRACING with BPF_TRACE_FENTRY, BPF_RAW_TRACEPOINT_OPEN).
pub(crate) fn bpf_at_entry(program: &[u64], function: u32) -> io::Result<OwnedFd> {
    let mut attributes = [0; 112];
    put(&mut attributes, 0, 26u32.to_ne_bytes());
    let count = u32::try_from(program.len()).map_err(io::Error::other)?;
    put(&mut attributes, 4, count.to_ne_bytes());
    put(&mut attributes, 8, (program.as_ptr() as u64).to_ne_bytes());
    put(&mut attributes, 16, (c"GPL".as_ptr() as u64).to_ne_bytes());
    put(&mut attributes, 68, 24u32.to_ne_bytes());
    put(&mut attributes, 108, function.to_ne_bytes());
    let program = bpf_descriptor(5, &mut attributes)?;
    let mut attributes = [0; 16];
    put(&mut attributes, 8, program.as_raw_fd().to_ne_bytes());
    bpf_descriptor(17, &mut attributes)
}
