//! What is refused, and that nothing of it is left.

use serde_json::{Value, json};

use super::{
    bench::Bench,
    case::{Group, Seen, case},
};
use crate::Result;

pub(super) const GROUPS: &[Group] = &[Group {
    name: "refusals",
    cases: &[
        case("a-namespace-twice", "runc create.bats; runtime-tools linux_ns_itype"),
        case("a-relative-cwd", "runc cwd.bats"),
        case("no-arguments", "runtime-tools process; runc create.bats"),
        case("sysctl-of-the-hostname", "runtime-tools linux_sysctl"),
        case(
            "an-unknown-limit",
            "runtime-tools process_rlimits_fail; youki process_rlimits_fail; runc rlimits.bats",
        ),
        case("a-soft-limit-above-the-hard-one", "runc rlimits.bats"),
        case("a-hostname-without-its-namespace", "youki hostname; runc create.bats"),
        case(
            "an-effective-capability-that-is-not-permitted",
            "runtime-tools process_capabilities_fail; runc capabilities.bats",
        ),
        case("a-program-that-is-not-there", "runc start.bats; runc create.bats"),
        case("a-program-that-cannot-be-executed", "runc create.bats"),
        case("a-directory-as-the-program", "runc create.bats"),
        case(
            "a-user-namespace-path-that-is-not-there",
            "runtime-tools linux_ns_path; youki linux_ns_path",
        ),
        case("a-namespace-of-the-wrong-type", "runtime-tools linux_ns_path_type"),
        case(
            "mappings-without-a-user-namespace",
            "runc userns.bats; runtime-tools linux_uid_mappings",
        ),
        case("a-mount-of-an-unknown-file-system", "runc mounts.bats"),
        case("an-unknown-seccomp-action", "runc seccomp.bats"),
        case("an-unknown-scheduler", "runc scheduler.bats; youki scheduler"),
        case("a-scheduler-that-is-too-nice", "runc scheduler.bats"),
        case("an-io-priority-that-is-none", "runc ioprio.bats"),
        case("an-unknown-root-propagation", "runc create.bats"),
        case(
            "seccomp-that-notifies-nobody",
            "runc seccomp-notify.bats; youki seccomp_notify",
        ),
        case(
            "the-same-limit-twice-is-taken",
            "runc rlimits.bats; runtime-tools process_rlimits",
        ),
        case(
            "an-unknown-field-is-passed-over",
            "runtime-tools misc_props; youki misc_props",
        ),
        case(
            "an-annotation-is-passed-over",
            "runtime-tools misc_props; youki misc_props",
        ),
    ],
    run: refusals,
}];

/// A case, what is changed by JSON pointers, and a word of what is said.
type Wrong<'a> = (&'a str, &'a [(&'a str, Value)], &'a str);

fn namespaces(without: &str, more: &[Value]) -> Value {
    let kinds = ["pid", "ipc", "uts", "mount", "network"];
    let kept = kinds
        .iter()
        .filter(|kind| **kind != without)
        .map(|kind| json!({ "type": kind }));
    json!(kept.chain(more.iter().cloned()).collect::<Vec<_>>())
}

fn refusals(bench: &Bench, seen: &mut Seen) -> Result<()> {
    let limit = |kind: &str, soft: u32, hard: u32| json!([{ "type": kind, "soft": soft, "hard": hard }]);
    let path = |kind: &str, path: &str| namespaces(kind, &[json!({ "type": kind, "path": path })]);
    let one = json!([{ "containerID": 0, "hostID": 100_000, "size": 10 }]);
    let sets = json!({ "bounding": ["CAP_KILL"], "permitted": ["CAP_KILL"], "effective": ["CAP_KILL", "CAP_CHOWN"] });
    let filter = json!({ "defaultAction": "SCMP_ACT_NO_SUCH" });
    let notify = json!({ "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["mkdir"], "action": "SCMP_ACT_NOTIFY" }] });
    let cases: [Wrong<'_>; 19] = [
        (
            "a-namespace-twice",
            &[("/linux/namespaces", namespaces("", &[json!({ "type": "pid" })]))],
            "pid",
        ),
        ("a-relative-cwd", &[("/process/cwd", json!("tmp"))], "cwd"),
        ("no-arguments", &[("/process/args", json!([]))], "args"),
        (
            "sysctl-of-the-hostname",
            &[("/linux/sysctl", json!({ "kernel.hostname": "x" }))],
            "kernel.hostname",
        ),
        (
            "an-unknown-limit",
            &[("/process/rlimits", limit("RLIMIT_NO_SUCH", 1, 1))],
            "rlimit",
        ),
        (
            "a-soft-limit-above-the-hard-one",
            &[("/process/rlimits", limit("RLIMIT_NOFILE", 200, 100))],
            "rlimit",
        ),
        (
            "a-hostname-without-its-namespace",
            &[("/linux/namespaces", namespaces("uts", &[])), ("/hostname", json!("x"))],
            "uts",
        ),
        (
            "an-effective-capability-that-is-not-permitted",
            &[("/process/capabilities", sets)],
            "not permitted",
        ),
        (
            "a-program-that-is-not-there",
            &[("/process/args", json!(["/no/such/program"]))],
            "/no/such/program",
        ),
        (
            "a-program-that-cannot-be-executed",
            &[("/process/args", json!(["/etc/passwd"]))],
            "permission denied",
        ),
        (
            "a-directory-as-the-program",
            &[("/process/args", json!(["/etc"]))],
            "/etc",
        ),
        (
            "mappings-without-a-user-namespace",
            &[("/linux/uidMappings", one)],
            "mappings",
        ),
        (
            "a-mount-of-an-unknown-file-system",
            &[(
                "/mounts/5",
                json!({ "destination": "/x", "type": "no-such-fs", "source": "x" }),
            )],
            "no-such-fs",
        ),
        (
            "an-unknown-seccomp-action",
            &[("/linux/seccomp", filter)],
            "scmp_act_no_such",
        ),
        (
            "an-unknown-root-propagation",
            &[("/linux/rootfsPropagation", json!("lone"))],
            "rootfspropagation",
        ),
        (
            "a-scheduler-that-is-too-nice",
            &[("/process/scheduler", json!({ "policy": "SCHED_OTHER", "nice": 20 }))],
            "nice",
        ),
        (
            "an-io-priority-that-is-none",
            &[(
                "/process/ioPriority",
                json!({ "class": "IOPRIO_CLASS_BE", "priority": 8 }),
            )],
            "iopriority",
        ),
        (
            "seccomp-that-notifies-nobody",
            &[("/linux/seccomp", notify)],
            "listener",
        ),
        (
            "an-unknown-scheduler",
            &[("/process/scheduler", json!({ "policy": "SCHED_NO_SUCH" }))],
            "sched",
        ),
    ];
    for (case, changes, word) in cases {
        let said = bench.refusal(|spec| {
            changes
                .iter()
                .try_fold(spec, |spec, (pointer, value)| spec.set(pointer, value.clone()))
        })?;
        seen.has(case, &said, word);
    }
    // In a container that is in no pod: of a pod's container it would be the pod's namespace.
    let said = bench.refusal_alone(|spec| spec.set("/linux/namespaces", path("user", "/proc/self/ns/no-such")))?;
    seen.has("a-user-namespace-path-that-is-not-there", &said, "namespace");
    let said = bench.refusal_alone(|spec| spec.set("/linux/namespaces", path("ipc", "/proc/self/ns/uts")))?;
    seen.has("a-namespace-of-the-wrong-type", &said, "failed to create");
    let twice = json!([
        { "type": "RLIMIT_NOFILE", "soft": 100, "hard": 900 }, { "type": "RLIMIT_NOFILE", "soft": 200, "hard": 900 },
    ]);
    seen.same(
        "the-same-limit-twice-is-taken",
        bench.script("ulimit -n", |spec| spec.set("/process/rlimits", twice))?,
        "200\n",
    );
    let said = bench.script("echo runs", |spec| {
        spec.set("/noSuchField", json!({ "a": 1 }))?
            .set("/linux/noSuchField", true)
    })?;
    seen.same("an-unknown-field-is-passed-over", said, "runs\n");
    let said = bench.script("echo runs", |spec| spec.annotation("org.nobody.knows", "x"))?;
    seen.same("an-annotation-is-passed-over", said, "runs\n");
    Ok(())
}
