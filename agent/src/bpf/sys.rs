//! bpf(2), as far as programs of cgroups need it. It decides nothing.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::{Attachment, Instruction};

// linux/bpf.h
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// The beginning of `union bpf_attr` for BPF_PROG_LOAD: the kernel takes what is missing for zeroes.
#[repr(C)]
struct Load {
    program_type: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

/// The same for BPF_PROG_ATTACH.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
}

/// The same for BPF_LINK_CREATE.
#[repr(C)]
struct Link {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_long> {
    // SAFETY: the attributes are a whole structure of the size that is passed, the kernel only reads it, and every
    // address in it is of memory that the callers below keep alive during the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn made(descriptor: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(descriptor).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor, close-on-exec, for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Loads a program.
///
/// # Errors
/// The kernel has no such programs (CONFIG_CGROUP_BPF), or does not take this one.
pub(crate) fn load(at: Attachment, program: &[Instruction]) -> io::Result<OwnedFd> {
    let (program_type, attach_type) = at.numbers();
    let attributes = Load {
        program_type,
        count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: [0; 16],
        interface: 0,
        attach_type,
    };
    made(bpf(BPF_PROG_LOAD, &attributes)?)
}

/// Attaches a program to a cgroup, for as long as that is there, beside those that are there; all of them must allow an access.
///
/// # Errors
/// The descriptor is no directory of cgroup v2.
pub(crate) fn attach(at: Attachment, cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = Attach {
        target: cgroup.as_raw_fd().cast_unsigned(),
        program: program.as_raw_fd().cast_unsigned(),
        attach_type: at.numbers().1,
        flags: BPF_F_ALLOW_MULTI,
    };
    bpf(BPF_PROG_ATTACH, &attributes).map(drop)
}

/// The same, until the answer is closed.
///
/// # Errors
/// As for [`attach`].
pub(crate) fn link(at: Attachment, cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let attributes = Link {
        program: program.as_raw_fd().cast_unsigned(),
        target: cgroup.as_raw_fd().cast_unsigned(),
        attach_type: at.numbers().1,
        flags: 0,
    };
    made(bpf(BPF_LINK_CREATE, &attributes)?)
}
