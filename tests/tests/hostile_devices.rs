//! A guest whose driver of a virtio device breaks the rules harms nobody but its own VM.

mod kata_only {
    use std::{
        fs,
        path::Path,
        time::{Duration, Instant},
    };

    use framework::{Error, NetNs, Node, Result, disk::RawImage};
    use serde_json::{Value, json};

    const ROUNDS: &str = "1500";
    /// Of the generator, so that a failure can be had again.
    const SEED: &str = "20261130";
    /// Timeout for a driver's rounds, in an emulated guest on a busy machine.
    const LIMIT: Duration = Duration::from_secs(180);

    /// Private memory of a process that serves a VM's devices, in kB. virtiofsd's is mostly what it knows of the guest's inodes.
    const MOST: u64 = 64 << 10;

    /// Private memory of a process in kB, without files and what it shares (`RssAnon`, proc_pid_status(5)). None if it has ended.
    fn private_memory(pid: u32) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
        line.trim().strip_suffix(" kB")?.parse().ok()
    }

    /// The pid of a sandbox's vsock daemon.
    fn vsock_daemon(node: &Node, name: &str) -> Option<u32> {
        let mut processes = node.processes(name).into_iter();
        Some(
            processes
                .find(|process| process.program().ends_with("vhost-device-vsock"))?
                .pid,
        )
    }

    fn alive(node: &Node, at: &str) -> Result<()> {
        // By its exit code: on a busy host ctr now and then loses what a short exec says, with runc as well.
        let exec = format!("alive-{at}");
        node.exec("other", &exec).sh("exit 7").output()?.code(7).map(drop)
    }

    /// The devices that are QEMU's own, by their PCI ids (Virtio 1.2, 4.1.2): those below 0x1040 know the older protocol as well.
    #[test]
    fn a_driver_that_breaks_the_rules_of_qemus_devices_gets_at_nothing() -> Result<()> {
        let node = Node::start()?;
        node.run_spec("other", &node.spec("other", &["sleep", "1000"])?)?
            .arg("-d")
            .ok()?;
        let (pod, lan) = (
            NetNs::new(node.namespace(), "pod")?,
            NetNs::new(node.namespace(), "lan")?,
        );
        pod.veth("eth0", &lan, "lan0")?;
        let image = RawImage::with(&node.dir().join("disk"), "of the test", 8 << 20)?;
        let disk = image.loop_device()?;
        let spec = node.spec("hostile", &["sleep", "1000"])?.of_the_guest()?;
        let spec = spec.set("/linux/namespaces/3/path", pod.path().display().to_string())?;
        let spec = disk.given_to(spec, "/dev/disk", "rwm")?;
        node.run_spec("hostile", &spec)?.arg("-d").ok()?;
        // So that there is plugged memory as well.
        node.exec("hostile", "grow")
            .program(["guest-probe", "touch-memory", "250000000"])
            .limit(LIMIT)
            .ok()?;
        for (device, id, rounds) in [
            ("rng", "0x1005", 1500),
            ("disk", "0x1042", 1500),
            ("net", "0x1000", 1500),
            ("memory", "0x1058", 1500),
        ] {
            let said = node
                .exec("hostile", device)
                .program(["guest-probe", "hostile", id, &rounds.to_string(), SEED])
                .limit(LIMIT)
                .output()?
                .success()?
                .json()?;
            assert_eq!(said["rounds"], json!(rounds), "{device}");
            // The rules were broken, and that was seen. (The generator looks at its queue when the host has given it random bytes.)
            assert!(
                device == "rng" || said["needs reset"].as_u64() > Some(0),
                "{device}: {said}"
            );
            alive(&node, device)?;
        }
        node.remove("hostile")?;
        disk.detach()?;
        assert_eq!(image.loop_devices()?, "", "somebody still has the device open");
        drop((pod, lan));
        node.remove("other")?;
        node.nothing_left()
    }

    /// The devices that a daemon serves, which may end of it, and the VM with it; and the balloon, by which a driver gives memory of its own
    /// kernel away.
    #[test]
    fn a_driver_that_breaks_the_rules_of_a_daemons_device_ends_its_own_vm_at_most() -> Result<()> {
        let node = Node::start()?;
        node.run_spec("other", &node.spec("other", &["sleep", "1000"])?)?
            .arg("-d")
            .ok()?;
        for (device, id) in [("vsock", "0x1053"), ("fs", "0x105a"), ("balloon", "0x1002")] {
            // From memory: the container's files may be behind the device, and what it says is behind the other.
            let script = format!("cp /bin/guest-probe /tmp/probe && exec /tmp/probe hostile {id} {ROUNDS} {SEED}");
            let spec = node.spec(device, &["sh", "-c", &script])?.of_the_guest()?;
            node.run_spec(device, &spec)?.arg("-d").ok()?;
            for look in 0..20 {
                alive(&node, &format!("{device}{look}"))?;
                for process in node.processes(device) {
                    // QEMU's is the translated code, and what the VM's memory is made of.
                    let most = if process.program().contains("qemu") {
                        1 << 20
                    } else {
                        MOST
                    };
                    // It may end: by itself, or with its VM.
                    if let Some(memory) = private_memory(process.pid) {
                        assert!(memory < most, "{device}: {process:?} has {memory} kB");
                    }
                }
            }
            // It may have ended: by itself, or with its VM.
            let kill = node.ctr().args(["task", "kill", "--signal", "9"]);
            kill.arg(node.id(device)).output()?;
            node.await_stopped(device)?;
            node.forget(device)?;
        }
        node.remove("other")?;
        node.nothing_left()
    }

    #[derive(Debug)]
    struct Flood {
        /// What the driver said: the packets that it sent, and what a connection was answered afterwards.
        said: Value,
        /// The most that the daemon had of its own, in kB. None if it ended.
        daemon: Option<u64>,
        /// The slowest exec in another sandbox meanwhile.
        neighbour: Duration,
        /// What the log has of the sandbox, without what is only for debugging, in bytes.
        logged: usize,
    }

    /// Runs `guest-probe vsock-flood` in a sandbox of its own, and execs in another's container until it is over.
    fn flood(node: &Node, kind: &str) -> Result<Flood> {
        const SECONDS: u64 = 8;
        let results = node.dir().join(kind);
        fs::create_dir(&results)?;
        let port = "$(sed 's/.*tatami.port=\\([0-9]*\\).*/\\1/' /proc/cmdline)";
        // The agent is to stay as it is: it would turn the guest off without its connection to the host. What the driver says goes to a file,
        // and it runs from memory, because the container's output is behind the device.
        let script = format!(
            "exec > /results/said 2>&1; cp /bin/guest-probe /tmp/probe; echo 1 > /proc/1/root/sys/fs/cgroup/agent/cgroup.freeze && \
             /tmp/probe vsock-flood {kind} {port} {SECONDS}; echo done > /results/done; exec sleep 1000"
        );
        let spec = node.spec(kind, &["sh", "-c", &script])?.of_the_guest()?;
        let spec = spec.bind(&results, "/results", &["rw"])?;
        node.run_spec(kind, &spec)?.arg("-d").ok()?;
        let pid = vsock_daemon(node, kind).ok_or_else(|| Error::unexpected("no vsock daemon"))?;
        let (mut daemon, mut neighbour) = (Some(0), Duration::ZERO);
        let begun = Instant::now();
        for look in 0.. {
            let exec = Instant::now();
            alive(node, &format!("{kind}{look}"))?;
            neighbour = neighbour.max(exec.elapsed());
            daemon = private_memory(pid).and_then(|memory| Some(memory.max(daemon?)));
            if results.join("done").exists() || daemon.is_none() || begun.elapsed() > LIMIT {
                break;
            }
        }
        daemon = daemon.filter(|_| vsock_daemon(node, kind) == Some(pid));
        let id = node.id(kind);
        let log = node.log();
        let logged = log.lines().filter(|line| line.contains(&id) && !line.contains("debug"));
        let logged = logged.map(str::len).sum();
        let said = fs::read_to_string(results.join("said")).unwrap_or_default();
        if daemon.is_some() {
            node.kill_process(kind, "qemu-system")?;
        }
        node.await_stopped(kind)?;
        node.forget(kind)?;
        Ok(Flood {
            said: serde_json::from_str(&said).unwrap_or(Value::String(said)),
            daemon,
            neighbour,
            logged,
        })
    }

    /// Packets without end, and no buffers for what the device has to say.
    #[test]
    fn a_driver_that_floods_vsock_makes_nothing_grow() -> Result<()> {
        /// Limit of the daemon's memory in kB.
        const DAEMON: u64 = 32 << 10;
        /// An exec takes half a second, on a machine that is not busy.
        const NEIGHBOUR: Duration = Duration::from_secs(10);
        const LOG: usize = 16 << 10;
        if Path::new("/dev/vhost-vsock").exists() {
            // The kernel's: there is no daemon.
            return Ok(());
        }
        let node = Node::start()?;
        node.run_spec("other", &node.spec("other", &["sleep", "1000"])?)?
            .arg("-d")
            .ok()?;
        let mut failed = Vec::new();
        for kind in [
            "own-cid",
            "credit",
            "response",
            "connections",
            "rings",
            "header-in-two",
            "data-in-parts",
            "chains",
        ] {
            let flood = flood(&node, kind)?;
            println!("{kind}: {flood:?}");
            let serves = ["response", "reset"].contains(&flood.said["answer"].as_str().unwrap_or_default());
            let is_bounded =
                flood.daemon.is_some_and(|memory| memory < DAEMON) && flood.neighbour < NEIGHBOUR && flood.logged < LOG;
            // Fewer are no flood. The slowest kind sends 12,000 on a machine with a load of 25.
            let enough = flood.said["sent"].as_u64() > Some(2_000);
            if !(serves && is_bounded && enough) {
                failed.push((kind, flood));
            }
        }
        assert!(failed.is_empty(), "{failed:#?}");
        node.remove("other")?;
        node.nothing_left()
    }
}
