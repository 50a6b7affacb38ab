//! Which of the three remedies helps where perf buffers are refused, and the exact key or annotation to set. Pure.

use config::LockLimit;
use protocol::agent::{MemlockAttempt, MemlockProbe, MemlockReport};
use protocol::diagnostics::MemlockPolicy;

/// The annotations' names.
const MEMLOCK: &str = "io.katacontainers.container.resource.memlock";
const CAP_IPC_LOCK: &str = "io.katacontainers.container.cap_ipc_lock";

/// A remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Remedy {
    /// `limit`, `capability` or `sysctl`.
    pub(super) name: &'static str,
    /// Whether the buffers were granted with it and nothing else changed.
    pub(super) helps: bool,
    /// What is needed at least.
    pub(super) needed: String,
    /// Any one of these does it, for a container that is made afterwards.
    pub(super) set: Vec<String>,
    /// What else is to be known.
    pub(super) notes: Vec<String>,
}

/// All three, in the order in which they are to be preferred: the narrowest first.
pub(super) fn all(report: &MemlockReport, probe: &MemlockProbe, policy: &MemlockPolicy) -> Vec<Remedy> {
    vec![
        limit(probe, policy),
        capability(report, probe, policy),
        sysctl(report, probe),
    ]
}

fn helps(attempt: Option<&MemlockAttempt>) -> bool {
    attempt.is_some_and(|attempt| attempt.granted)
}

fn limit(probe: &MemlockProbe, policy: &MemlockPolicy) -> Remedy {
    const MIB: u64 = 1 << 20;
    // Whole MiB, because nobody wants to set 1052672.
    let bytes = probe.limit_needed.div_ceil(MIB).saturating_mul(MIB);
    let limit = LockLimit::bytes(bytes).unwrap_or(LockLimit::UNLIMITED);
    let mut set = Vec::new();
    if policy.memlock_annotation {
        set.push(format!("annotation {MEMLOCK} = \"{limit}\""));
    }
    set.push(format!("[runtime.memlock] default = \"{limit}\""));
    let mut notes = vec![format!(
        "a limit in the container's specification comes before both (docker run --ulimit memlock={})",
        limit.as_rlimit()
    )];
    let max = LockLimit::from_rlimit(policy.max_bytes);
    if limit > max {
        notes.push(format!("[runtime.memlock] max = \"{max}\" must be raised first"));
    }
    if !policy.memlock_annotation {
        notes.push("annotations are refused: [runtime.memlock] allow_annotation is false".to_owned());
    }
    Remedy {
        name: "limit",
        helps: helps(probe.with_limit.as_ref()),
        needed: format!("RLIMIT_MEMLOCK of {} bytes", probe.limit_needed),
        set,
        notes,
    }
}

fn capability(report: &MemlockReport, probe: &MemlockProbe, policy: &MemlockPolicy) -> Remedy {
    let root = report.uid == 0;
    let dropped = policy.cap_ipc_lock == "drop";
    let mut set = Vec::new();
    if policy.cap_ipc_lock_annotation && !dropped {
        let wish = if root { "grant" } else { "ambient" };
        set.push(format!("annotation {CAP_IPC_LOCK} = \"{wish}\""));
    }
    let ambient = if root { "" } else { " and ambient = true" };
    set.push(format!("[runtime.cap_ipc_lock] policy = \"grant\"{ambient}"));
    let mut notes = Vec::new();
    if dropped {
        notes.push("no annotation can undo [runtime.cap_ipc_lock] policy = \"drop\"".to_owned());
    } else if !policy.cap_ipc_lock_annotation {
        notes.push("annotations are refused: [runtime.cap_ipc_lock] allow_annotation is false".to_owned());
    }
    if report.user_namespace {
        notes.push(
            "the process is in a user namespace of its own, and the kernel asks for the capability over the guest"
                .to_owned(),
        );
    }
    Remedy {
        name: "capability",
        helps: helps(probe.with_capability.as_ref()),
        needed: "CAP_IPC_LOCK, effective".to_owned(),
        set,
        notes,
    }
}

fn sysctl(report: &MemlockReport, probe: &MemlockProbe) -> Remedy {
    Remedy {
        name: "sysctl",
        helps: helps(probe.with_sysctl.as_ref()),
        needed: format!("kernel.perf_event_mlock_kb of {}", probe.kb_needed),
        set: vec![format!("[runtime.memlock] perf_event_mlock_kb = {}", probe.kb_needed)],
        notes: vec![format!(
            "for every user of the whole sandbox, which has {} now",
            report.perf_event_mlock_kb
        )],
    }
}
