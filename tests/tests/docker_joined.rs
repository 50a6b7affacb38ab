//! Containers that share the namespaces of another one: `--network`, `--pid` and `--ipc` with `container:NAME`, and Compose's `network_mode: service:NAME`.

use std::fs;

use framework::{Docker, Error, Result, docker::IMAGE};
use serde_json::json;

/// Serves a page with its name.
fn serves(name: &str, port: u16) -> String {
    format!("mkdir -p /www; echo {name} > /www/index.html; httpd -p {port} -h /www; exec sleep 100000")
}

/// What a container gets from a server on its loopback.
fn page(docker: &Docker, container: &str, port: u16) -> Result<String> {
    let get = format!("until wget -q -O - http://127.0.0.1:{port}/; do sleep 0.2; done");
    docker.docker(&["exec", container, "sh", "-c", &get]).ok()
}

#[test]
fn containers_share_a_network_and_processes_and_memory_if_they_are_to() -> Result<()> {
    let docker = Docker::start()?;
    let first = docker.run("first").args(["-d", "--ipc", "shareable"]);
    let id = first.sh(&serves("first", 8000)).ok()?;
    let network = ["--network", "container:first"];
    let beside = docker.run("beside").arg("-d").args(network);
    beside.sh(&serves("beside", 8001)).ok()?;
    assert_eq!(page(&docker, "beside", 8000)?, "first\n");
    assert_eq!(page(&docker, "first", 8001)?, "beside\n");
    let address = |container: &str| {
        docker
            .docker(&["exec", container, "cat", "/sys/class/net/eth0/address"])
            .ok()
    };
    assert_eq!(address("first")?, address("beside")?);
    docker
        .docker(&["exec", "first", "sh", "-c", "echo in memory > /dev/shm/file"])
        .ok()?;

    let all = ["--pid", "container:first", "--ipc", "container:first"];
    let look = "cat /dev/shm/file; tr '\\0' ' ' < /proc/1/cmdline; echo; readlink /proc/self/ns/pid > /dev/shm/pid; \
                readlink /proc/self/ns/ipc > /dev/shm/ipc; readlink /proc/self/ns/uts > /dev/shm/uts";
    let all = docker.run("all").arg("--rm").args(network).args(all).sh(look).ok()?;
    assert_eq!(all, "in memory\nsleep 100000 \n");
    let same = "for kind in pid ipc uts; do [ $(cat /dev/shm/$kind) = $(readlink /proc/self/ns/$kind) ] && echo $kind; done; true";
    assert_eq!(docker.docker(&["exec", "first", "sh", "-c", same]).ok()?, "pid\nipc\n");

    // The second one lives on, whatever becomes of the first.
    docker.docker(&["stop", "-t", "0", "first"]).ok()?;
    assert_eq!(page(&docker, "beside", 8001)?, "beside\n");
    docker.docker(&["rm", "first"]).ok()?;
    assert_eq!(page(&docker, "beside", 8001)?, "beside\n");
    let status = docker
        .docker(&["inspect", "--format", "{{.State.Status}}", "beside"])
        .ok()?;
    assert_eq!(status, "running\n");
    docker.docker(&["rm", "-f", "beside"]).ok()?;
    docker.nothing_left(id.trim())
}

#[test]
fn a_service_of_compose_has_the_network_of_another_one() -> Result<()> {
    let docker = Docker::start()?;
    let file = docker.dir().join("compose.json");
    let service = |name: &str, port| {
        let script = serves(name, port);
        json!({ "image": IMAGE, "runtime": docker.runtime().name(), "command": ["sh", "-c", script], "stop_grace_period": "0s" })
    };
    let mut beside = service("beside", 8001);
    beside["network_mode"] = json!("service:web");
    let services = json!({ "web": service("web", 8000), "beside": beside });
    fs::write(&file, json!({ "version": "3.8", "services": services }).to_string())?;
    let compose = |args: &[&str]| Ok::<_, Error>(docker.compose("joined", &file)?.args(args));
    compose(&["up", "-d"])?.ok()?;
    let ids = compose(&["ps", "-q"])?.ok()?;
    let get = "until wget -q -O - http://127.0.0.1:8000/; do sleep 0.2; done";
    assert_eq!(compose(&["exec", "-T", "beside", "sh", "-c", get])?.ok()?, "web\n");
    compose(&["down", "-t", "0"])?.ok()?;
    ids.lines().try_for_each(|id| docker.nothing_left(id))
}

mod kata_only {
    use super::*;
    use framework::{cri::node::eventually, leftovers};
    use nix::{
        sys::signal::{Signal, kill},
        unistd::Pid,
    };

    /// On runc a container that has been restarted has a new network, and the other one what is left of the old one.
    #[test]
    fn a_container_that_is_restarted_is_in_the_vm_of_those_that_have_its_network() -> Result<()> {
        let docker = Docker::start()?;
        let id = docker.run("first").arg("-d").sh(&serves("first", 8000)).ok()?;
        let beside = docker.run("beside").arg("-d").args(["--network", "container:first"]);
        beside.sh(&serves("beside", 8001)).ok()?;
        // containerd runs the shim's `delete` at each, which leaves the new container alone.
        for _ in 0..5 {
            docker.docker(&["restart", "-t", "0", "first"]).ok()?;
            assert_eq!(page(&docker, "beside", 8000)?, "first\n");
        }
        let gateway = "until ping -c 1 10.95.0.1; do sleep 0.2; done; ip addr show dev eth0 | grep -o 'inet [0-9./]*'";
        let pinged = docker.docker(&["exec", "beside", "sh", "-c", gateway]).ok()?;
        assert!(pinged.ends_with("inet 10.95.0.2/24\n"), "{pinged}");
        // What has joined is restarted, too.
        docker.docker(&["restart", "-t", "0", "beside"]).ok()?;
        assert_eq!(page(&docker, "first", 8001)?, "beside\n");
        docker.docker(&["rm", "-f", "beside"]).ok()?;
        assert_eq!(page(&docker, "first", 8000)?, "first\n");
        docker.docker(&["rm", "-f", "first"]).ok()?;
        docker.nothing_left(id.trim())
    }

    #[test]
    fn all_end_with_their_shim() -> Result<()> {
        let docker = Docker::start()?;
        let id = docker.run("first").arg("-d").sh("exec sleep 100000").ok()?;
        let beside = docker.run("beside").arg("-d").args(["--network", "container:first"]);
        beside.sh("exec sleep 100000").ok()?;
        let shims = leftovers::processes(id.trim());
        let shim = shims
            .iter()
            .find(|process| process.program().contains("containerd-shim"));
        let shim = shim.and_then(|shim| i32::try_from(shim.pid).ok());
        kill(Pid::from_raw(shim.unwrap_or(0)), Signal::SIGKILL).map_err(std::io::Error::from)?;
        for name in ["first", "beside"] {
            let inspect = ["inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", name];
            eventually("the container has ended", || {
                Ok((docker.docker(&inspect).ok()? == "exited 137\n").then_some(()))
            })?;
        }
        docker.docker(&["rm", "first", "beside"]).ok()?;
        docker.nothing_left(id.trim())
    }

    #[test]
    fn whoever_kills_the_process_of_the_first_one_ends_that_one_alone() -> Result<()> {
        let docker = Docker::start()?;
        let id = docker.run("first").arg("-d").sh("exec sleep 100000").ok()?;
        let beside = docker.run("beside").arg("-d").args(["--network", "container:first"]);
        beside.sh(&serves("beside", 8001)).ok()?;
        // Another process stands for it when it is started again, and that one, too, is its own.
        for _ in 0..2 {
            kill_first(&docker)?;
            assert_eq!(page(&docker, "beside", 8001)?, "beside\n");
            docker.docker(&["start", "first"]).ok()?;
            let third = docker.run("third").args(["--rm", "--network", "container:first"]);
            assert_eq!(third.sh("wget -q -O - http://127.0.0.1:8001/").ok()?, "beside\n");
        }
        docker.docker(&["rm", "-f", "first", "beside"]).ok()?;
        docker.nothing_left(id.trim())
    }

    /// Kills the process that stands for it, and waits for its end.
    fn kill_first(docker: &Docker) -> Result<()> {
        let pid = docker
            .docker(&["inspect", "--format", "{{.State.Pid}}", "first"])
            .ok()?;
        let pid = pid.trim().parse().ok().filter(|pid| *pid > 1);
        let pid = pid.ok_or_else(|| Error::unexpected("the first container has no pid"))?;
        kill(Pid::from_raw(pid), Signal::SIGKILL).map_err(std::io::Error::from)?;
        let inspect = ["inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", "first"];
        eventually("the container has ended", || {
            Ok((docker.docker(&inspect).ok()? == "exited 137\n").then_some(()))
        })
    }

    /// A VM has one network: a container with another one cannot be in it.
    #[test]
    fn who_has_another_network_cannot_share_processes_or_memory() -> Result<()> {
        let docker = Docker::start()?;
        let id = docker
            .run("first")
            .args(["-d", "--ipc", "shareable"])
            .sh("exec sleep 100000")
            .ok()?;
        for kind in ["pid", "ipc"] {
            let alone = docker.run(kind).args([&format!("--{kind}"), "container:first"]);
            let said = alone.program(["true"]).fails()?;
            assert!(
                said.contains("whose network namespace is that of a container"),
                "{said}"
            );
        }
        docker.docker(&["rm", "-f", "first", "pid", "ipc"]).ok()?;
        docker.nothing_left(id.trim())
    }
}
