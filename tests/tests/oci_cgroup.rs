//! Cgroups as programs read and make them: a container that delegates, limits that change by halves, and the paths that
//! /proc/self/cgroup and mountinfo give.

use framework::{Node, Result, Spec};
use serde_json::json;

/// What a JVM, .NET and Go do to find their limit in v2: the path of /proc/self/cgroup below where the file system is mounted, less
/// the mount's root.
const FIND_LIMIT: &str = r#"
path=$(sed -n 's/^0:://p' /proc/self/cgroup)
line=$(grep ' - cgroup2 ' /proc/self/mountinfo | head -n 1)
root=$(echo "$line" | cut -d' ' -f4); point=$(echo "$line" | cut -d' ' -f5)
echo "path=$path root=$root"
cat "$point${path#/}/memory.max" 2>/dev/null || cat "$point/$path/memory.max"
"#;

/// A cgroup of the container's own that it may write to, as systemd, dockerd, k3s and kind need it.
fn writable_cgroup(spec: Spec) -> Result<Spec> {
    spec.push(
        "/mounts",
        json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
            "options": ["nosuid", "noexec", "nodev", "rw"] }),
    )?
    .push("/linux/namespaces", json!({ "type": "cgroup" }))
}

mod kata_only {
    use super::*;

    /// What systemd does at its start. On runc the host has to have cgroup v2 for it.
    #[test]
    fn an_exec_joins_the_cgroup_of_an_init_that_has_passed_controllers_on() -> Result<()> {
        let node = Node::start()?;
        let script = "cd /sys/fs/cgroup && mkdir init other && echo 1 > init/cgroup.procs && \
            echo '+memory +pids' > cgroup.subtree_control && echo delegated && exec sleep 1000";
        let spec = writable_cgroup(node.spec("systemd", &["sh", "-c", script])?)?;
        let running = node.run_spec("systemd", &spec)?.spawn()?;
        running.shows("delegated")?;
        for exec in ["first", "second"] {
            let said = node.exec("systemd", exec).sh("cat /proc/self/cgroup").ok()?;
            assert_eq!(said, "0::/init\n");
        }
        // One that has ended leaves nothing in the way of the next; and one where init is again in the container's own cgroup.
        let back = "cd /sys/fs/cgroup && echo '-memory -pids' > cgroup.subtree_control && echo 1 > cgroup.procs";
        node.exec("systemd", "back").sh(back).ok()?;
        let said = node.exec("systemd", "third").sh("cat /proc/self/cgroup").ok()?;
        assert_eq!(said, "0::/\n");
        node.task("kill", "systemd").args(["--signal", "9"]).ok()?;
        node.await_stopped("systemd")?;
        running.wait()?;
        node.forget("systemd")?;
        node.nothing_left()
    }

    #[test]
    fn a_quota_or_a_period_alone_leaves_the_other_as_it_is() -> Result<()> {
        let node = Node::start()?;
        let spec = node
            .spec("halves", &["sleep", "1000"])?
            .own_cgroup()?
            .set("/linux/resources/cpu", json!({ "quota": 50_000, "period": 200_000 }))?
            .set("/linux/resources/memory", json!({ "limit": 128 << 20 }))?;
        node.run_spec("halves", &spec)?.arg("-d").ok()?;
        let max = |exec: &str| {
            node.exec("halves", exec)
                .program(["cat", "/sys/fs/cgroup/cpu.max"])
                .ok()
        };
        assert_eq!(max("created")?, "50000 200000\n");
        for (number, (cpu, wanted)) in [
            (json!({ "quota": 100_000 }), "100000 200000\n"),
            (json!({ "period": 50_000 }), "100000 50000\n"),
            (json!({ "shares": 512 }), "100000 50000\n"),
            (json!({ "quota": -1 }), "max 50000\n"),
            (json!({ "quota": 25_000, "burst": 10_000 }), "25000 50000\n"),
            (json!({ "quota": 5_000, "burst": 1_000 }), "5000 50000\n"),
        ]
        .into_iter()
        .enumerate()
        {
            node.update("halves", &json!({ "cpu": cpu }))?;
            assert_eq!(max(&format!("after{number}"))?, wanted, "{cpu}");
        }
        // A limit of swap alone counts from the limit of memory that is in force.
        node.update("halves", &json!({ "memory": { "swap": 256 << 20 } }))?;
        let below = json!({ "memory": { "limit": 4 << 10, "checkBeforeUpdate": true } });
        assert!(node.update("halves", &below).is_err(), "less than what is used already");
        let limit = node
            .exec("halves", "limit")
            .program(["cat", "/sys/fs/cgroup/memory.max"])
            .ok()?;
        assert_eq!(limit, format!("{}\n", 128 << 20));
        node.remove("halves")?;
        node.nothing_left()
    }

    /// On runc the layout is that of the host's version of cgroups.
    #[test]
    fn a_program_finds_its_limit_whatever_cgroup_namespace_is_asked_for() -> Result<()> {
        let node = Node::start()?;
        let mount = json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
            "options": ["nosuid", "noexec", "nodev", "relatime", "ro"] });
        let limited = |name: &str| -> Result<Spec> {
            node.spec(name, &["sh", "-c", FIND_LIMIT])?
                .set("/linux/resources/memory", json!({ "limit": 512 << 20 }))
        };
        let expected = format!("path=/ root=/\n{}\n", 512 << 20);
        // Docker's and CRI's default on a host with v1, and what they write on one with v2.
        let host = limited("host")?.push("/mounts", mount.clone())?;
        assert_eq!(node.run_spec("host", &host)?.arg("--rm").ok()?, expected);
        let own = limited("own")?.own_cgroup()?;
        assert_eq!(node.run_spec("own", &own)?.arg("--rm").ok()?, expected);
        // `-v /sys/fs/cgroup:/sys/fs/cgroup`, which systemd's images are run with.
        let bound = limited("bound")?.bind("/sys/fs/cgroup".as_ref(), "/sys/fs/cgroup", &["rw"])?;
        assert_eq!(node.run_spec("bound", &bound)?.arg("--rm").ok()?, expected);
        node.nothing_left()
    }
}
