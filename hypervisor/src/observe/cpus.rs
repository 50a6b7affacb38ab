//! The vCPUs' instruction pointers, parsed from the monitor's text for humans, because there is no QMP command for them.
//! No vCPU is stopped.
//!
//! Knows the format of `info registers` and of `x` on x86 (target/i386/cpu-dump.c in QEMU), and the layout of a gate of
//! the interrupt descriptor table (Intel SDM, volume 3, "64-Bit Mode IDT"). It does not know which kernel the guest runs.

use serde_json::{Value, json};

use crate::qmp::{Qmp, QmpError};

/// One vCPU at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vcpu {
    /// The vCPU's number, from 0.
    pub index: u32,
    /// The instruction pointer.
    pub instruction: u64,
    /// It waits for an interrupt.
    pub halted: bool,
    /// The privilege level: 0 is the kernel, 3 a program.
    pub level: u8,
}

/// All vCPUs at about the same moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// In the order of their numbers.
    pub vcpus: Vec<Vcpu>,
    /// Where the guest handles exception 0, which is a known function of its kernel. None before it can.
    pub first_handler: Option<u64>,
}

pub(crate) async fn sample(qmp: &Qmp) -> Result<Sample, QmpError> {
    let registers = print(qmp, "info registers -a").await?;
    let vcpus = blocks(&registers);
    let first_handler = match vcpus.iter().find_map(|(_, table)| *table) {
        // The address is a number that was parsed.
        Some(table) => handler(&print(qmp, &format!("x /2gx {table:#x}")).await?),
        None => None,
    };
    let vcpus = vcpus.into_iter().map(|(vcpu, _)| vcpu).collect();
    Ok(Sample { vcpus, first_handler })
}

async fn print(qmp: &Qmp, command: &str) -> Result<String, QmpError> {
    let answer = qmp
        .execute("human-monitor-command", json!({ "command-line": command }))
        .await?;
    Ok(match answer {
        Value::String(text) => text,
        _ => String::new(),
    })
}

/// Each vCPU, with the address of its table of handlers if that is a kernel's: one in the upper half.
fn blocks(text: &str) -> Vec<(Vcpu, Option<u64>)> {
    let blocks = text.split("CPU#").skip(1).filter_map(|block| {
        let (index, registers) = block.split_once(['\r', '\n'])?;
        let index = index.trim().parse().ok()?;
        // A vCPU that has not left 32-bit mode has shorter names.
        let instruction = hexadecimal(registers, "RIP=").or_else(|| hexadecimal(registers, "EIP="))?;
        let vcpu = Vcpu {
            index,
            instruction,
            halted: hexadecimal(registers, "HLT=") == Some(1),
            level: u8::try_from(hexadecimal(registers, "CPL=")?).ok()?,
        };
        let table = hexadecimal(registers, "IDT=").filter(|table| table >> 63 == 1);
        Some((vcpu, table))
    });
    blocks.collect()
}

/// The number behind a name.
fn hexadecimal(text: &str, name: &str) -> Option<u64> {
    let (_, rest) = text.split_once(name)?;
    let digits: &str = rest.trim_start_matches(' ');
    let end = digits.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(digits.len());
    u64::from_str_radix(&digits[..end], 16).ok()
}

/// The address in the first gate: bits 0 to 15 and 16 to 31 at both ends of its first word, the rest in the second.
fn handler(text: &str) -> Option<u64> {
    let (_, words) = text.lines().next()?.split_once(": ")?;
    let mut words = words.split_ascii_whitespace().map(|word| {
        let digits = word.strip_prefix("0x")?;
        u64::from_str_radix(digits, 16).ok()
    });
    let (low, high) = (words.next()??, words.next()??);
    let present = low & (1 << 47) != 0;
    present.then_some((low & 0xffff) | (low >> 32 & 0xffff_0000) | high << 32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As QEMU 10.0.2 prints it, shortened.
    const RUNNING: &str = "\r\nCPU#0\r\nRAX=0000000000000000 RBX=0000000000000000\r\n\
        RIP=ffffffffa64c6e18 RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=0\r\n\
        IDT=     fffffe0000000000 00000fff\r\n\r\nCPU#1\r\n\
        RIP=00007f0000001234 RFL=00000246 [---Z-P-] CPL=3 II=0 A20=1 SMM=0 HLT=1\r\n\
        IDT=     fffffe0000000000 00000fff\r\n";

    #[test]
    fn each_vcpu_is_read_from_its_own_block() {
        let read = blocks(RUNNING);
        let table = Some(0xffff_fe00_0000_0000);
        let first = Vcpu {
            index: 0,
            instruction: 0xffff_ffff_a64c_6e18,
            halted: false,
            level: 0,
        };
        let second = Vcpu {
            index: 1,
            instruction: 0x7f00_0000_1234,
            halted: true,
            level: 3,
        };
        assert_eq!(read, [(first, table), (second, table)]);
    }

    #[test]
    fn a_vcpu_in_the_firmware_has_no_table_of_a_kernel() {
        let firmware = "\nCPU#0\nEAX=000f424a EBX=00000000\nEIP=000fd0cf EFL=00000002 [-------] CPL=0 II=0 HLT=1\n\
            IDT=     000f61be 00000000\n";
        let read = blocks(firmware);
        assert_eq!(
            (read[0].0.instruction, read[0].0.halted, read[0].1),
            (0xfd0cf, true, None)
        );
    }

    #[test]
    fn a_gate_is_put_together_from_its_three_parts() {
        let text = "fffffe0000000000: 0xa6e08e00001008b0 0x00000000ffffffff\r\n";
        assert_eq!(handler(text), Some(0xffff_ffff_a6e0_08b0));
        assert_eq!(handler("fffffe0000000000: Cannot access memory\n"), None);
        assert_eq!(
            handler("fffffe0000000000: 0x0000000000000000 0x0000000000000000\n"),
            None
        );
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parsers_panic(text in "(CPU#|RIP=|IDT=|HLT=|CPL=|0x|: |[0-9a-f \r\n]|\\PC){0,60}") {
            let _ = (blocks(&text), handler(&text));
        }
    }

    #[test]
    fn fuzz_registers() {
        fuzz::run("registers", |bytes| {
            let text = String::from_utf8_lossy(bytes);
            let _ = (blocks(&text), handler(&text));
        });
    }
}
