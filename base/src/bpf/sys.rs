//! bpf(2), as far as programs of cgroups and network namespaces need it. It decides nothing.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::attachment::Attachment;
use super::instruction::Instruction;

// linux/bpf.h
const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_F_ALLOW_MULTI: u32 = 2;
const BPF_MAP_TYPE_SOCKMAP: u32 = 15;

/// The beginning of `union bpf_attr` for BPF_MAP_CREATE: the kernel takes what is missing for zeroes.
#[repr(C)]
struct Map {
    kind: u32,
    key_size: u32,
    value_size: u32,
    entries: u32,
    flags: u32,
}

/// The same for BPF_MAP_UPDATE_ELEM.
#[repr(C)]
struct Update {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The same for BPF_PROG_LOAD.
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

/// A map of sockets (BPF_MAP_TYPE_SOCKMAP) with this one in it, at 0.
///
/// # Errors
/// The kernel has no such maps (CONFIG_BPF_SYSCALL), or we may not make one (CAP_BPF, CAP_NET_ADMIN).
pub fn socket_map(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let attributes = Map {
        kind: BPF_MAP_TYPE_SOCKMAP,
        key_size: 4,
        value_size: 4,
        entries: 1,
        flags: 0,
    };
    let map = made(bpf(BPF_MAP_CREATE, &attributes)?)?;
    let (key, value) = (0_u32, socket.as_raw_fd());
    let attributes = Update {
        map: map.as_raw_fd().cast_unsigned(),
        padding: 0,
        key: std::ptr::from_ref(&key) as u64,
        value: std::ptr::from_ref(&value) as u64,
        flags: 0,
    };
    bpf(BPF_MAP_UPDATE_ELEM, &attributes)?;
    Ok(map)
}

/// Loads a program. Its name of at most 15 bytes is for those who list programs.
///
/// # Errors
/// The kernel has no such programs (CONFIG_CGROUP_BPF, CONFIG_BPF_SYSCALL), or does not take this one.
pub fn load(at: Attachment, name: &str, program: &[Instruction]) -> io::Result<OwnedFd> {
    let (program_type, attach_type) = at.numbers();
    let mut padded = [0; 16];
    let length = name.len().min(padded.len() - 1);
    padded[..length].copy_from_slice(&name.as_bytes()[..length]);
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
        name: padded,
        interface: 0,
        attach_type,
    };
    made(bpf(BPF_PROG_LOAD, &attributes)?)
}

/// Attaches a program to a cgroup, for as long as that is there, beside those that are there; all of them must allow an access.
///
/// # Errors
/// The descriptor is no directory of cgroup v2.
pub fn attach(at: Attachment, cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = Attach {
        target: cgroup.as_raw_fd().cast_unsigned(),
        program: program.as_raw_fd().cast_unsigned(),
        attach_type: at.numbers().1,
        flags: BPF_F_ALLOW_MULTI,
    };
    bpf(BPF_PROG_ATTACH, &attributes).map(drop)
}

/// Attaches a program to a cgroup or a network namespace until the answer is closed.
///
/// # Errors
/// The descriptor is neither, or the kernel has no such links.
pub fn link(at: Attachment, to: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let attributes = Link {
        program: program.as_raw_fd().cast_unsigned(),
        target: to.as_raw_fd().cast_unsigned(),
        attach_type: at.numbers().1,
        flags: 0,
    };
    made(bpf(BPF_LINK_CREATE, &attributes)?)
}
