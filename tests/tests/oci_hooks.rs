//! Hooks when something goes wrong: what was begun by one is undone by another, and a hook is confined like what it precedes.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use framework::{Node, Result, cri::node::eventually, host_mount::HostMount, wait};
use nix::sys::signal::Signal;
use rustix::mount::MountFlags;
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

    fn of_root(script: &str) -> Value {
        json!({ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"] })
    }

    /// What it does in the container's memory, and what it mounts, does not reach the guest: neither is lost in silence.
    #[test]
    fn a_create_container_hook_that_mounts_or_writes_to_memory_fails_the_create() -> Result<()> {
        let node = Node::start()?;
        let dir = node.dir().to_owned();
        let volume = dir.join("volume");
        fs::create_dir(&volume)?;
        fs::write(volume.join("file"), "")?;
        let in_memory = dir.join("kubernetes.io~empty-dir/memory");
        let memory = HostMount::new(&in_memory, MountFlags::empty())?;
        let read_only = "Read-only file system";
        let cases = [
            ("mounts", "mount -t tmpfs tmpfs mnt", "has changed what is mounted on"),
            ("unmounts", "umount -l dev/shm", "has changed what is mounted on"),
            (
                "covers",
                "umount -l dev/shm && mount -t tmpfs -o ro tmpfs dev/shm",
                "has changed what is mounted on",
            ),
            (
                "remounts",
                "mount -o remount,bind,rw dev",
                "has changed what is mounted on",
            ),
            ("writes", "ln -s target dev/link", read_only),
            ("volume", "echo changed > mnt/file", read_only),
            ("memory", "echo changed > memory/file", read_only),
        ];
        for (name, script, said) in cases {
            let spec = node
                .spec(name, &["echo", "it was run"])?
                .bind(&volume, "/mnt", &["rw"])?
                .bind(&in_memory, "/memory", &["rw"])?
                .push("/hooks/createContainer", of_root(script))?
                .push("/hooks/poststop", note(&dir, name))?;
            // As below /var/run: the list of mounts has no links.
            let link = dir.join(format!("link-{name}"));
            std::os::unix::fs::symlink(spec.root(), &link)?;
            let spec = spec.set("/root/path", link.display().to_string())?;
            let output = node.run_spec(name, &spec)?.arg("--rm").output()?;
            assert_eq!(output.stdout(), "", "{name}");
            let failure = output.failure()?;
            assert!(failure.contains(said), "{name}: {failure}");
            node.discard(name)?;
        }
        assert_eq!(notes(&node), cases.map(|(name, ..)| format!("{name}\n")).concat());
        memory.unmount()?;
        node.nothing_left()
    }

    /// CVE-2025-23266: with runc a hook that names no environment has the program's, and begins in the image's root.
    #[test]
    fn a_create_container_hook_has_nothing_of_the_images_environment_and_executes_none_of_its_files() -> Result<()> {
        let node = Node::start()?;
        let seen = node.dir().join("seen");
        let script = format!("env > {seen}; bin/busybox true 2>> {seen}", seen = seen.display());
        let spec = node
            .spec("preloaded", &["true"])?
            .push("/process/env", "LD_PRELOAD=./evil.so")?
            .push("/process/env", "LD_AUDIT=./evil.so")?
            .push(
                "/hooks/createContainer",
                json!({ "path": "/bin/sh", "args": ["sh", "-c", script] }),
            )?;
        let said = node.run_spec("preloaded", &spec)?.arg("--rm").fails()?;
        let seen = fs::read_to_string(seen)?;
        assert!(seen.contains("PATH=") && !seen.contains("evil.so"), "{seen}");
        assert!(seen.contains("Permission denied"), "{seen} {said}");
        node.discard("preloaded")?;
        node.nothing_left()
    }

    /// It would meet the root again when the guest has it, and the guest's links.
    #[test]
    fn nothing_that_a_create_container_hook_has_started_outlives_it() -> Result<()> {
        let node = Node::start()?;
        let mark = node.dir().join("daemon").display().to_string();
        let script = format!("setsid sh -c 'while sleep 1; do :; done' {mark} & sleep 1; true");
        let spec = node
            .spec("daemon", &["true"])?
            .push("/hooks/createContainer", of_root(&script))?;
        node.run_spec("daemon", &spec)?.arg("--rm").ok()?;
        let processes = fs::read_dir("/proc")?.flatten();
        let told = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
        let left = told.filter(|told| told.ends_with(format!("\0{mark}\0").as_bytes()));
        assert_eq!(left.count(), 0);
        node.nothing_left()
    }

    /// A link that whoever writes to a volume has made leads a hook nowhere.
    #[test]
    fn a_create_container_hook_is_not_led_out_of_a_volume() -> Result<()> {
        let node = Node::start()?;
        let volume = node.dir().join("volume");
        fs::create_dir(&volume)?;
        fs::write(volume.join("file"), "a file\n")?;
        std::os::unix::fs::symlink(node.dir(), volume.join("out"))?;
        let script = format!(
            "(cat mnt/file; ls mnt/out/ 2>&1; echo $?) > {}/notes",
            node.dir().display()
        );
        let spec = node
            .spec("led", &["cat", "/mnt/file"])?
            .bind(&volume, "/mnt", &["rw"])?
            .push("/hooks/createContainer", of_root(&script))?;
        assert_eq!(node.run_spec("led", &spec)?.arg("--rm").ok()?, "a file\n");
        let seen = notes(&node);
        assert!(
            seen.starts_with("a file\n") && seen.contains("symbolic links"),
            "{seen}"
        );
        node.nothing_left()
    }

    /// What the guest has to make in the root is of the kind that it needs, and what it makes in a source is no obstacle.
    #[test]
    fn mounts_of_the_guests_are_as_without_create_container_hooks() -> Result<()> {
        let node = Node::start()?;
        let volume = node.dir().join("volume");
        fs::create_dir(&volume)?;
        let look =
            "stat -c %F /etc/new; df /app/scratch | tail -n 1 | cut -d ' ' -f 1; cat /app/file/of; ls /app/below";
        let below = node.dir().join("below");
        fs::create_dir(&below)?;
        fs::write(below.join("file"), "of a source\n")?;
        let tmpfs = json!({ "destination": "/app/scratch", "type": "tmpfs", "source": "tmpfs", "options": [] });
        let spec = node
            .spec("guests", &["sh", "-c", look])?
            .bind(Path::new("/dev/null"), "/etc/new", &["rw"])?
            .bind(&volume, "/app", &["rw"])?
            .push("/mounts", tmpfs)?
            .bind(&below.join("file"), "/app/file/of", &["ro"])?
            .bind(&below, "/app/below", &["ro"])?
            .push("/hooks/createContainer", of_root("true"))?;
        let said = node.run_spec("guests", &spec)?.arg("--rm").ok()?;
        assert_eq!(said, "character special file\ntmpfs\nof a source\nfile\n");
        node.nothing_left()
    }

    /// Waits until no process has this as its last argument.
    fn await_end_of(mark: &str) -> Result<()> {
        let sleepers = || {
            let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
            let told = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
            let left = told.filter(|told| told.ends_with(format!("\0{mark}\0").as_bytes()));
            left.count()
        };
        eventually("the hook has ended", || Ok((sleepers() == 0).then_some(())))
    }

    /// The next VM has the same root, and could lead it.
    #[test]
    fn a_create_container_hook_ends_with_its_shim() -> Result<()> {
        let node = Node::start()?;
        let dir = node.dir().to_owned();
        let mark = dir.join("sleeper").display().to_string();
        let script = format!(
            "echo begun > {}/notes; setsid sh -c 'while sleep 1; do :; done' {mark}",
            dir.display()
        );
        let spec = node
            .spec("asleep", &["true"])?
            .push("/hooks/createContainer", of_root(&script))?;
        let running = node.run_spec("asleep", &spec)?.args(["-d", "--null-io"]).spawn()?;
        wait::content(&dir, "notes", Duration::from_secs(60), |text| text == "begun\n")?;
        node.signal_process("asleep", "containerd-shim", Signal::SIGKILL)?;
        await_end_of(&mark)?;
        drop(running);
        node.discard("asleep")?;
        node.nothing_left()
    }

    #[test]
    fn a_mount_that_a_create_container_hook_cannot_be_shown_is_named() -> Result<()> {
        let node = Node::start()?;
        let volume = node.dir().join("volume");
        fs::create_dir(&volume)?;
        let spec = node
            .spec("unshown", &["true"])?
            .bind(&volume, "/loop/on", &["rw"])?
            .push("/hooks/createContainer", of_root("true"))?;
        std::os::unix::fs::symlink("loop", spec.root().join("loop"))?;
        let said = node.run_spec("unshown", &spec)?.arg("--rm").fails()?;
        assert!(
            said.contains("on /loop/on") && said.contains("symbolic links"),
            "{said}"
        );
        node.discard("unshown")?;
        node.nothing_left()
    }

    /// It is killed by a signal that a process loses with its user, and is somebody who has nothing on the host.
    #[test]
    fn a_create_container_hook_in_a_user_namespace_ends_with_its_shim_and_has_nothing_of_the_hosts() -> Result<()> {
        let node = Node::start()?;
        let dir = node.dir().to_owned();
        let mark = dir.join("sleeper").display().to_string();
        fs::write(dir.join("notes"), "")?;
        fs::set_permissions(dir.join("notes"), fs::Permissions::from_mode(0o666))?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o711))?;
        let script = format!(
            "exec >>{notes}; bin/busybox echo executed; touch /etc/of-hook etc/of-hook && echo written; mknod zero c 1 5 && echo made; \
             mount -t tmpfs tmpfs mnt && echo mounted; \
             PATH=$PATH:/usr/sbin:/sbin; ip link show lo >/dev/null || echo none; ip link set lo up && echo up; \
             nsenter -t {other} -m echo entered; kill -0 {other} && echo signalled; \
             echo begun; setsid sh -c 'while sleep 1; do :; done' {mark}",
            notes = dir.join("notes").display(),
            other = std::process::id(),
        );
        let map = |host: u32| json!([{ "containerID": 0, "hostID": host, "size": 65536 }]);
        let spec = node.spec("users", &["true"])?;
        let spec = spec
            .push("/linux/namespaces", json!({ "type": "user" }))?
            .set("/linux/uidMappings", map(100_000))?
            .set("/linux/gidMappings", map(100_000))?
            .push("/hooks/createContainer", of_root(&script))?;
        let running = node.run_spec("users", &spec)?.args(["-d", "--null-io"]).spawn()?;
        wait::content(&dir, "notes", Duration::from_secs(60), |text| text.ends_with("begun\n"))?;
        assert_eq!(notes(&node), "begun\n");
        node.signal_process("users", "containerd-shim", Signal::SIGKILL)?;
        await_end_of(&mark)?;
        drop(running);
        node.discard("users")?;
        node.nothing_left()
    }
}
