//! bpf(2), as far as one program needs it: in one network namespace, it gives every TCP connection to the loopback, whatever
//! its port, to one listening socket. It decides nothing.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

// linux/bpf.h
const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_MAP_TYPE_SOCKMAP: u32 = 15;
const BPF_PROG_TYPE_SK_LOOKUP: u32 = 30;
const BPF_SK_LOOKUP: u32 = 36;
const MAP_LOOKUP_ELEM: i32 = 1;
const SK_RELEASE: i32 = 86;
const SK_ASSIGN: i32 = 124;

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
    kind: u32,
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

/// The same for BPF_LINK_CREATE.
#[repr(C)]
struct Link {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

/// One instruction (the kernel's Documentation/bpf/standardization/instruction-set.rst).
#[repr(C)]
struct Instruction {
    code: u8,
    /// The source register in the upper half, the destination in the lower.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: source << 4 | destination,
        offset,
        immediate,
    }
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

fn descriptor(made: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(made).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor, close-on-exec, for the caller.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Where `struct bpf_sk_lookup` (linux/bpf.h) has the IPv4 address that is dialled, in network byte order; 0 of other families.
const LOCAL_IP4: i16 = 40;
/// 127.0.0.0/8, as four bytes of memory are read into a register.
const LOOPBACK: i32 = i32::from_ne_bytes([127, 0, 0, 0]);
const LOOPBACK_MASK: i32 = i32::from_ne_bytes([0xff, 0, 0, 0]);

/// `if address is of 127.0.0.0/8 { socket = map[0]; if socket { sk_assign(context, socket); release(socket) } }; pass`
fn program(map: i32) -> [Instruction; 20] {
    const MOVE: u8 = 0xbf;
    const SET: u8 = 0xb7;
    const CALL: u8 = 0x85;
    [
        instruction(MOVE, 6, 1, 0, 0),
        // Of 32 bits: a load, an `and`, and a jump to the end.
        instruction(0x61, 1, 6, LOCAL_IP4, 0),
        instruction(0x54, 1, 0, 0, LOOPBACK_MASK),
        instruction(0x56, 1, 0, 14, LOOPBACK),
        // A key of 0 on the stack.
        instruction(0x62, 10, 0, -4, 0),
        // The map's address: two instructions, of which the kernel replaces the descriptor.
        instruction(0x18, 1, 1, 0, map),
        instruction(0, 0, 0, 0, 0),
        instruction(MOVE, 2, 10, 0, 0),
        instruction(0x07, 2, 0, 0, -4),
        instruction(CALL, 0, 0, 0, MAP_LOOKUP_ELEM),
        instruction(0x15, 0, 0, 7, 0),
        instruction(MOVE, 7, 0, 0, 0),
        instruction(MOVE, 1, 6, 0, 0),
        instruction(MOVE, 2, 7, 0, 0),
        instruction(SET, 3, 0, 0, 0),
        // What it cannot be assigned to (UDP) is looked up as ever.
        instruction(CALL, 0, 0, 0, SK_ASSIGN),
        instruction(MOVE, 1, 7, 0, 0),
        instruction(CALL, 0, 0, 0, SK_RELEASE),
        instruction(SET, 0, 0, 0, 1),
        instruction(0x95, 0, 0, 0, 0),
    ]
}

/// Directs every TCP connection to 127.0.0.0/8 in the network namespace to the listening socket, as long as the answer is open.
/// What is dialled at another address is nobody's port-forward: it is looked up as ever.
///
/// # Errors
/// The kernel has no such programs (Linux 5.9, CONFIG_BPF_SYSCALL), or we may not load them (CAP_BPF, CAP_NET_ADMIN).
pub(super) fn direct_all(listener: BorrowedFd<'_>, netns: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let map = descriptor(bpf(
        BPF_MAP_CREATE,
        &Map {
            kind: BPF_MAP_TYPE_SOCKMAP,
            key_size: 4,
            value_size: 4,
            entries: 1,
            flags: 0,
        },
    )?)?;
    let (key, value) = (0_u32, listener.as_raw_fd());
    bpf(
        BPF_MAP_UPDATE_ELEM,
        &Update {
            map: map.as_raw_fd().cast_unsigned(),
            padding: 0,
            key: std::ptr::from_ref(&key) as u64,
            value: std::ptr::from_ref(&value) as u64,
            flags: 0,
        },
    )?;
    let instructions = program(map.as_raw_fd());
    let program = descriptor(bpf(
        BPF_PROG_LOAD,
        &Load {
            kind: BPF_PROG_TYPE_SK_LOOKUP,
            count: u32::try_from(instructions.len()).map_err(io::Error::other)?,
            instructions: instructions.as_ptr() as u64,
            license: c"Apache-2.0".as_ptr() as u64,
            log_level: 0,
            log_size: 0,
            log: 0,
            kernel_version: 0,
            flags: 0,
            name: *b"tatami_forward\0\0",
            interface: 0,
            attach_type: BPF_SK_LOOKUP,
        },
    )?)?;
    // The link keeps the program, and the program keeps the map.
    descriptor(bpf(
        BPF_LINK_CREATE,
        &Link {
            program: program.as_raw_fd().cast_unsigned(),
            target: netns.as_raw_fd().cast_unsigned(),
            attach_type: BPF_SK_LOOKUP,
            flags: 0,
        },
    )?)
}
