//! Hooks, and what becomes of a launch that hangs in one.

use std::{os::unix::fs::PermissionsExt, path::PathBuf, time::Duration};

use nix::{
    errno::Errno,
    sys::wait::{WaitStatus, waitpid},
};
use serde_json::{Value, json};
use tatami_agent::launch::{LaunchError, Target};

use crate::bench::{Bench, piped};

/// A hook that is a script of this machine, below the image's root.
fn hook(bench: &Bench, name: &str, script: &str) -> PathBuf {
    let path = bench.image.path().join("rootfs").join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
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
async fn hooks_run_in_order_where_they_belong_and_are_told_the_state() {
    let bench = Bench::new();
    let log = bench.image.path().join("rootfs/log");
    let create = hook(
        &bench,
        "create",
        &format!("(echo create; cat; echo) >>{}", log.display()),
    );
    let second = hook(&bench, "second", &format!("echo $0 $1 $WORD >>{}", log.display()));
    hook(&bench, "start", "(echo start $(pwd); cat; echo) >>/log");
    let hooks = json!({
        "createContainer": [{ "path": create }, { "path": second, "args": ["name", "argument"], "env": ["WORD=word"] }],
        "startContainer": [{ "path": "/start" }],
    });
    let (text, code) = launch(&bench, hooks).await.unwrap();
    assert_eq!(code, 0, "{text}");
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 5, "{text}");
    assert_eq!((lines[0], lines[3]), ("create", "start /made/here"), "{text}");
    assert!(lines[2].ends_with("argument word"), "{text}");
    let created: Value = serde_json::from_str(lines[1]).unwrap();
    let started: Value = serde_json::from_str(lines[4]).unwrap();
    assert_eq!(
        (&created["id"], &created["status"]),
        (&json!("box"), &json!("creating"))
    );
    assert_eq!((&started["id"], &started["status"]), (&json!("box"), &json!("created")));
}

#[tokio::test]
async fn a_hook_may_ignore_a_state_that_no_pipe_holds() {
    let bench = Bench::new();
    let path = hook(&bench, "ignores", "exit 0");
    let spec = bench.spec("echo ran", |spec| {
        spec["annotations"] = json!({ "large": "x".repeat(200 << 10) });
        spec["hooks"] = json!({ "createContainer": [{ "path": path }] });
    });
    let (text, code) = bench.run(Target::Container { spec, join: Vec::new() }).await.unwrap();
    assert_eq!((text.as_str(), code), ("ran\n", 0));
}

#[tokio::test]
async fn a_hook_that_fails_or_takes_too_long_ends_the_launch() {
    let bench = Bench::new();
    let fails = hook(&bench, "fails", "echo the reason >&2; exit 3");
    let error = launch(&bench, json!({ "createContainer": [{ "path": fails }] }))
        .await
        .unwrap_err();
    assert!(
        matches!(&error, LaunchError::Refused(text) if text.contains("createContainer hook") && text.ends_with("3, stderr: the reason")),
        "{error}"
    );
    let hangs = hook(&bench, "hangs", "exec sleep 1000");
    let error = launch(&bench, json!({ "createContainer": [{ "path": hangs, "timeout": 1 }] }))
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
        let hangs = hook(
            &bench,
            "hangs",
            &format!("echo >{}; exec sleep 1000", running.display()),
        );
        let spec = bench.spec("true", |spec| {
            spec["hooks"] = json!({ "createContainer": [{ "path": hangs }] });
            if !namespaces {
                let list = spec["linux"]["namespaces"].as_array_mut().unwrap();
                list.retain(|namespace| namespace["type"] != "pid");
            }
        });
        let hook_runs = tokio::task::spawn_blocking(move || std::fs::read(running));
        let (_output, stdio) = piped();
        let launching = bench.launch(Target::Container { spec, join: Vec::new() }, stdio);
        tokio::select! {
            launched = launching => panic!("the hook ended: {launched:?}"),
            runs = hook_runs => drop(runs.unwrap().unwrap()),
        }
        everything_ends().await;
    }
}
