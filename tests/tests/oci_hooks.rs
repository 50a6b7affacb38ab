//! Hooks when something goes wrong: what was begun by one is undone by another, and a hook is confined like what it precedes.

use std::{fs, path::Path, time::Duration};

use framework::{Node, Result, wait};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// A hook of the host that appends a line to `notes` in a directory.
fn note(dir: &Path, line: &str) -> Value {
    let script = format!("echo {line} >> {}/notes", dir.display());
    json!({ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"] })
}

fn fails() -> Value {
    json!({ "path": "/bin/sh", "args": ["sh", "-c", "echo the reason >&2; exit 3"] })
}

fn notes(node: &Node) -> String {
    fs::read_to_string(node.dir().join("notes")).unwrap_or_default()
}

#[test]
fn poststop_hooks_run_once_after_a_create_that_failed() -> Result<()> {
    let node = Node::start()?;
    let dir = node.dir().to_owned();
    let spec = |name: &str, args: &[&str]| {
        node.spec(name, args)?
            .push("/hooks/createRuntime", note(&dir, &format!("{name}-made")))?
            .push("/hooks/poststop", note(&dir, &format!("{name}-undone")))
    };
    // A program that does not exist, and a later hook that fails.
    let missing = spec("missing", &["/no/such/program"])?;
    node.run_spec("missing", &missing)?.arg("--rm").fails()?;
    node.discard("missing")?;
    let later = spec("later", &["true"])?.push("/hooks/createRuntime", fails())?;
    node.run_spec("later", &later)?.arg("--rm").fails()?;
    node.discard("later")?;
    assert_eq!(notes(&node), "missing-made\nmissing-undone\nlater-made\nlater-undone\n");
    node.nothing_left()
}

#[test]
fn a_start_container_hook_is_confined_like_the_program() -> Result<()> {
    let node = Node::start()?;
    let script = "mkdir /tmp/hook 2>/dev/null && echo made > /tmp/log || echo denied > /tmp/log; id -u >> /tmp/log";
    let hook = json!({ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin"] });
    let spec = node
        .spec("confined", &["cat", "/tmp/log"])?
        .set("/process/user", json!({ "uid": 1000, "gid": 1000 }))?
        .push(
            "/mounts",
            json!({ "destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"] }),
        )?
        .set(
            "/linux/seccomp",
            json!({ "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO" }] }),
        )?
        .push("/hooks/startContainer", hook)?;
    assert_eq!(node.run_spec("confined", &spec)?.arg("--rm").ok()?, "denied\n1000\n");
    node.nothing_left()
}

mod kata_only {
    use super::*;

    /// On runc the shim's end ends nothing.
    #[test]
    fn poststop_hooks_run_when_the_shim_was_killed() -> Result<()> {
        let node = Node::start()?;
        let dir = node.dir().to_owned();
        let spec = node
            .spec("killed", &["sleep", "1000"])?
            .push("/hooks/createRuntime", note(&dir, "made"))?
            .push("/hooks/poststop", note(&dir, "undone"))?;
        // No FIFOs: containerd forgets the task without its client's help, and only the client knows them.
        node.run_spec("killed", &spec)?.args(["-d", "--null-io"]).ok()?;
        node.signal_process("killed", "containerd-shim", Signal::SIGKILL)?;
        wait::content(node.dir(), "notes", Duration::from_secs(30), |text| {
            text.ends_with("undone\n")
        })?;
        node.await_stopped("killed")?;
        node.ctr().args(["container", "rm"]).arg(node.id("killed")).ok()?;
        assert_eq!(notes(&node), "made\nundone\n");
        node.nothing_left()
    }

    /// Specification 1.3, and runc since 1.2; the runc of Debian 12 is older.
    #[test]
    fn a_poststart_hook_that_fails_stops_the_container() -> Result<()> {
        let node = Node::start()?;
        let dir = node.dir().to_owned();
        let spec = node
            .spec("poststart", &["sleep", "1000"])?
            .push("/hooks/poststart", fails())?
            .push("/hooks/poststart", note(&dir, "not run"))?
            .push("/hooks/poststop", note(&dir, "undone"))?;
        let said = node.run_spec("poststart", &spec)?.arg("-d").fails()?;
        assert!(said.contains("the reason"), "{said}");
        // `ctr` leaves the container and its task to whoever looks into it.
        if node.status("poststart")?.is_some() {
            node.await_stopped("poststart")?;
            node.forget("poststart")?;
        }
        node.discard("poststart")?;
        assert_eq!(notes(&node), "undone\n");
        node.nothing_left()
    }

    /// It would run in the namespaces of the container, which are in the guest, and its file is on the host.
    #[test]
    fn a_create_container_hook_is_refused_before_anything_is_made() -> Result<()> {
        let node = Node::start()?;
        let dir = node.dir().to_owned();
        let spec = node
            .spec("cdi", &["true"])?
            .push("/hooks/createRuntime", note(&dir, "made"))?
            .push(
                "/hooks/createContainer",
                json!({ "path": "/usr/bin/nvidia-ctk", "args": ["nvidia-ctk", "hook"] }),
            )?;
        let said = node.run_spec("cdi", &spec)?.arg("--rm").fails()?;
        assert!(
            said.contains("hooks.createContainer") && said.contains("/usr/bin/nvidia-ctk"),
            "{said}"
        );
        node.discard("cdi")?;
        assert_eq!(notes(&node), "");
        node.nothing_left()
    }
}
