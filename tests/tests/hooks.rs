//! Hooks run where and when the OCI runtime specification says (config.md, POSIX-platform hooks).

use std::{fs, path::Path, time::Duration};

use framework::{Node, Result, wait};
use serde_json::{Value, json};

/// A hook of the host: it notes its name and the state that it is given on its standard input.
fn note(dir: &Path, name: &str) -> Value {
    let script = format!("{{ echo {name}; cat; echo; }} >> {}/{name}", dir.display());
    json!({ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"] })
}

#[test]
fn hooks_of_the_host_run_on_the_host_and_are_given_the_state() -> Result<()> {
    let node = Node::start()?;
    let notes = node.dir().join("notes");
    fs::create_dir(&notes)?;
    let spec = node
        .spec("hooks", &["true"])?
        .push("/hooks/prestart", note(&notes, "prestart"))?
        .push("/hooks/createRuntime", note(&notes, "createRuntime"))?
        .push("/hooks/poststart", note(&notes, "poststart"))?
        .push("/hooks/poststop", note(&notes, "poststop"))?;
    node.run_spec("hooks", &spec)?.arg("--rm").ok()?;
    for name in ["prestart", "createRuntime", "poststart", "poststop"] {
        let text = wait::content(&notes, name, Duration::from_secs(30), |text| text.ends_with("}\n"))?;
        let state = text.strip_prefix(&format!("{name}\n")).unwrap_or_default();
        let state: Value = serde_json::from_str(state)?;
        assert_eq!(state["id"], node.id("hooks"), "{name}: {state}");
        assert!(
            state["bundle"].as_str().is_some_and(|bundle| !bundle.is_empty()),
            "{name}: {state}"
        );
        assert!(state["ociVersion"].is_string(), "{name}: {state}");
        if name == "poststop" {
            assert_eq!(state["status"], "stopped", "{state}");
        } else {
            assert!(state["pid"].as_u64().is_some_and(|pid| pid > 0), "{name}: {state}");
        }
    }
    node.nothing_left()
}

#[test]
fn a_start_container_hook_runs_in_the_container_before_its_program() -> Result<()> {
    let node = Node::start()?;
    let hook = json!({ "path": "/bin/sh", "args": ["sh", "-c", "echo hook > /tmp/order"], "env": ["PATH=/bin"] });
    let spec = node
        .spec("inside", &["sh", "-c", "echo program >> /tmp/order; cat /tmp/order"])?
        .push("/hooks/startContainer", hook)?;
    assert_eq!(node.run_spec("inside", &spec)?.arg("--rm").ok()?, "hook\nprogram\n");
    node.nothing_left()
}

#[test]
fn a_hook_that_fails_fails_the_create() -> Result<()> {
    let node = Node::start()?;
    let hook = json!({ "path": "/bin/sh", "args": ["sh", "-c", "echo the reason >&2; exit 3"] });
    let spec = node
        .spec("bad", &["echo", "must not run"])?
        .push("/hooks/createRuntime", hook)?;
    let output = node.run_spec("bad", &spec)?.arg("--rm").output()?;
    assert_eq!(output.stdout(), "");
    let said = output.failure()?;
    assert!(said.contains("hook") && said.contains('3'), "{said}");
    node.discard("bad")?;
    node.nothing_left()
}
