//! The BPF program that, in one network namespace, gives every TCP connection to the loopback, whatever its port, to one
//! listening socket.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use base::bpf::{self, AND, ANSWER, Attachment, CONTEXT, EXIT, IF_NOT_EQUAL, Instruction, LOAD, from, instruction};

const MAP_LOOKUP_ELEM: u32 = 1;
const SK_RELEASE: u32 = 86;
const SK_ASSIGN: u32 = 124;

/// Where `struct bpf_sk_lookup` (linux/bpf.h) has the IPv4 address that is dialled, in network byte order; 0 of other families.
const LOCAL_IP4: i16 = 40;
/// 127.0.0.0/8, as four bytes of memory are read into a register.
const LOOPBACK: u32 = u32::from_ne_bytes([127, 0, 0, 0]);
const LOOPBACK_MASK: u32 = u32::from_ne_bytes([0xff, 0, 0, 0]);

/// `if address is of 127.0.0.0/8 { socket = map[0]; if socket { sk_assign(context, socket); release(socket) } }; pass`
fn program(map: u32) -> [Instruction; 20] {
    // Of 64 bits, where the others are of 32.
    const COPY: u8 = 0xbf;
    const SET: u8 = 0xb7;
    const ADD: u8 = 0x07;
    const STORE_NUMBER: u8 = 0x62;
    const LOAD_ADDRESS: u8 = 0x18;
    const IF_ZERO: u8 = 0x15;
    const CALL: u8 = 0x85;
    // The source of an address that is a map's, by its descriptor.
    const MAP: u8 = 1;
    const STACK: u8 = 10;
    [
        from(COPY, 6, CONTEXT, 0),
        from(LOAD, 1, 6, LOCAL_IP4),
        instruction(AND, 1, 0, LOOPBACK_MASK),
        instruction(IF_NOT_EQUAL, 1, 14, LOOPBACK),
        // A key of 0 on the stack.
        instruction(STORE_NUMBER, STACK, -4, 0),
        // The map's address: two instructions, of which the kernel replaces the descriptor.
        Instruction {
            immediate: map,
            ..from(LOAD_ADDRESS, 1, MAP, 0)
        },
        instruction(0, 0, 0, 0),
        from(COPY, 2, STACK, 0),
        instruction(ADD, 2, 0, (-4_i32).cast_unsigned()),
        instruction(CALL, 0, 0, MAP_LOOKUP_ELEM),
        instruction(IF_ZERO, ANSWER, 7, 0),
        from(COPY, 7, ANSWER, 0),
        from(COPY, 1, 6, 0),
        from(COPY, 2, 7, 0),
        instruction(SET, 3, 0, 0),
        // What it cannot be assigned to (UDP) is looked up as ever.
        instruction(CALL, 0, 0, SK_ASSIGN),
        from(COPY, 1, 7, 0),
        instruction(CALL, 0, 0, SK_RELEASE),
        instruction(SET, ANSWER, 0, 1),
        instruction(EXIT, 0, 0, 0),
    ]
}

/// Directs every TCP connection to 127.0.0.0/8 in the network namespace to the listening socket, as long as the answer is open.
/// What is dialled at another address is nobody's port-forward: it is looked up as ever.
///
/// # Errors
/// The kernel has no such programs (Linux 5.9, CONFIG_BPF_SYSCALL), or we may not load them (CAP_BPF, CAP_NET_ADMIN).
pub(super) fn direct_all(listener: BorrowedFd<'_>, netns: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let map = bpf::socket_map(listener)?;
    let program = program(map.as_raw_fd().cast_unsigned());
    let program = bpf::load(Attachment::SocketLookup, "tatami_forward", &program)?;
    // The link keeps the program, and the program keeps the map.
    bpf::link(Attachment::SocketLookup, netns, program.as_fd())
}
