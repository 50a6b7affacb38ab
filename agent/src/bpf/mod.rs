//! BPF programs of cgroups: instructions, and how they reach the kernel. What a program does is its user's.

mod sys;

pub(crate) use sys::{attach, link, load};

/// What a program is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attachment {
    /// Accesses to devices.
    Device,
    /// The address that a socket is connected to.
    Connect4,
    Connect6,
    /// The address that a datagram is sent to.
    Send4,
    /// The address that a datagram came from.
    Receive4,
    Receive6,
    /// The address that getpeername(2) tells.
    Peer4,
    Peer6,
}

impl Attachment {
    /// The type of the program and of its attachment: `enum bpf_prog_type` and `bpf_attach_type` (linux/bpf.h).
    fn numbers(self) -> (u32, u32) {
        const DEVICE: u32 = 15;
        const SOCKET_ADDRESS: u32 = 18;
        match self {
            Attachment::Device => (DEVICE, 6),
            Attachment::Connect4 => (SOCKET_ADDRESS, 10),
            Attachment::Connect6 => (SOCKET_ADDRESS, 11),
            Attachment::Send4 => (SOCKET_ADDRESS, 14),
            Attachment::Receive4 => (SOCKET_ADDRESS, 19),
            Attachment::Receive6 => (SOCKET_ADDRESS, 20),
            Attachment::Peer4 => (SOCKET_ADDRESS, 29),
            Attachment::Peer6 => (SOCKET_ADDRESS, 30),
        }
    }
}

/// One instruction of BPF, laid out as the kernel's `struct bpf_insn` on a little-endian machine.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub(crate) code: u8,
    /// The destination in the lower four bits, the source above.
    pub(crate) registers: u8,
    pub(crate) offset: i16,
    pub(crate) immediate: u32,
}

// Operation codes: class, source of the operand and operation (linux/bpf_common.h, linux/bpf.h). All work on 32 bits.
pub(crate) const LOAD: u8 = 0x61;
pub(crate) const STORE: u8 = 0x63;
pub(crate) const MOVE: u8 = 0xb4;
pub(crate) const COPY: u8 = 0xbc;
pub(crate) const AND: u8 = 0x54;
pub(crate) const SHIFT_RIGHT: u8 = 0x74;
pub(crate) const IF_NOT_EQUAL: u8 = 0x56;
pub(crate) const IF_ANY_SET: u8 = 0x46;
pub(crate) const JUMP: u8 = 0x05;
pub(crate) const EXIT: u8 = 0x95;

/// The register of the answer.
pub(crate) const ANSWER: u8 = 0;
/// The register in which the kernel puts what the program is asked about.
pub(crate) const CONTEXT: u8 = 1;

/// With a number.
pub(crate) const fn instruction(code: u8, register: u8, offset: i16, immediate: u32) -> Instruction {
    Instruction {
        code,
        registers: register,
        offset,
        immediate,
    }
}

/// With two registers.
pub(crate) const fn from(code: u8, to: u8, source: u8, offset: i16) -> Instruction {
    instruction(code, to | (source << 4), offset, 0)
}
