//! Converts device rules to a BPF program of type BPF_PROG_TYPE_CGROUP_DEVICE. Pure: rules in, instructions out.
//!
//! The rules are ordered. The last rule for a device and a kind of access decides. The program checks the rules backwards
//! with the kinds of access that are still undecided. If one is denied, it ends with 0. If the last one is allowed, it
//! ends with 1. An access without a rule is denied.

use base::bpf::{
    AND, ANSWER, CONTEXT, COPY, EXIT, IF_ANY_SET, IF_NOT_EQUAL, Instruction, JUMP, LOAD, MOVE, SHIFT_RIGHT, from,
    instruction,
};

/// What is asked for: the kernel's BPF_DEVCG_ACC_* bits (linux/bpf.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Access(u8);

impl Access {
    pub(super) const MKNOD: Self = Self(1);
    pub(super) const READ: Self = Self(2);
    const WRITE: Self = Self(4);
    pub(super) const ALL: Self = Self(7);

    /// Letters of `r`, `w` and `m`, at least one.
    pub(super) fn parse(letters: &str) -> Option<Self> {
        let bits = letters.chars().try_fold(0, |bits, letter| {
            let access = match letter {
                'r' => Self::READ,
                'w' => Self::WRITE,
                'm' => Self::MKNOD,
                _ => return None,
            };
            Some(bits | access.0)
        })?;
        (bits != 0).then_some(Self(bits))
    }
}

/// The kernel's BPF_DEVCG_DEV_*.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Block = 1,
    Char = 2,
}

/// The devices that a rule applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// Every access to every device.
    Everything,
    /// These accesses to these devices; a number that is missing stands for all.
    Devices {
        kind: Kind,
        major: Option<u32>,
        minor: Option<u32>,
        access: Access,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) allow: bool,
    pub(super) scope: Scope,
}

impl Rule {
    pub(super) const fn allow(kind: Kind, major: Option<u32>, minor: Option<u32>, access: Access) -> Self {
        Self {
            allow: true,
            scope: Scope::Devices {
                kind,
                major,
                minor,
                access,
            },
        }
    }
}

const TYPE: u8 = 2;
/// The kinds of access that are still undecided.
const OPEN: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// The program that carries the rules out.
pub(super) fn generate(rules: &[Rule]) -> Vec<Instruction> {
    // access_type is the access in its upper half and the type in its lower one.
    let mut program = vec![
        from(LOAD, OPEN, CONTEXT, 0),
        from(COPY, TYPE, OPEN, 0),
        instruction(AND, TYPE, 0, 0xffff),
        instruction(SHIFT_RIGHT, OPEN, 0, 16),
        from(LOAD, MAJOR, CONTEXT, 4),
        from(LOAD, MINOR, CONTEXT, 8),
        instruction(MOVE, ANSWER, 0, 0),
    ];
    for rule in rules.iter().rev() {
        match rule.scope {
            Scope::Everything => {
                program.push(instruction(MOVE, ANSWER, 0, rule.allow.into()));
                // Nothing before it can matter, and the kernel refuses what cannot be reached.
                program.push(instruction(EXIT, 0, 0, 0));
                return program;
            }
            Scope::Devices {
                kind,
                major,
                minor,
                access,
            } => {
                let conditions = [
                    Some((TYPE, kind as u32)),
                    major.map(|n| (MAJOR, n)),
                    minor.map(|n| (MINOR, n)),
                ];
                let conditions: Vec<_> = conditions.into_iter().flatten().collect();
                let verdict = verdict(rule.allow, access);
                let mut left = conditions.len() + verdict.len();
                for (register, value) in conditions {
                    left -= 1;
                    program.push(instruction(IF_NOT_EQUAL, register, small(left), value));
                }
                program.extend(verdict);
            }
        }
    }
    program.push(instruction(EXIT, 0, 0, 0));
    program
}

fn verdict(allow: bool, access: Access) -> [Instruction; 4] {
    let bits = u32::from(access.0);
    if allow {
        [
            instruction(AND, OPEN, 0, !bits & u32::from(Access::ALL.0)),
            instruction(IF_NOT_EQUAL, OPEN, 2, 0),
            instruction(MOVE, ANSWER, 0, 1),
            instruction(EXIT, 0, 0, 0),
        ]
    } else {
        [
            instruction(IF_ANY_SET, OPEN, 1, bits),
            instruction(JUMP, 0, 2, 0),
            instruction(MOVE, ANSWER, 0, 0),
            instruction(EXIT, 0, 0, 0),
        ]
    }
}

/// Distances within one rule: at most seven.
fn small(distance: usize) -> i16 {
    i16::try_from(distance).unwrap_or(i16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Just enough of a machine to run what [`generate`] writes.
    fn run(program: &[Instruction], kind: u32, access: u32, major: u32, minor: u32) -> bool {
        let context = [access << 16 | kind, major, minor];
        let mut registers = [None; 6];
        let mut at = 0;
        loop {
            let Instruction {
                code,
                registers: names,
                offset,
                immediate,
            } = program[at];
            let (to, source) = (usize::from(names & 15), usize::from(names >> 4));
            let read = |register: usize| -> u32 { registers[register].expect("read before written") };
            at += 1;
            let mut jump = false;
            match code {
                LOAD => registers[to] = Some(context[usize::try_from(offset).unwrap() / 4]),
                MOVE => registers[to] = Some(immediate),
                COPY => registers[to] = Some(read(source)),
                AND => registers[to] = Some(read(to) & immediate),
                SHIFT_RIGHT => registers[to] = Some(read(to) >> immediate),
                IF_NOT_EQUAL => jump = read(to) != immediate,
                IF_ANY_SET => jump = read(to) & immediate != 0,
                JUMP => jump = true,
                EXIT => return read(0) == 1,
                other => panic!("unknown instruction {other:#x}"),
            }
            if jump {
                at += usize::try_from(offset).unwrap();
            }
        }
    }

    /// The rule in words: for each kind of access the last rule that speaks of it decides.
    fn expected(rules: &[Rule], kind: u32, access: u8, numbers: (u32, u32)) -> bool {
        [1, 2, 4].into_iter().filter(|bit| access & bit != 0).all(|bit| {
            let speaks = |rule: &&Rule| match rule.scope {
                Scope::Everything => true,
                Scope::Devices {
                    kind: its,
                    major,
                    minor,
                    access,
                } => {
                    its as u32 == kind
                        && major.is_none_or(|major| major == numbers.0)
                        && minor.is_none_or(|minor| minor == numbers.1)
                        && access.0 & bit != 0
                }
            };
            rules.iter().rev().find(speaks).is_some_and(|rule| rule.allow)
        })
    }

    fn any_rule() -> impl Strategy<Value = Rule> {
        let number = || prop_oneof![Just(None), (0_u32..3).prop_map(Some)];
        let kind = prop_oneof![Just(Kind::Block), Just(Kind::Char)];
        let devices = (kind, number(), number(), 1_u8..8).prop_map(|(kind, major, minor, access)| Scope::Devices {
            kind,
            major,
            minor,
            access: Access(access),
        });
        let scope = prop_oneof![1 => Just(Scope::Everything), 9 => devices];
        (any::<bool>(), scope).prop_map(|(allow, scope)| Rule { allow, scope })
    }

    #[test]
    fn nothing_is_allowed_without_a_rule() {
        assert!(!run(&generate(&[]), 2, 2, 1, 3));
    }

    #[test]
    fn reading_and_writing_need_a_rule_each() {
        let read = Rule::allow(Kind::Block, Some(8), None, Access::READ);
        let program = generate(&[read]);
        assert!(run(&program, 1, 2, 8, 1));
        assert!(!run(&program, 1, 2 | 4, 8, 1));
        let write = Rule::allow(Kind::Block, None, Some(1), Access::WRITE);
        assert!(run(&generate(&[read, write]), 1, 2 | 4, 8, 1));
    }

    #[test]
    fn numbers_beyond_a_signed_field_are_compared_whole() {
        let program = generate(&[Rule::allow(Kind::Char, Some(u32::MAX), None, Access::ALL)]);
        assert!(run(&program, 2, 7, u32::MAX, 0));
        assert!(!run(&program, 2, 7, u32::MAX >> 1, 0));
    }

    proptest! {
        #[test]
        fn the_last_rule_that_speaks_of_an_access_decides(
            rules in proptest::collection::vec(any_rule(), 0..12),
            kind in 1_u32..3, access in 1_u8..8, major in 0_u32..4, minor in 0_u32..4,
        ) {
            let allowed = run(&generate(&rules), kind, access.into(), major, minor);
            prop_assert_eq!(allowed, expected(&rules, kind, access, (major, minor)));
        }
    }
}
