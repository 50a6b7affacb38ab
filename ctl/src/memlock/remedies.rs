//! Which of the three remedies helps if perf buffers are refused, and the exact key or annotation to set. Pure.

use config::LockLimit;
use protocol::agent::{MemlockAttempt, MemlockProbe, MemlockReport};
use protocol::diagnostics::MemlockPolicy;

const MEMLOCK: &str = "io.katacontainers.container.resource.memlock";
const CAP_IPC_LOCK: &str = "io.katacontainers.container.cap_ipc_lock";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Remedy {
    /// `limit`, `capability` or `sysctl`.
    pub(super) name: &'static str,
    /// Whether the buffers were granted with it and nothing else changed.
    pub(super) helps: bool,
    pub(super) needed: String,
    /// Any one of these does it, for a container that is made afterwards.
    pub(super) set: Vec<String>,
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
    let max = LockLimit::from_rlimit(policy.max_bytes);
    let least = LockLimit::bytes(probe.limit_needed).unwrap_or(LockLimit::UNLIMITED);
    // Whole MiB, because nobody wants to set 1052672; unless the ceiling lies between.
    let round = LockLimit::bytes(probe.limit_needed.div_ceil(MIB).saturating_mul(MIB)).unwrap_or(LockLimit::UNLIMITED);
    let limit = if least <= max && round > max { least } else { round };
    let specification = format!(
        "RLIMIT_MEMLOCK = {0} in the specification (docker run --ulimit memlock={0})",
        limit.as_rlimit()
    );
    let annotation = format!("annotation {MEMLOCK} = \"{limit}\"");
    let mut notes = Vec::new();
    // What comes after the place that decides would change nothing.
    let set = match policy.limit_from.as_str() {
        "specification" => {
            notes.push("the specification has a limit, which comes before annotations and configuration".to_owned());
            vec![specification]
        }
        whose @ ("container" | "pod") => {
            notes.push(format!(
                "the limit is that of the {whose}'s annotation, which comes before the configuration"
            ));
            vec![annotation, specification]
        }
        _ => {
            let default = format!("[runtime.memlock] default = \"{limit}\"");
            if policy.memlock_annotation {
                vec![annotation, default, specification]
            } else {
                notes.push("annotations are refused: [runtime.memlock] allow_annotation is false".to_owned());
                vec![default, specification]
            }
        }
    };
    if limit > max {
        notes.push(format!("[runtime.memlock] max = \"{max}\" must be raised first"));
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
    let wish = if root { "grant" } else { "ambient" };
    let annotation = format!("annotation {CAP_IPC_LOCK} = \"{wish}\"");
    let ambient = if root { "" } else { " and ambient = true" };
    let configuration = format!("[runtime.cap_ipc_lock] policy = \"grant\"{ambient}");
    let said = [
        ("container", policy.container_cap_ipc_lock.as_str()),
        ("pod", policy.pod_cap_ipc_lock.as_str()),
    ];
    let nothing_said = said.iter().all(|(_, says)| says.is_empty());
    let mut notes = Vec::new();
    let mut set = Vec::new();
    if policy.cap_ipc_lock == "drop" {
        notes.push("no annotation can undo [runtime.cap_ipc_lock] policy = \"drop\"".to_owned());
        set.push(if nothing_said {
            configuration
        } else {
            format!("[runtime.cap_ipc_lock] policy = \"grant\", and {annotation}")
        });
    } else if !policy.cap_ipc_lock_annotation {
        notes.push("annotations are refused: [runtime.cap_ipc_lock] allow_annotation is false".to_owned());
        set.push(configuration);
    } else if nothing_said {
        set.extend([annotation, configuration]);
    } else {
        set.push(annotation);
    }
    // A drop wins wherever it is said; otherwise an annotation comes before the configuration.
    for (whose, says) in said {
        match says {
            "drop" => notes.push(format!(
                "the {whose}'s annotation says \"drop\" now, and must not any more"
            )),
            "" => {}
            _ => notes.push(format!(
                "the {whose}'s annotation says \"{says}\" now, which comes before the configuration"
            )),
        }
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
