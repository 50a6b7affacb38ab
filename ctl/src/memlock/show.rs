//! The report as text and as JSON. Pure. The only text from the guest, the process's name, was made printable by the
//! shim.

use std::fmt::Write;

use config::LockLimit;
use protocol::agent::{IpcLockSets, MemlockAttempt, MemlockReport};
use protocol::diagnostics::{MemlockResponse, SandboxInfo};
use serde_json::{Value, json};

use super::question::Question;
use super::remedies;

/// The sets that have the capability, by name.
fn sets(held: &IpcLockSets) -> Vec<&'static str> {
    [
        ("effective", held.effective),
        ("permitted", held.permitted),
        ("inheritable", held.inheritable),
        ("bounding", held.bounding),
        ("ambient", held.ambient),
    ]
    .into_iter()
    .filter_map(|(name, held)| held.then_some(name))
    .collect()
}

/// Whether the kernel lets it lift the limit: it asks for the capability over the guest.
fn lifts(report: &MemlockReport) -> bool {
    report.ipc_lock.effective && !report.user_namespace
}

fn capability(report: &MemlockReport) -> String {
    let sets = sets(&report.ipc_lock);
    let held = if sets.is_empty() {
        "held in no set".to_owned()
    } else {
        format!("held: {}", sets.join(", "))
    };
    let effect = match &*report.ipc_lock {
        _ if lifts(report) => "effective: no limit counts",
        IpcLockSets { effective: true, .. } => "effective in its user namespace only, which perf does not ask",
        IpcLockSets { permitted: true, .. } => "not effective: the program would have to raise it",
        _ => "not effective",
    };
    format!("{effect} ({held})")
}

fn kib(bytes: u64) -> String {
    format!("{} KiB", bytes / 1024)
}

fn outcome(attempt: &MemlockAttempt) -> String {
    if attempt.granted {
        return "granted".to_owned();
    }
    let errno = i32::try_from(attempt.errno).unwrap_or(i32::MAX);
    format!("refused: {}", std::io::Error::from_raw_os_error(errno))
}

pub(super) fn text(question: &Question, info: &SandboxInfo, response: &MemlockResponse) -> String {
    let report = &response.report;
    let mut lines = vec![
        (
            "container",
            format!(
                "{} in sandbox {}, namespace {}",
                question.container, info.sandbox_id, info.namespace
            ),
        ),
        (
            "process",
            format!(
                "{} ({}), uid {}, gid {}",
                report.pid, report.command, report.uid, report.gid
            ),
        ),
        (
            "RLIMIT_MEMLOCK",
            format!(
                "soft {}, hard {}",
                LockLimit::from_rlimit(report.soft_limit),
                LockLimit::from_rlimit(report.hard_limit)
            ),
        ),
        (
            "in use",
            format!(
                "VmLck {}, VmPin {}, VmRSS {}",
                kib(report.locked),
                kib(report.pinned),
                kib(report.resident)
            ),
        ),
        ("CAP_IPC_LOCK", capability(report)),
        ("perf allowance", allowance(report)),
    ];
    if let Some(probe) = report.probe.as_ref() {
        let bytes = probe.needed.saturating_mul(report.page_size.into());
        lines.push((
            "probe",
            format!(
                "{} pages and a header on each of {} CPUs, {} in all: {}",
                probe.pages,
                report.online_cpus,
                kib(bytes),
                outcome(&probe.as_is)
            ),
        ));
        if !probe.open.granted {
            let says = format!(
                "the user may not open events (kernel.perf_event_paranoid = {}): {}",
                report.perf_event_paranoid,
                outcome(&probe.open)
            );
            lines.push(("", says));
        }
    }
    if report.seccomp {
        let says = "a seccomp filter is in force, which may forbid perf_event_open and bpf; the probe ran without it";
        lines.push(("seccomp", says.to_owned()));
    }
    let mut text = String::new();
    for (name, value) in lines {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name:<16}{value}");
    }
    for remedy in refused(response) {
        let helps = if remedy.helps { "would help" } else { "would not help" };
        let _ = writeln!(text, "\n{}: {helps} ({})", remedy.name, remedy.needed);
        for (at, set) in remedy.set.iter().filter(|_| remedy.helps).enumerate() {
            let _ = writeln!(text, "  {} {set}", if at == 0 { "set" } else { " or" });
        }
        for note in &remedy.notes {
            let _ = writeln!(text, "  note: {note}");
        }
    }
    text
}

fn allowance(report: &MemlockReport) -> String {
    let page = u64::from(report.page_size.max(1024)) / 1024;
    let whole = u64::from(report.perf_event_mlock_kb) / page * page;
    let all = whole.saturating_mul(report.online_cpus.into());
    let left = report.probe.as_ref().map_or_else(String::new, |probe| {
        let left = probe.allowance_left.saturating_mul(report.page_size.into());
        let more = if probe.allowance_left >= probe.needed {
            "at least "
        } else {
            ""
        };
        format!(", of which {more}{} are left", kib(left))
    });
    format!(
        "{whole} KiB on each of {} CPUs: {all} KiB for all processes of uid {}{left}",
        report.online_cpus, report.uid
    )
}

/// The remedies, where the probe was refused.
fn refused(response: &MemlockResponse) -> Vec<remedies::Remedy> {
    match response.report.probe.as_ref() {
        Some(probe) if !probe.as_is.granted => remedies::all(&response.report, probe, &response.policy),
        Some(_) | None => Vec::new(),
    }
}

fn limit(bytes: u64) -> Value {
    if bytes == u64::MAX {
        json!("unlimited")
    } else {
        json!(bytes)
    }
}

pub(super) fn json(question: &Question, info: &SandboxInfo, response: &MemlockResponse) -> String {
    let report = &response.report;
    let probe = report.probe.as_ref().map(|probe| {
        let remedies = refused(response).into_iter().map(|remedy| {
            json!({
                "name": remedy.name, "helps": remedy.helps, "needed": remedy.needed, "set": remedy.set,
                "notes": remedy.notes,
            })
        });
        json!({
            "pages": probe.pages,
            "needed_pages": probe.needed,
            "allowance_left_pages": probe.allowance_left,
            "granted": probe.as_is.granted,
            "errno": probe.as_is.errno,
            "mapped_pages": probe.as_is.mapped,
            "user_may_open": probe.open.granted,
            "remedies": remedies.collect::<Vec<_>>(),
        })
    });
    let value = json!({
        "namespace": info.namespace,
        "sandbox": info.sandbox_id,
        "container": question.container,
        "pid": report.pid,
        "command": report.command,
        "uid": report.uid,
        "gid": report.gid,
        "rlimit_memlock": { "soft": limit(report.soft_limit), "hard": limit(report.hard_limit) },
        "vm_lck": report.locked,
        "vm_pin": report.pinned,
        "vm_rss": report.resident,
        "cap_ipc_lock": { "sets": sets(&report.ipc_lock), "lifts_the_limit": lifts(report) },
        "user_namespace": report.user_namespace,
        "seccomp": report.seccomp,
        "perf_event_mlock_kb": report.perf_event_mlock_kb,
        "perf_event_paranoid": report.perf_event_paranoid,
        "online_cpus": report.online_cpus,
        "page_size": report.page_size,
        "probe": probe,
    });
    format!("{value:#}\n")
}
