//! Instructions (the kernel's Documentation/bpf/standardization/instruction-set.rst).

/// One instruction of BPF, laid out as the kernel's `struct bpf_insn` on a little-endian machine.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// Class, source of the operand and operation.
    pub code: u8,
    /// The destination in the lower four bits, the source above.
    pub registers: u8,
    /// Of a jump in instructions, of a load or store in bytes.
    pub offset: i16,
    /// The constant operand, if the code takes one.
    pub immediate: u32,
}

// Operation codes: class, source of the operand and operation (linux/bpf_common.h, linux/bpf.h). All work on 32 bits.
/// A register from 4 bytes of memory.
pub const LOAD: u8 = 0x61;
/// 4 bytes of memory from a register.
pub const STORE: u8 = 0x63;
/// A constant into a register.
pub const MOVE: u8 = 0xb4;
/// One register into another.
pub const COPY: u8 = 0xbc;
/// A register and a constant, bit by bit.
pub const AND: u8 = 0x54;
/// A register by a constant number of bits.
pub const SHIFT_RIGHT: u8 = 0x74;
/// A jump if a register is not equal to a constant.
pub const IF_NOT_EQUAL: u8 = 0x56;
/// A jump if a register has any bit of a constant.
pub const IF_ANY_SET: u8 = 0x46;
/// A jump in every case (BPF_JA).
pub const JUMP: u8 = 0x05;
/// The end of the program. Its result is in [`ANSWER`].
pub const EXIT: u8 = 0x95;

/// The register with the program's result.
pub const ANSWER: u8 = 0;
/// The register in which the kernel puts what the program is asked about.
pub const CONTEXT: u8 = 1;

/// An instruction with one register and a constant.
#[must_use]
pub const fn instruction(code: u8, register: u8, offset: i16, immediate: u32) -> Instruction {
    Instruction {
        code,
        registers: register,
        offset,
        immediate,
    }
}

/// An instruction with two registers.
#[must_use]
pub const fn from(code: u8, to: u8, source: u8, offset: i16) -> Instruction {
    instruction(code, to | (source << 4), offset, 0)
}
