//! Hooks, and what becomes of a launch that hangs in one.
#![expect(
    clippy::disallowed_methods,
    reason = "a test's process ends with it, whatever hangs, and the agent's own function is not in its library"
)]

use std::{os::unix::fs::PermissionsExt, time::Duration};

use nix::{
    errno::Errno,
    sys::wait::{WaitStatus, waitpid},
};
use serde_json::{Value, json};
use tatami_agent::launch::{LaunchError, Target};

use crate::bench::{Bench, piped};

/// A hook that is a script of the image.
fn hook(bench: &Bench, name: &str, script: &str) {
    let path = bench.image.path().join("rootfs").join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

async fn launch(bench: &Bench, hooks: Value) -> Result<(String, i32), LaunchError> {
    let spec = bench.spec("cat /log", |spec| spec["hooks"] = hooks);
    bench.run(Target::Container { spec, join: Vec::new() }).await
}

/// Reaps until there is nothing left: whoever was started and not killed would be waited for for ever.
async fn everything_ends() {
    let reaped = tokio::task::spawn_blocking(|| {
        loop {
            match waitpid(None, None) {
                Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) => {}
                other => return other,
            }
        }
    });
    let last = tokio::time::timeout(Duration::from_secs(10), reaped).await;
    assert_eq!(last.unwrap().unwrap(), Err(Errno::ECHILD));
}

#[tokio::test]
async fn hooks_run_in_order_in_the_container_and_are_told_the_state() {
    let bench = Bench::new();
    hook(&bench, "start", "(echo start $(pwd); cat; echo) >>/log");
    hook(&bench, "second", "echo $0 $1 $WORD >>/log");
    let hooks = json!({
        "startContainer": [{ "path": "/start" }, { "path": "/second", "args": ["name", "argument"], "env": ["WORD=word"] }],
    });
    let (text, code) = launch(&bench, hooks).await.unwrap();
    assert_eq!(code, 0, "{text}");
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert_eq!(lines[0], "start /made/here", "{text}");
    assert!(lines[2].ends_with("argument word"), "{text}");
    let started: Value = serde_json::from_str(lines[1]).unwrap();
    assert_eq!((&started["id"], &started["status"]), (&json!("box"), &json!("created")));
    assert_eq!(started["bundle"], "/run/bundle", "the host's");
}

#[tokio::test]
async fn a_hook_that_names_no_environment_has_the_programs() {
    let bench = Bench::new();
    hook(&bench, "start", "env | grep -c -E '^(HOME|WORD)=' >>/log; true");
    let spec = bench.spec("cat /log", |spec| {
        spec["process"]["env"] = json!(["PATH=/bin", "WORD=word"]);
        spec["hooks"] = json!({ "startContainer": [{ "path": "/start" }, { "path": "/start", "env": [] }] });
    });
    let (text, _) = bench.run(Target::Container { spec, join: Vec::new() }).await.unwrap();
    assert_eq!(text, "2\n0\n");
}

#[tokio::test]
async fn a_hook_is_confined_like_the_process_that_it_precedes() {
    let bench = Bench::new();
    hook(
        &bench,
        "start",
        "(mkdir /tmp/x; id -u; grep -E 'Seccomp:|CapEff|CapBnd' /proc/self/status; grep ^0: /proc/self/cgroup) >/log 2>&1; exit 0",
    );
    std::fs::write(bench.image.path().join("rootfs/log"), "").unwrap();
    let log = bench.image.path().join("rootfs/log");
    std::fs::set_permissions(&log, std::fs::Permissions::from_mode(0o666)).unwrap();
    let spec = bench.spec("cat /log", |spec| {
        spec["hooks"] = json!({ "startContainer": [{ "path": "/start" }] });
        spec["process"]["user"] = json!({ "uid": 1000, "gid": 100 });
        // What the hook's own start needs is denied, too, where only our side calls it.
        let denied = json!(["mkdir", "mkdirat", "memfd_create", "pidfd_open", "ppoll", "prctl"]);
        spec["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{ "names": denied, "action": "SCMP_ACT_ERRNO", "errnoRet": 38 }] });
    });
    let (text, code) = bench.run(Target::Container { spec, join: Vec::new() }).await.unwrap();
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("Function not implemented"), "{text}");
    assert!(text.contains("\n1000\n") && text.contains("Seccomp:\t2"), "{text}");
    assert!(
        text.contains("CapEff:\t0000000000000000") && text.contains("CapBnd:\t0000000000000001"),
        "{text}"
    );
    assert!(text.ends_with("0::/\n"), "{text}");
}

#[tokio::test]
async fn a_hook_may_ignore_a_state_that_no_pipe_holds() {
    let bench = Bench::new();
    hook(&bench, "ignores", "exit 0");
    let spec = bench.spec("echo ran", |spec| {
        spec["annotations"] = json!({ "large": "x".repeat(200 << 10) });
        spec["hooks"] = json!({ "startContainer": [{ "path": "/ignores" }] });
    });
    let (text, code) = bench.run(Target::Container { spec, join: Vec::new() }).await.unwrap();
    assert_eq!((text.as_str(), code), ("ran\n", 0));
}

#[tokio::test]
async fn a_hook_that_fails_or_takes_too_long_ends_the_launch() {
    let bench = Bench::new();
    hook(&bench, "fails", "echo the reason >&2; exit 3");
    let error = launch(&bench, json!({ "startContainer": [{ "path": "/fails" }] }))
        .await
        .unwrap_err();
    assert!(
        matches!(&error, LaunchError::Refused(text) if text.contains("startContainer hook") && text.ends_with("3, stderr: the reason")),
        "{error}"
    );
    hook(&bench, "hangs", "exec sleep 1000");
    let error = launch(
        &bench,
        json!({ "startContainer": [{ "path": "/hangs", "timeout": 1 }] }),
    )
    .await
    .unwrap_err();
    assert!(error.to_string().contains("did not end within 1 s"), "{error}");
    everything_ends().await;
}

#[tokio::test]
async fn a_launch_that_is_given_up_leaves_no_process() {
    for namespaces in [true, false] {
        let bench = Bench::new();
        let running = bench.image.path().join("rootfs/running");
        nix::unistd::mkfifo(&running, nix::sys::stat::Mode::S_IRWXU).unwrap();
        hook(&bench, "hangs", "echo >/running; exec sleep 1000");
        let spec = bench.spec("true", |spec| {
            spec["hooks"] = json!({ "startContainer": [{ "path": "/hangs" }] });
            if !namespaces {
                let list = spec["linux"]["namespaces"].as_array_mut().unwrap();
                list.retain(|namespace| namespace["type"] != "pid");
            }
        });
        let hook_runs = tokio::task::spawn_blocking(move || std::fs::read(running));
        let (_output, stdio) = piped();
        let launched = bench
            .launch(Target::Container { spec, join: Vec::new() }, stdio)
            .await
            .unwrap();
        tokio::select! {
            opened = launched.gate.open() => panic!("the hook ended: {opened:?}"),
            runs = hook_runs => drop(runs.unwrap().unwrap()),
        }
        everything_ends().await;
    }
}
