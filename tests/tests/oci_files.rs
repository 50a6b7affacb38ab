//! Mounts and devices as runc makes them: public reports of specifications that another runtime got wrong, each one the member of a
//! kind. What a launch alone shows of them is in `agent/tests/launch/oci.rs`.

use framework::{Node, Report, Result};
use serde_json::json;

fn tmpfs(destination: &str, options: &[&str]) -> serde_json::Value {
    json!({ "destination": destination, "type": "tmpfs", "source": "tmpfs", "options": options })
}

#[test]
fn a_user_writes_to_a_tmpfs_that_the_image_has_no_directory_for() -> Result<()> {
    let node = Node::start()?;
    let script = "stat -c %a /scratch && echo mine > /scratch/f && cat /scratch/f; stat -c %a /etc /given";
    let spec = node
        .spec("scratch", &["sh", "-c", script])?
        .set("/process/user", json!({ "uid": 1000, "gid": 1000 }))?
        .push("/mounts", tmpfs("/scratch", &[]))?
        .push("/mounts", tmpfs("/etc", &["nosuid"]))?
        .push("/mounts", tmpfs("/given", &["mode=750"]))?;
    let etc = std::fs::metadata(spec.root().join("etc"));
    let etc = etc.map_or(0o1777, |etc| {
        std::os::unix::fs::PermissionsExt::mode(&etc.permissions()) & 0o7777
    });
    let said = node.run_spec("scratch", &spec)?.arg("--rm").ok()?;
    assert_eq!(said, format!("1777\nmine\n{etc:o}\n750\n"));
    node.nothing_left()
}

/// `-v /dev/urandom:/dev/random`, and binds of other nodes over the default ones.
#[test]
fn a_device_is_bound_over_a_default_one() -> Result<()> {
    let node = Node::start()?;
    let spec = node
        .spec("random", &["guest-probe", "report"])?
        .bind("/dev/urandom".as_ref(), "/dev/random", &["rprivate"])?
        .bind("/dev/null".as_ref(), "/dev/full", &["rprivate"])?
        .bind("/dev/zero".as_ref(), "/dev/mine", &["rprivate"])?;
    let report = node.report("random", &spec)?;
    for (name, minor) in [("random", 9), ("full", 3), ("mine", 5), ("urandom", 9), ("null", 3)] {
        let device = report.fact("/dev")[name].clone();
        assert_eq!(
            (&device["major"], &device["minor"]),
            (&json!(1), &json!(minor)),
            "{name}"
        );
    }
    node.nothing_left()
}

#[test]
fn a_read_only_dev_and_a_bind_below_a_read_only_tmpfs_are_mounted() -> Result<()> {
    let node = Node::start()?;
    let data = node.dir().join("data");
    std::fs::create_dir(&data)?;
    let paths = ["/dev/new", "/scratch/new", "/scratch/below/new"];
    let args: Vec<&str> = ["guest-probe", "try", "create"].into_iter().chain(paths).collect();
    let spec = node
        .spec("ro", &args)?
        .set("/mounts/1/options", json!(["nosuid", "ro", "mode=755"]))?
        .push("/mounts", tmpfs("/scratch", &["ro"]))?
        .bind(&data, "/scratch/below", &["rw"])?;
    let tried = node.run_spec("ro", &spec)?.arg("--rm").output()?.success()?.json()?;
    // EROFS is 30.
    assert_eq!(
        tried,
        json!({ "/dev/new": 30, "/scratch/new": 30, "/scratch/below/new": 0 })
    );
    node.nothing_left()
}

#[test]
fn a_bind_without_a_type_on_dev_is_left_alone() -> Result<()> {
    let node = Node::start()?;
    let data = node.dir().join("data");
    std::fs::create_dir(&data)?;
    // runc looks whether there is one.
    std::fs::write(data.join("null"), "")?;
    let bind = json!({ "destination": "/dev", "type": "none", "source": data, "options": ["rbind", "rw"] });
    let spec = node.spec("dev", &["ls", "-A", "/dev"])?.set(
        "/mounts",
        json!([{ "destination": "/proc", "type": "proc", "source": "proc" }, bind]),
    )?;
    assert_eq!(node.run_spec("dev", &spec)?.arg("--rm").ok()?, "null\n");
    assert_eq!(std::fs::read_dir(&data)?.count(), 1);
    node.nothing_left()
}

#[test]
fn capability_sets_are_set_at_once_and_an_unknown_one_is_left_out() -> Result<()> {
    let node = Node::start()?;
    let spec = node.spec("caps", &["guest-probe", "report"])?.set(
        "/process/capabilities",
        json!({
            "bounding": ["CAP_KILL", "CAP_CHOWN", "CAP_SYSLOG", "CAP_NEW"], "permitted": ["CAP_KILL", "CAP_CHOWN"],
            "effective": ["CAP_KILL"], "inheritable": ["CAP_CHOWN", "CAP_SYSLOG"],
        }),
    )?;
    let report = node.report("caps", &spec)?;
    assert_eq!(report.capabilities("CapBnd")?, 1 << 34 | 1 << 5 | 1);
    assert_eq!(report.capabilities("CapInh")?, 1 << 34 | 1);
    assert_eq!(report.capabilities("CapPrm")?, 1 << 5 | 1);
    node.nothing_left()
}

#[test]
fn an_exec_may_name_a_capability_that_nobody_knows() -> Result<()> {
    let node = Node::start()?;
    node.run("idle").arg("-d").program(["sleep", "1000"]).ok()?;
    // `ctr task exec` copies the process of the container's specification: the probe shows what came of it.
    let report = node
        .exec("idle", "probe")
        .program(["guest-probe", "report"])
        .output()?
        .success()?;
    assert_eq!(Report::parse(&report)?.fact("/uid"), 0);
    node.remove("idle")?;
    node.nothing_left()
}

mod kata_only {
    use super::*;

    /// On runc they are the node's, where it has them mounted: here the guest's, of which no container has used any yet.
    #[test]
    fn file_systems_of_the_guests_kernel_are_mounted_when_a_bind_asks_for_them() -> Result<()> {
        let node = Node::start()?;
        let script = "grep -E ' /(bpf|debug|tracing|mqueue|config|fuse|below)( |/)' /proc/self/mountinfo | sed 's/.* - //; s/ .*//'; \
            ls -d /sys/fs/bpf/no-such 2>&1 | grep -c 'No such'";
        let mut spec = node.spec("kernel", &["sh", "-c", script])?;
        for (source, destination) in [
            ("/sys/fs/bpf", "/bpf"),
            ("/sys/kernel/debug", "/debug"),
            ("/sys/kernel/tracing", "/tracing"),
            ("/dev/mqueue", "/mqueue"),
            ("/sys/kernel/config", "/config"),
            ("/sys/fs/fuse/connections", "/fuse"),
        ] {
            spec = spec.bind(source.as_ref(), destination, &["ro"])?;
        }
        let said = node.run_spec("kernel", &spec)?.arg("--rm").ok()?;
        let kinds: Vec<_> = said.lines().collect();
        assert_eq!(
            kinds[..6],
            ["bpf", "debugfs", "tracefs", "mqueue", "configfs", "fusectl"]
        );
        node.nothing_left()
    }

    /// What CRI-O and Docker ask for and the guest's kernel does not have is refused by its name.
    #[test]
    fn a_file_system_that_the_guests_kernel_lacks_is_refused() -> Result<()> {
        let node = Node::start()?;
        let pstore = json!({ "destination": "/x", "type": "pstore", "source": "pstore" });
        let spec = node.spec("lacks", &["true"])?.push("/mounts", pstore)?;
        let said = node.run_spec("lacks", &spec)?.arg("--rm").fails()?;
        assert!(said.contains("cannot mount pstore on /x"), "{said}");
        node.discard("lacks")?;
        node.nothing_left()
    }
}
