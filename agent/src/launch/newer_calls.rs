//! System calls that are newer than a seccomp profile: they fail with ENOSYS, as on a kernel that lacks them.
//!
//! With the profile's default, usually EPERM, a program would learn that it may not make the call, although the profile's
//! author only did not know it. The C library would then not fall back to the older call. runc has the same rule: a call
//! with a higher number than every call in the profile was not known to its author. libseccomp cannot express "higher",
//! so this test runs before its program. Pure: names in, instructions out.

use libc::{BPF_ABS, BPF_JEQ, BPF_JGE, BPF_JGT, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, sock_filter};
use libseccomp::{ScmpArch, ScmpSyscall};

/// Offsets in `struct seccomp_data` (linux/seccomp.h).
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;

/// From here on x86_64 numbers its x32 calls, and the -1 of a call that a tracer has cancelled.
const X32: u32 = 0x4000_0000;

/// The kernel's name of an architecture (AUDIT_ARCH_*, linux/audit.h); none for those that no guest runs.
fn audit(arch: ScmpArch) -> Option<u32> {
    match arch {
        ScmpArch::X8664 => Some(0xc000_003e),
        ScmpArch::X86 => Some(0x4000_0003),
        ScmpArch::Aarch64 => Some(0xc000_00b7),
        ScmpArch::Arm => Some(0x4000_0028),
        _ => None,
    }
}

/// What comes before a filter that names these calls on these architectures.
pub(super) fn stub(architectures: &[ScmpArch], names: &[&str]) -> Vec<sock_filter> {
    let known = architectures.iter().filter_map(|arch| Some((*arch, audit(*arch)?)));
    known
        .filter_map(|(arch, audit)| Some(block(audit, last(arch, names)?)))
        .flatten()
        .collect()
}

/// The highest number that the profile names. Numbers below zero are libseccomp's own, for calls that do not exist.
fn last(arch: ScmpArch, names: &[&str]) -> Option<u32> {
    let numbers = names
        .iter()
        .filter_map(|name| ScmpSyscall::from_name_by_arch(name, arch).ok());
    numbers
        .filter_map(|call| u32::try_from(call.as_raw_syscall()).ok())
        .max()
}

fn block(audit: u32, last: u32) -> [sock_filter; 6] {
    [
        step(BPF_LD | BPF_W | BPF_ABS, 0, 0, ARCHITECTURE),
        step(BPF_JMP | BPF_JEQ | BPF_K, 0, 4, audit),
        step(BPF_LD | BPF_W | BPF_ABS, 0, 0, NUMBER),
        step(BPF_JMP | BPF_JGE | BPF_K, 2, 0, X32),
        step(BPF_JMP | BPF_JGT | BPF_K, 0, 1, last),
        step(
            BPF_RET | BPF_K,
            0,
            0,
            libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned(),
        ),
    ]
}

/// One instruction; the jumps are distances, taken when the test holds and when it does not.
fn step(code: u32, holds: u8, fails: u8, value: u32) -> sock_filter {
    sock_filter {
        // The codes of classic BPF are of eight bits.
        code: (code & 0xff) as u16,
        jt: holds,
        jf: fails,
        k: value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the stub ends a call; as the kernel would run it.
    fn ends(stub: &[sock_filter], audit: u32, number: u32) -> bool {
        let (mut at, mut value) = (0, 0);
        while let Some(step) = stub.get(at) {
            let code = u32::from(step.code);
            let jump = |holds: bool| usize::from(if holds { step.jt } else { step.jf });
            at += 1;
            match code {
                _ if code == BPF_LD | BPF_W | BPF_ABS => value = if step.k == NUMBER { number } else { audit },
                _ if code == BPF_JMP | BPF_JEQ | BPF_K => at += jump(value == step.k),
                _ if code == BPF_JMP | BPF_JGE | BPF_K => at += jump(value >= step.k),
                _ if code == BPF_JMP | BPF_JGT | BPF_K => at += jump(value > step.k),
                _ => return true,
            }
        }
        false
    }

    #[test]
    fn calls_above_the_last_that_is_named_end_and_all_others_go_on() {
        let names = ["read", "openat2", "no_such_call"];
        let stub = stub(&[ScmpArch::X8664, ScmpArch::X86, ScmpArch::X32], &names);
        for audit in [0xc000_003e, 0x4000_0003] {
            assert!(!ends(&stub, audit, 437), "openat2 itself");
            assert!(ends(&stub, audit, 438));
            assert!(ends(&stub, audit, 452), "fchmodat2");
            assert!(!ends(&stub, audit, X32 + 1));
            assert!(!ends(&stub, audit, u32::MAX), "a cancelled call");
        }
        assert!(!ends(&stub, 0xc000_00b7, 999), "an architecture that was not asked for");
    }

    #[test]
    fn a_profile_without_names_ends_nothing() {
        assert!(stub(&[ScmpArch::X8664], &[]).is_empty());
    }
}
