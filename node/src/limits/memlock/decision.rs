//! Decides the limit and the capability of one process. Pure.
//!
//! The limit comes from the specification, else from the container's annotation, else from the pod's, else from the
//! configuration. The ceiling applies to each of them. The capability comes from the same places, but `drop` in any of
//! them wins: a request for less is always granted.

use config::{CapPolicy, LockLimit, OnExcess};
use oci_spec::runtime::{
    Capabilities, Capability, LinuxCapabilities, PosixRlimit, PosixRlimitBuilder, PosixRlimitType,
};

use super::annotations::{self, Annotations, CAP_IPC_LOCK, Limits, MEMLOCK, Whose, Wish, asked};
use super::{MemlockError, Rules};

/// What the specification says of a process.
#[derive(Debug, Clone, Copy)]
pub struct Described<'a> {
    /// `process.rlimits`
    pub rlimits: &'a [PosixRlimit],
    /// `process.capabilities`
    pub capabilities: Option<&'a LinuxCapabilities>,
}

/// Which place decided about a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LimitFrom {
    /// `process.rlimits`
    Specification,
    /// The container's annotation.
    Container,
    /// The pod's annotation.
    Pod,
    /// `[runtime.memlock] default`
    #[default]
    Configuration,
}

impl LimitFrom {
    /// Its name to `kata-ctl` (diagnostics.proto, `MemlockPolicy`).
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            LimitFrom::Specification => "specification",
            LimitFrom::Container => "container",
            LimitFrom::Pod => "pod",
            LimitFrom::Configuration => "configuration",
        }
    }
}

impl From<Whose> for LimitFrom {
    fn from(whose: Whose) -> Self {
        match whose {
            Whose::Container => LimitFrom::Container,
            Whose::Pod => LimitFrom::Pod,
        }
    }
}

/// What a process gets.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// RLIMIT_MEMLOCK, soft.
    pub soft: LockLimit,
    /// RLIMIT_MEMLOCK, hard.
    pub hard: LockLimit,
    /// Where they come from.
    pub from: LimitFrom,
    /// All of its capabilities; none where the specification has none and none is granted.
    pub capabilities: Option<LinuxCapabilities>,
    /// What was not carried out as it was asked for. One sentence each.
    pub notes: Vec<String>,
}

impl Decision {
    /// Puts the limit into a list of limits, in the place of those that are there.
    pub fn limit(&self, rlimits: &mut Vec<PosixRlimit>) {
        // The builder fails for a missing field, and none is missing.
        let limit = PosixRlimitBuilder::default()
            .typ(PosixRlimitType::RlimitMemlock)
            .soft(self.soft.as_rlimit())
            .hard(self.hard.as_rlimit())
            .build()
            .unwrap_or_default();
        rlimits.retain(|other| !is_memlock(other));
        rlimits.push(limit);
    }
}

fn is_memlock(limit: &PosixRlimit) -> bool {
    limit.typ() == PosixRlimitType::RlimitMemlock
}

/// Decides.
///
/// # Errors
/// An annotation is not allowed or means nothing, a soft limit is above its hard one, or a limit is above the ceiling.
pub fn decide(
    process: Described<'_>,
    rules: &Rules,
    container: &Annotations,
    pod: &Annotations,
) -> Result<Decision, MemlockError> {
    // All annotations are read, so that a wrong one is never hidden by another.
    let limits = [
        (
            Whose::Container,
            annotations::memlock(Whose::Container, container, rules)?,
        ),
        (Whose::Pod, annotations::memlock(Whose::Pod, pod, rules)?),
    ];
    let wishes = [
        annotations::cap_ipc_lock(Whose::Container, container, rules)?,
        annotations::cap_ipc_lock(Whose::Pod, pod, rules)?,
    ];
    for (whose, wish) in [Whose::Container, Whose::Pod].into_iter().zip(wishes) {
        refuse_to_the_dropped(whose, wish, process.capabilities, rules)?;
    }
    let mut notes = Vec::new();
    let (from, limits) = limit(process.rlimits, limits, rules, &mut notes)?;
    let capabilities = match choose(rules, wishes, &mut notes) {
        (CapPolicy::Drop, _) => process.capabilities.map(without),
        (CapPolicy::Grant, ambient) => Some(with(process.capabilities, ambient)),
        (CapPolicy::Spec, true) if process.capabilities.is_some_and(holds) => Some(with(process.capabilities, true)),
        (CapPolicy::Spec, _) => process.capabilities.cloned(),
    };
    Ok(Decision {
        soft: limits.soft,
        hard: limits.hard,
        from,
        capabilities,
        notes,
    })
}

fn limit(
    rlimits: &[PosixRlimit],
    annotations: [(Whose, Option<Limits>); 2],
    rules: &Rules,
    notes: &mut Vec<String>,
) -> Result<(LimitFrom, Limits), MemlockError> {
    let mut candidates = Vec::new();
    // The same limit twice is taken, as by runc: the last one counts.
    if let Some(limit) = rlimits.iter().rfind(|limit| is_memlock(limit)) {
        let limits = Limits {
            soft: LockLimit::from_rlimit(limit.soft()),
            hard: LockLimit::from_rlimit(limit.hard()),
        };
        let asked = "process.rlimits RLIMIT_MEMLOCK".to_owned();
        candidates.push((LimitFrom::Specification, asked, limits));
    }
    for (whose, limits) in annotations {
        candidates.extend(limits.map(|limits| (whose.into(), asked(whose, MEMLOCK), limits)));
    }
    let default = Limits {
        soft: rules.memlock.default,
        hard: rules.memlock.default,
    };
    for (_, asked, limits) in &candidates {
        if limits.soft > limits.hard {
            return Err(MemlockError::SoftAboveHard {
                asked: asked.clone(),
                value: limits.to_string(),
            });
        }
    }
    let first = candidates.into_iter().next();
    let otherwise = || (LimitFrom::Configuration, "runtime.memlock.default".to_owned(), default);
    let (from, asked, limits) = first.unwrap_or_else(otherwise);
    Ok((from, held_to_the_ceiling(asked, limits, rules, notes)?))
}

fn held_to_the_ceiling(
    asked: String,
    limits: Limits,
    rules: &Rules,
    notes: &mut Vec<String>,
) -> Result<Limits, MemlockError> {
    let max = rules.memlock.max;
    if limits.hard <= max {
        return Ok(limits);
    }
    match rules.memlock.on_excess {
        OnExcess::Deny => Err(MemlockError::AboveCeiling {
            asked,
            value: limits.to_string(),
            max: max.to_string(),
        }),
        OnExcess::Clamp => {
            notes.push(format!(
                "{asked} = {limits} is more than runtime.memlock.max: the limit is {max}"
            ));
            Ok(Limits {
                soft: limits.soft.min(max),
                hard: max,
            })
        }
    }
}

/// A container that has dropped all capabilities is meant to have none, whoever writes its annotations.
fn refuse_to_the_dropped(
    whose: Whose,
    wish: Option<Wish>,
    capabilities: Option<&LinuxCapabilities>,
    rules: &Rules,
) -> Result<(), MemlockError> {
    let value = match wish {
        Some(Wish::Policy(CapPolicy::Grant)) => "grant",
        Some(Wish::Ambient) => "ambient",
        Some(Wish::Policy(_)) | None => return Ok(()),
    };
    // Kubernetes' restricted pods may have that one back (its Pod Security Standards).
    let kept = |set: &Capabilities| set.iter().any(|capability| *capability != Capability::NetBindService);
    let dropped = capabilities.is_some_and(|sets| !sets.bounding().as_ref().is_some_and(kept));
    let granted_to_all = rules.cap_ipc_lock.policy != CapPolicy::Spec;
    if dropped && !granted_to_all && !rules.cap_ipc_lock.grant_to_dropped {
        return Err(MemlockError::NotAllowed {
            asked: asked(whose, CAP_IPC_LOCK),
            value: value.to_owned(),
            key: "runtime.cap_ipc_lock.grant_to_dropped",
        });
    }
    Ok(())
}

/// The policy, and whether who has the capability keeps it as any user. The wishes come in the order in which they count.
fn choose(rules: &Rules, wishes: [Option<Wish>; 2], notes: &mut Vec<String>) -> (CapPolicy, bool) {
    let CapPolicy::Drop = rules.cap_ipc_lock.policy else {
        if wishes.contains(&Some(Wish::Policy(CapPolicy::Drop))) {
            return (CapPolicy::Drop, false);
        }
        return match wishes.into_iter().flatten().next() {
            None => (rules.cap_ipc_lock.policy, rules.cap_ipc_lock.ambient),
            Some(Wish::Policy(policy)) => (policy, rules.cap_ipc_lock.ambient),
            Some(Wish::Ambient) => (CapPolicy::Grant, true),
        };
    };
    let grants = |wish: &Wish| matches!(wish, Wish::Ambient | Wish::Policy(CapPolicy::Grant));
    if wishes.iter().flatten().any(grants) {
        notes.push(format!(
            "annotation {CAP_IPC_LOCK} has no effect: runtime.cap_ipc_lock.policy is drop"
        ));
    }
    (CapPolicy::Drop, false)
}

/// Whether a program that root executes would have the capability.
fn holds(sets: &LinuxCapabilities) -> bool {
    let has = |set: &Option<Capabilities>| set.as_ref().is_some_and(|set| set.contains(&Capability::IpcLock));
    has(sets.permitted()) || has(sets.bounding())
}

fn without(sets: &LinuxCapabilities) -> LinuxCapabilities {
    changed(Some(sets), |_, set| {
        set.remove(&Capability::IpcLock);
    })
}

/// In the sets that matter to root, or in all of them: execve(2) gives another user what is ambient, and nothing can be
/// ambient that is not inheritable (capabilities(7)).
fn with(sets: Option<&LinuxCapabilities>, ambient: bool) -> LinuxCapabilities {
    changed(sets, |for_any_user, set| {
        if ambient || !for_any_user {
            set.insert(Capability::IpcLock);
        }
    })
}

/// Changes each of the five sets; the change is told whether it is one of the two that matter to other users than root.
fn changed(sets: Option<&LinuxCapabilities>, change: impl Fn(bool, &mut Capabilities)) -> LinuxCapabilities {
    let set = |select: fn(&LinuxCapabilities) -> &Option<Capabilities>, for_any_user: bool| {
        let mut set = sets.and_then(|sets| select(sets).clone()).unwrap_or_default();
        change(for_any_user, &mut set);
        Some(set)
    };
    // The crate's default has some capabilities in it: every set is replaced.
    let mut changed = LinuxCapabilities::default();
    changed
        .set_bounding(set(LinuxCapabilities::bounding, false))
        .set_permitted(set(LinuxCapabilities::permitted, false))
        .set_effective(set(LinuxCapabilities::effective, false))
        .set_inheritable(set(LinuxCapabilities::inheritable, true))
        .set_ambient(set(LinuxCapabilities::ambient, true));
    changed
}

#[cfg(test)]
mod tests;
