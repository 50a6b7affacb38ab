//! Tests of the output for given answers, and of finding a sandbox.

use protocol::agent::{IpcLockSets, MemlockAttempt, MemlockProbe, MemlockReport};
use protocol::diagnostics::MemlockPolicy;

use super::*;

fn question() -> Question {
    Question {
        container: "app".to_owned(),
        namespace: None,
        pid: None,
        pages: 256,
        json: false,
    }
}

fn info() -> SandboxInfo {
    SandboxInfo {
        namespace: "k8s.io".to_owned(),
        sandbox_id: "pod".to_owned(),
        ..Default::default()
    }
}

fn attempt(errno: u32) -> MemlockAttempt {
    MemlockAttempt {
        granted: errno == 0,
        errno,
        ..Default::default()
    }
}

/// A process of uid 1000 whose buffers are refused, in a guest with the shipped configuration.
fn refused() -> MemlockResponse {
    let probe = MemlockProbe {
        pages: 256,
        needed: 257,
        allowance_left: 129,
        as_is: Some(attempt(1)).into(),
        with_limit: Some(attempt(0)).into(),
        with_capability: Some(attempt(0)).into(),
        with_sysctl: Some(attempt(0)).into(),
        limit_needed: 128 * 4096,
        kb_needed: 1028,
        open: Some(attempt(0)).into(),
        ..Default::default()
    };
    let report = MemlockReport {
        pid: 71,
        command: "bpf-agent".to_owned(),
        uid: 1000,
        gid: 1000,
        soft_limit: 65536,
        hard_limit: u64::MAX,
        resident: 4 << 20,
        ipc_lock: Some(IpcLockSets {
            bounding: true,
            ..Default::default()
        })
        .into(),
        perf_event_mlock_kb: 516,
        perf_event_paranoid: 2,
        online_cpus: 1,
        page_size: 4096,
        probe: Some(probe).into(),
        ..Default::default()
    };
    MemlockResponse {
        report: Some(report).into(),
        policy: Some(MemlockPolicy {
            default_bytes: 8 << 20,
            max_bytes: u64::MAX,
            memlock_annotation: true,
            cap_ipc_lock: "spec".to_owned(),
            cap_ipc_lock_annotation: true,
            limit_from: "configuration".to_owned(),
            ..Default::default()
        })
        .into(),
        ..Default::default()
    }
}

#[test]
fn a_refusal_names_each_remedy_and_the_exact_key() {
    let expected = "\
container       app in sandbox pod, namespace k8s.io
process         71 (bpf-agent), uid 1000, gid 1000
RLIMIT_MEMLOCK  soft 64KiB, hard unlimited
in use          VmLck 0 KiB, VmPin 0 KiB, VmRSS 4096 KiB
CAP_IPC_LOCK    not effective (held: bounding)
perf allowance  516 KiB on each of 1 CPUs: 516 KiB for all processes of uid 1000, of which 516 KiB are left
probe           256 pages and a header on each of 1 CPUs, 1028 KiB in all: refused: Operation not permitted (os error 1)

limit: would help (RLIMIT_MEMLOCK of 524288 bytes)
  set annotation io.katacontainers.container.resource.memlock = \"1MiB\"
   or [runtime.memlock] default = \"1MiB\"
   or RLIMIT_MEMLOCK = 1048576 in the specification (docker run --ulimit memlock=1048576)

capability: would help (CAP_IPC_LOCK, effective)
  set annotation io.katacontainers.container.cap_ipc_lock = \"ambient\"
   or [runtime.cap_ipc_lock] policy = \"grant\" and ambient = true

sysctl: would help (kernel.perf_event_mlock_kb of 1028)
  set [runtime.memlock] perf_event_mlock_kb = 1028
  note: for every user of the whole sandbox, which has 516 now
";
    assert_eq!(show::text(&question(), &info(), &refused()), expected);
}

#[test]
fn what_the_configuration_forbids_is_not_recommended() {
    let mut response = refused();
    let policy = response.policy.as_mut().unwrap();
    policy.memlock_annotation = false;
    policy.max_bytes = 4096;
    policy.cap_ipc_lock = "drop".to_owned();
    let remedies = remedies::all(&response.report, &response.report.probe, &response.policy);
    assert_eq!(remedies[0].set[0], "[runtime.memlock] default = \"1MiB\"");
    assert!(
        remedies[0]
            .notes
            .iter()
            .any(|note| note == "[runtime.memlock] max = \"4KiB\" must be raised first")
    );
    assert_eq!(
        remedies[1].set,
        ["[runtime.cap_ipc_lock] policy = \"grant\" and ambient = true"]
    );
    assert!(remedies[1].notes[0].starts_with("no annotation can undo"));
}

/// What is to be set for the limit and for the capability, by the first words of each, and all notes.
fn recommended(policy: &MemlockPolicy) -> [Vec<String>; 3] {
    let response = refused();
    let remedies = remedies::all(&response.report, &response.report.probe, policy);
    let notes = remedies.iter().take(2).flat_map(|remedy| remedy.notes.clone());
    [remedies[0].set.clone(), remedies[1].set.clone(), notes.collect()]
}

#[test]
fn a_place_that_would_be_overruled_is_not_recommended() {
    let annotation = "annotation io.katacontainers.container.resource.memlock = \"1MiB\"";
    let specification = "RLIMIT_MEMLOCK = 1048576 in the specification (docker run --ulimit memlock=1048576)";
    let ambient = "annotation io.katacontainers.container.cap_ipc_lock = \"ambient\"";
    let shipped = refused().policy.unwrap_or_default();
    for (from, expected) in [
        ("specification", &[specification][..]),
        ("container", &[annotation, specification]),
        ("pod", &[annotation, specification]),
    ] {
        let [limit, _, notes] = recommended(&MemlockPolicy {
            limit_from: from.to_owned(),
            ..shipped.clone()
        });
        assert_eq!(
            (limit, notes.len()),
            (expected.iter().map(ToString::to_string).collect(), 1)
        );
        assert!(notes[0].contains(from), "{notes:?}");
    }
    for (container, pod, note) in [
        (
            "spec",
            "",
            "the container's annotation says \"spec\" now, which comes before the configuration",
        ),
        (
            "",
            "drop",
            "the pod's annotation says \"drop\" now, and must not any more",
        ),
    ] {
        let said = MemlockPolicy {
            container_cap_ipc_lock: container.to_owned(),
            pod_cap_ipc_lock: pod.to_owned(),
            ..shipped.clone()
        };
        let [_, capability, notes] = recommended(&said);
        assert_eq!((capability, notes), (vec![ambient.to_owned()], vec![note.to_owned()]));
        let [_, capability, notes] = recommended(&MemlockPolicy {
            cap_ipc_lock: "drop".to_owned(),
            ..said
        });
        assert_eq!(
            capability,
            [format!("[runtime.cap_ipc_lock] policy = \"grant\", and {ambient}")]
        );
        assert_eq!((notes.len(), notes[1].as_str()), (2, note));
    }
}

#[test]
fn a_limit_is_rounded_up_unless_the_ceiling_lies_between() {
    let shipped = refused().policy.unwrap_or_default();
    let [limit, _, notes] = recommended(&MemlockPolicy {
        max_bytes: 600_000,
        ..shipped
    });
    assert_eq!(
        limit[0],
        "annotation io.katacontainers.container.resource.memlock = \"512KiB\""
    );
    assert!(notes.is_empty(), "{notes:?}");
}

#[test]
fn root_needs_no_ambient_capability_and_a_user_namespace_makes_it_useless() {
    let mut response = refused();
    let report = response.report.as_mut().unwrap();
    report.uid = 0;
    report.user_namespace = true;
    report.probe.as_mut().unwrap().with_capability = Some(attempt(1)).into();
    let text = show::text(&question(), &info(), &response);
    assert!(text.contains("capability: would not help (CAP_IPC_LOCK, effective)\n  note: the process is in a user"));
    let remedies = remedies::all(&response.report, &response.report.probe, &response.policy);
    assert_eq!(
        remedies[1].set[0],
        "annotation io.katacontainers.container.cap_ipc_lock = \"grant\""
    );
}

#[test]
fn the_json_has_what_the_text_has() {
    let json: serde_json::Value = serde_json::from_str(&show::json(&question(), &info(), &refused())).unwrap();
    assert_eq!(
        json["rlimit_memlock"],
        serde_json::json!({ "soft": 65536, "hard": "unlimited" })
    );
    assert_eq!(json["cap_ipc_lock"]["sets"], serde_json::json!(["bounding"]));
    assert_eq!(
        (&json["probe"]["granted"], &json["probe"]["errno"]),
        (&false.into(), &1.into())
    );
    assert_eq!(json["probe"]["remedies"].as_array().unwrap().len(), 3);
}

#[test]
fn an_answer_of_the_guest_without_anything_in_it_is_shown_all_the_same() {
    let empty = MemlockResponse::new();
    assert!(show::text(&question(), &info(), &empty).contains("CAP_IPC_LOCK    not effective (held in no set)"));
    let mut huge = refused();
    let report = huge.report.as_mut().unwrap();
    (report.page_size, report.online_cpus, report.perf_event_mlock_kb) = (u32::MAX, u32::MAX, u32::MAX);
    let probe = report.probe.as_mut().unwrap();
    (probe.needed, probe.limit_needed, probe.allowance_left) = (u64::MAX, u64::MAX, u64::MAX);
    assert!(show::text(&question(), &info(), &huge).contains("\"unlimited\""));
}

#[tokio::test]
async fn a_container_that_no_sandbox_has_is_an_error_that_says_where_it_was_looked_for() {
    let root = tempfile::tempdir().unwrap();
    let nowhere = ask(&root.path().join("none"), &question())
        .await
        .unwrap_err()
        .to_string();
    assert!(
        nowhere.starts_with("no container app in any of 0 sandboxes in /"),
        "{nowhere}"
    );
    // A socket that nobody serves any more.
    let directory = root.path().join("dead");
    std::fs::create_dir(&directory).unwrap();
    drop(std::os::unix::net::UnixListener::bind(directory.join(protocol::SHIM_SOCKET)).unwrap());
    let silent = ask(root.path(), &question()).await.unwrap_err().to_string();
    assert!(silent.ends_with("/dead/shim.sock"), "{silent}");
}
