//! The program as containerd calls it, without a VM.
// A test fails by a panic, in its helpers, too.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::types::introspection::RuntimeInfo;
use node::hooks::{HookState, PoststopHooks};
use node::process::ProcessRef;
use node::run_dir::{RunDir, SandboxState};
use protobuf::Message;
use shim::id::{Namespace, SandboxId};

fn shim(bundle: &Path, words: &[&str]) -> io::Result<Output> {
    Command::new(env!("CARGO_BIN_EXE_containerd-shim-kata-v2"))
        .args(words)
        .current_dir(bundle)
        .stdin(Stdio::null())
        .output()
}

#[test]
fn the_version_is_for_people_and_the_info_for_containerd() {
    let bundle = tempfile::tempdir().unwrap();
    let output = shim(bundle.path(), &["-v"]).unwrap();
    assert!(
        String::from_utf8(output.stdout)
            .unwrap()
            .contains(env!("CARGO_PKG_VERSION"))
    );
    let output = shim(bundle.path(), &["-info"]).unwrap();
    let info = RuntimeInfo::parse_from_bytes(&output.stdout).unwrap();
    assert_eq!(info.name, "io.containerd.kata.v2");
    assert!(output.status.success() && output.stderr.is_empty());
    let features = info.features.into_option().unwrap();
    assert_eq!(
        features.type_url,
        "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
    );
    let features: oci_spec::runtime::Features = serde_json::from_slice(&features.value).unwrap();
    assert!(features.mount_options().as_ref().unwrap().contains(&"rro".to_owned()));
}

#[test]
fn a_delete_of_what_never_was_answers_137_and_may_be_repeated() {
    let bundle = tempfile::tempdir().unwrap();
    let words = [
        "-namespace",
        "default",
        "-address",
        "/c",
        "-publish-binary",
        "/b",
        "-id",
        "never",
        "-bundle",
    ];
    let path = bundle.path().to_str().unwrap();
    for _ in 0..2 {
        let output = shim(bundle.path(), &[&words[..], &[path, "delete"]].concat()).unwrap();
        let answer = DeleteResponse::parse_from_bytes(&output.stdout).unwrap();
        assert_eq!(answer.exit_status, 137);
        assert!(answer.exited_at.seconds > 0);
        assert!(output.status.success() && output.stderr.is_empty());
    }
}

#[test]
fn a_start_without_a_bundle_fails_with_the_path() {
    let bundle = tempfile::tempdir().unwrap();
    let output = shim(
        bundle.path(),
        &["-namespace", "default", "-address", "/c", "-id", "nothing", "start"],
    )
    .unwrap();
    assert!(!output.status.success() && output.stdout.is_empty());
    assert!(String::from_utf8(output.stderr).unwrap().contains("config.json"));
}

/// A sandbox's directory of this test alone, below the real root.
fn run_dir(name: &str) -> (String, RunDir) {
    let id = format!("{name}-{}", std::process::id());
    let run_dir = RunDir::of(&Namespace::new("command-line").unwrap(), &SandboxId::new(&id).unwrap());
    (id, run_dir)
}

#[test]
fn a_delete_does_not_wait_for_hooks_that_are_slow_and_they_run_all_the_same() {
    let bundle = tempfile::tempdir().unwrap();
    let (id, run_dir) = run_dir("hooks");
    run_dir.create().unwrap();
    let ran = bundle.path().join("ran");
    let script = format!("sleep 3; echo ran >> {}", ran.display());
    let hook = serde_json::json!({ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"] });
    let hooks = serde_json::from_value(serde_json::json!({ "poststop": [hook, hook] })).unwrap();
    let state = HookState {
        oci_version: "1.0.2".into(),
        id: id.clone(),
        status: "running".into(),
        pid: 1,
        bundle: bundle.path().to_owned(),
        annotations: HashMap::new(),
    };
    PoststopHooks::below(run_dir.path()).record(&hooks, &state).unwrap();
    let words = ["-namespace", "command-line", "-id", &id, "-bundle"];
    let path = bundle.path().to_str().unwrap();
    let output = shim(bundle.path(), &[&words[..], &[path, "delete"]].concat()).unwrap();
    assert!(output.status.success() && output.stderr.is_empty());
    assert!(!ran.exists() && !run_dir.path().exists());
    let end = Instant::now() + Duration::from_secs(60);
    while run_dir.handed_over_hooks().exists() {
        assert!(Instant::now() < end, "the hooks do not end");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(std::fs::read_to_string(ran).unwrap(), "ran\nran\n");
}

#[test]
fn a_start_that_cannot_leave_its_address_leaves_no_server() {
    let bundle = tempfile::tempdir().unwrap();
    std::fs::write(bundle.path().join("config.json"), "{}").unwrap();
    // A directory that nothing can be renamed to.
    std::fs::create_dir_all(bundle.path().join("address/in-the-way")).unwrap();
    let (id, run_dir) = run_dir("address");
    let output = shim(bundle.path(), &["-namespace", "command-line", "-id", &id, "start"]).unwrap();
    assert!(!output.status.success() && output.stdout.is_empty());
    assert!(String::from_utf8(output.stderr).unwrap().contains("address"));
    assert!(!run_dir.path().exists());
    no_server_is_left(&id);
}

#[test]
fn a_start_whose_answer_nobody_takes_leaves_no_server() {
    let bundle = tempfile::tempdir().unwrap();
    std::fs::write(bundle.path().join("config.json"), "{}").unwrap();
    let (id, run_dir) = run_dir("answer");
    let output = Command::new(env!("CARGO_BIN_EXE_containerd-shim-kata-v2"))
        .args(["-namespace", "command-line", "-id", &id, "start"])
        .current_dir(bundle.path())
        .stdin(Stdio::null())
        .stdout(std::fs::File::options().write(true).open("/dev/full").unwrap())
        .output()
        .unwrap();
    assert!(!output.status.success());
    no_server_is_left(&id);
    assert!(!run_dir.path().exists());
}

/// Waits until no process has this id among its arguments: what a server had forked dies after it, by a signal of its own.
fn no_server_is_left(id: &str) {
    let servers = || {
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        entries
            .filter(|entry| {
                let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
                String::from_utf8_lossy(&line).contains(id)
            })
            .count()
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    while servers() > 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(servers(), 0);
}

fn sleeper() -> Child {
    Command::new("sleep").arg("600").spawn().unwrap()
}

fn reference(process: &Child) -> ProcessRef {
    ProcessRef::of(process.id().try_into().unwrap()).unwrap()
}

/// Makes the directory of a sandbox that these processes are recorded for.
fn record(run_dir: &RunDir, id: &str, shim: Option<ProcessRef>, vm: Vec<ProcessRef>) {
    run_dir.create().unwrap();
    let namespace = Namespace::new("command-line").unwrap();
    let mut state = SandboxState::new(&namespace, &SandboxId::new(id).unwrap());
    state.shim = shim;
    state.vm = vm;
    run_dir.write_state(&state).unwrap();
}

/// containerd kills a `delete` after 5 s.
#[test]
fn a_delete_of_the_last_container_removes_a_sandbox_whose_server_hangs() {
    let bundle = tempfile::tempdir().unwrap();
    let (id, run_dir) = run_dir("hangs");
    let mut vmm = sleeper();
    record(&run_dir, &id, None, vec![reference(&vmm)]);
    let _never_accepts = std::os::unix::net::UnixListener::bind(run_dir.socket()).unwrap();
    run_dir.mark_joined().unwrap();
    let own = bundle.path().join("own");
    std::fs::create_dir(&own).unwrap();
    std::fs::write(own.join("address"), run_dir.address()).unwrap();
    let path = own.to_str().unwrap();
    let words = ["-namespace", "command-line", "-id", &id, "-bundle", path, "delete"];
    let began = Instant::now();
    shim(&own, &words).unwrap();
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    assert!(!vmm.wait().unwrap().success());
    assert!(!run_dir.path().exists());
}

/// It can be connected to until the kernel has closed its socket. The bundle of another container of the sandbox is there meanwhile.
#[test]
fn a_delete_removes_a_sandbox_whose_server_is_just_being_killed() {
    let bundles = tempfile::tempdir().unwrap();
    let (id, run_dir) = run_dir("dying");
    let mut server = sleeper();
    record(&run_dir, &id, Some(reference(&server)), Vec::new());
    run_dir.mark_joined().unwrap();
    for bundle in ["own", "other"] {
        let bundle = bundles.path().join(bundle);
        std::fs::create_dir(&bundle).unwrap();
        std::fs::write(bundle.join("address"), run_dir.address()).unwrap();
    }
    let listener = std::os::unix::net::UnixListener::bind(run_dir.socket()).unwrap();
    let dies = std::thread::spawn(move || {
        // The look whether it is there, and the first request.
        for _ in 0..2 {
            drop(listener.accept().unwrap());
        }
        server.kill().unwrap();
        server.wait().unwrap();
        drop(listener);
    });
    let own = bundles.path().join("own");
    let path = own.to_str().unwrap();
    shim(
        &own,
        &["-namespace", "command-line", "-id", &id, "-bundle", path, "delete"],
    )
    .unwrap();
    dies.join().unwrap();
    assert!(!run_dir.path().exists());
}

#[test]
fn a_delete_answers_the_pid_that_stood_for_the_sandbox() {
    let bundle = tempfile::tempdir().unwrap();
    let (id, run_dir) = run_dir("pid");
    let mut vmm = sleeper();
    record(&run_dir, &id, None, vec![reference(&vmm)]);
    let output = shim(bundle.path(), &["-namespace", "command-line", "-id", &id, "delete"]).unwrap();
    assert_eq!(DeleteResponse::parse_from_bytes(&output.stdout).unwrap().pid, vmm.id());
    assert!(!vmm.wait().unwrap().success());
}
