//! Containers that CRI's annotations put into one sandbox.

use framework::{Node, Result, Runtime, Silent, Spec, host_cgroup::Slice};
use serde_json::json;

const TYPE: &str = "io.kubernetes.cri.container-type";
const SANDBOX: &str = "io.kubernetes.cri.sandbox-id";

/// A container of the sandbox `pod`; CRI sends these two annotations with each.
fn member(spec: Spec, node: &Node, kind: &str, pod: &str) -> Result<Spec> {
    spec.annotation(TYPE, kind)?.annotation(SANDBOX, &node.id(pod))
}

#[test]
fn a_container_has_the_name_and_the_domain_that_its_specification_gives() -> Result<()> {
    let node = Node::start()?;
    let script = [
        "sh",
        "-c",
        "hostname; cat /proc/sys/kernel/hostname /proc/sys/kernel/domainname",
    ];
    let spec = node
        .spec("named", &script)?
        .set("/hostname", "the-name")?
        .set("/domainname", "the.domain")?;
    let told = node.run_spec("named", &spec)?.arg("--rm").ok()?;
    // runc knows the domain only since 1.2.
    let domain = told.lines().nth(2).map(str::to_owned);
    assert!(told.starts_with("the-name\nthe-name\n"), "{told}");
    assert!(
        node.runtime() == Runtime::Runc || domain.as_deref() == Some("the.domain"),
        "{told}"
    );
    let unnamed = node.spec("unnamed", &["hostname"])?;
    let told = node.run_spec("unnamed", &unnamed)?.arg("--rm").ok()?;
    let own = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
    assert_eq!(told, own, "without a name it has the node's");
    node.nothing_left()
}

mod kata_only {
    use super::*;

    #[test]
    fn the_containers_of_one_pod_share_a_machine_and_end_apart() -> Result<()> {
        let node = Node::start()?;
        // What the sandbox would run does not matter: its process is the guest's own.
        let pause = node.spec("pod", &["/no/such/pause"])?.set("/hostname", "the-pod")?;
        node.run_spec("pod", &member(pause, &node, "sandbox", "pod")?)?
            .arg("-d")
            .ok()?;
        for (name, time) in [("app", "1000"), ("other", "2000")] {
            let app = member(node.spec(name, &["sleep", time])?, &node, "container", "pod")?;
            node.run_spec(name, &app)?.arg("-d").ok()?;
        }

        // The kernel draws a new boot id at every boot, so equal ones mean one machine.
        let boot = ["cat", "/proc/sys/kernel/random/boot_id"];
        let ids = [
            node.exec("app", "boot").program(boot).ok()?,
            node.exec("other", "boot").program(boot).ok()?,
        ];
        assert_eq!(ids[0], ids[1]);
        let machines = node
            .processes("pod")
            .into_iter()
            .filter(|process| process.command.contains("qemu-system"))
            .count();
        assert_eq!(machines, 1);

        // `start` gave the same address for all.
        let address = |name: &str| std::fs::read_to_string(node.bundle(name).join("address"));
        assert_eq!(address("pod")?, address("app")?);
        assert_eq!(address("pod")?, address("other")?);

        // The end of one does not touch the others.
        node.remove("app")?;
        assert_eq!(node.exec("other", "still").program(["echo", "here"]).ok()?, "here\n");
        let again = member(node.spec("app", &["echo", "again"])?, &node, "container", "pod")?;
        assert_eq!(node.run_spec("app", &again)?.arg("--rm").ok()?, "again\n");
        node.remove("other")?;
        // The sandbox ends when it is asked to, as every pause does.
        node.task("kill", "pod").args(["--signal", "SIGTERM"]).ok()?;
        assert_eq!(node.await_stopped("pod")?, 0);
        node.forget("pod")?;
        node.nothing_left()
    }

    /// runc has a process for each container, and so has nothing to show here.
    #[test]
    fn a_source_whose_server_does_not_answer_holds_up_its_own_container_alone() -> Result<()> {
        let node = Node::start()?;
        let silent = Silent::new(&node.dir().join("silent"))?;
        let pause = node.spec("pod", &["/no/such/pause"])?;
        node.run_spec("pod", &member(pause, &node, "sandbox", "pod")?)?
            .arg("-d")
            .ok()?;
        let source = node.dir().join("silent/below");
        let stuck = node.spec("stuck", &["true"])?.bind(&source, "/data", &["rw"])?;
        let stuck = member(stuck, &node, "container", "pod")?;
        let waiting = node.run_spec("stuck", &stuck)?.spawn()?;
        silent.asked()?;

        let data = node.dir().join("data");
        std::fs::create_dir(&data)?;
        let app = node
            .spec("app", &["sh", "-c", "echo served > /data/file; sleep 1000"])?
            .bind(&data, "/data", &["rw"])?;
        node.run_spec("app", &member(app, &node, "container", "pod")?)?
            .arg("-d")
            .ok()?;
        assert_eq!(
            node.exec("app", "look").program(["cat", "/data/file"]).ok()?,
            "served\n"
        );
        node.remove("app")?;

        // The pod ends, and who waits hears of it.
        node.task("kill", "pod").args(["--signal", "SIGTERM"]).ok()?;
        assert_eq!(node.await_stopped("pod")?, 0);
        node.forget("pod")?;
        let said = waiting.wait()?.failure()?;
        assert!(!said.is_empty());
        node.discard("stuck")?;
        silent.end();
        node.nothing_left()
    }

    /// All of a sandbox's processes are there, by their lines of /proc/PID/cgroup, but the shim, which is where containerd has put it:
    /// QEMU, virtiofsd, the vsock daemon if there is one, and whatever else there may be.
    fn machine_is_in(node: &Node, name: &str, cgroup: &str) -> Result<()> {
        let processes = node.processes(name);
        // What stands for the sandbox on the host is a copy of the shim under another name.
        let name = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let (shim, machine): (Vec<_>, Vec<_>) = processes
            .iter()
            .partition(|process| name(process.pid).starts_with("containerd-shim"));
        assert_eq!(shim.len(), 1, "{processes:?}");
        for program in ["qemu-system", "virtiofsd"] {
            let has = machine.iter().any(|process| process.program().contains(program));
            assert!(has, "no {program} in {processes:?}");
        }
        for process in machine {
            let told = std::fs::read_to_string(format!("/proc/{}/cgroup", process.pid))?;
            // One line a hierarchy (cgroups(7)): number, controllers, path. That of v2 has no number but 0, and no controllers.
            for line in told.lines() {
                let (hierarchy, path) = line.rsplit_once(':').unwrap_or_default();
                let below = if hierarchy == "0:" { "/vm" } else { "" };
                assert_eq!(path, format!("{cgroup}{below}"), "{process:?}: {told}");
            }
        }
        Ok(())
    }

    #[test]
    fn everything_of_a_sandbox_is_in_one_cgroup_beside_the_containers_by_either_naming() -> Result<()> {
        let node = Node::start()?;
        let tag = node.namespace().to_owned();
        let slice = Slice::new(&tag)?;
        for (name, path, parent) in [
            ("plain", format!("/{tag}/c"), format!("/{tag}")),
            ("systemd", format!("{}:cri-containerd:c", slice.name()), slice.path()),
        ] {
            let spec = node
                .spec(name, &["sleep", "1000"])?
                .set("/linux/cgroupsPath", path)?
                .set("/linux/resources/memory", json!({ "limit": 128 << 20 }))?;
            node.run_spec(name, &spec)?.arg("-d").ok()?;
            let cgroup = format!("{parent}/kata_{}", node.id(name));
            machine_is_in(&node, name, &cgroup)?;
            let limit = node.host_memory(name)?.limit()?;
            assert!(limit.is_some());
            // systemd takes from a slice the controllers that nothing it knows of in it needs.
            slice.reload()?;
            machine_is_in(&node, name, &cgroup)?;
            assert_eq!(node.host_memory(name)?.limit()?, limit);
            node.remove(name)?;
        }
        slice.remove()?;
        node.nothing_left()
    }
}
