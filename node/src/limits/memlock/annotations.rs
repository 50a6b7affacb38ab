//! Parses the two annotations of locked memory.

use std::collections::HashMap;
use std::fmt;

use config::{CapPolicy, LockLimit};

use super::{MemlockError, Rules};

/// Asks for a limit: `SIZE`, `SOFT:HARD` or `unlimited`.
pub const MEMLOCK: &str = "io.katacontainers.container.resource.memlock";

/// Asks for the capability, or to be without it: `spec`, `grant`, `drop` or `ambient`.
pub const CAP_IPC_LOCK: &str = "io.katacontainers.container.cap_ipc_lock";

/// Characters of a value that an error shows.
const SHOWN: usize = 80;

/// The annotations of a container or a pod, as they are written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Annotations {
    /// The value of [`MEMLOCK`].
    pub memlock: Option<String>,
    /// The value of [`CAP_IPC_LOCK`].
    pub cap_ipc_lock: Option<String>,
}

impl Annotations {
    /// Picks them out of all annotations.
    #[must_use]
    pub fn of(all: Option<&HashMap<String, String>>) -> Self {
        let value = |name: &str| all.and_then(|all| all.get(name)).cloned();
        Self {
            memlock: value(MEMLOCK),
            cap_ipc_lock: value(CAP_IPC_LOCK),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    Container,
    Pod,
}

impl fmt::Display for Whose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Whose::Container => "container",
            Whose::Pod => "pod",
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) soft: LockLimit,
    pub(super) hard: LockLimit,
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.soft == self.hard {
            self.soft.fmt(f)
        } else {
            write!(f, "{}:{}", self.soft, self.hard)
        }
    }
}

/// What an annotation asks for the capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// What the configuration can say too.
    Policy(CapPolicy),
    /// To have it as any user.
    Ambient,
}

pub(super) fn asked(whose: Whose, annotation: &str) -> String {
    format!("annotation {annotation} of the {whose}")
}

/// The limit that the annotation asks for, if there is one.
pub(super) fn memlock(whose: Whose, written: &Annotations, rules: &Rules) -> Result<Option<Limits>, MemlockError> {
    let Some(value) = &written.memlock else { return Ok(None) };
    if !rules.memlock.allow_annotation {
        return Err(not_allowed(whose, MEMLOCK, value, "runtime.memlock.allow_annotation"));
    }
    let limits = limits(value).ok_or_else(|| {
        let allowed = format!("SIZE or SOFT:HARD, each of them {}", LockLimit::ALLOWED);
        wrong(whose, MEMLOCK, value, allowed)
    })?;
    Ok(Some(limits))
}

fn limits(text: &str) -> Option<Limits> {
    let (soft, hard) = text.split_once(':').unwrap_or((text, text));
    Some(Limits {
        soft: LockLimit::parse(soft)?,
        hard: LockLimit::parse(hard)?,
    })
}

/// What the annotation asks for the capability, if there is one.
pub(super) fn cap_ipc_lock(whose: Whose, written: &Annotations, rules: &Rules) -> Result<Option<Wish>, MemlockError> {
    let Some(value) = &written.cap_ipc_lock else {
        return Ok(None);
    };
    if !rules.cap_ipc_lock.allow_annotation {
        let key = "runtime.cap_ipc_lock.allow_annotation";
        return Err(not_allowed(whose, CAP_IPC_LOCK, value, key));
    }
    if value == "ambient" {
        return Ok(Some(Wish::Ambient));
    }
    let policy = CapPolicy::ALL.iter().find(|policy| policy.as_str() == value);
    match policy {
        Some(policy) => Ok(Some(Wish::Policy(*policy))),
        None => {
            let allowed = "\"spec\", \"grant\", \"drop\" or \"ambient\"".to_owned();
            Err(wrong(whose, CAP_IPC_LOCK, value, allowed))
        }
    }
}

fn not_allowed(whose: Whose, annotation: &str, value: &str, key: &'static str) -> MemlockError {
    MemlockError::NotAllowed {
        asked: asked(whose, annotation),
        value: shown(value),
        key,
    }
}

fn wrong(whose: Whose, annotation: &str, value: &str, allowed: String) -> MemlockError {
    MemlockError::Value {
        asked: asked(whose, annotation),
        value: shown(value),
        allowed,
    }
}

/// The beginning of a value, on one line.
fn shown(value: &str) -> String {
    let mut characters = value.chars();
    let plain = |character: char| if character.is_control() { ' ' } else { character };
    let mut text: String = characters.by_ref().take(SHOWN).map(plain).collect();
    if characters.next().is_some() {
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_value_is_read_or_refused_with_itself_in_a_bounded_message(value: String) {
            let written = Annotations { memlock: Some(value.clone()), cap_ipc_lock: Some(value) };
            let rules = Rules::default();
            for refused in [
                memlock(Whose::Pod, &written, &rules).err(),
                cap_ipc_lock(Whose::Container, &written, &rules).err(),
            ].into_iter().flatten() {
                let text = refused.to_string();
                prop_assert!(text.chars().count() < 400 && !text.contains(char::is_control));
                prop_assert!(text.contains("must be "), "{}", text);
            }
        }
    }
}
