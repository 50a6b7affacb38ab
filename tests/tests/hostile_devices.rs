//! A guest whose driver of a virtio device breaks the rules harms nobody but its own VM.

mod kata_only {
    use std::fs;

    use framework::{NetNs, Node, Result, disk::RawImage, leftovers};
    use serde_json::json;

    const ROUNDS: &str = "1500";
    /// Of the generator, so that a failure can be had again.
    const SEED: &str = "20261130";

    fn alive(node: &Node, at: &str) -> Result<()> {
        let exec = format!("alive-{at}");
        assert_eq!(node.exec("other", &exec).program(["echo", "alive"]).ok()?, "alive\n");
        Ok(())
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
            .ok()?;
        for (device, id, rounds) in [
            ("rng", "0x1005", 1500),
            // Each of its requests has the host take pages away, one by one.
            ("balloon", "0x1002", 150),
            ("disk", "0x1042", 1500),
            ("net", "0x1000", 1500),
            ("memory", "0x1058", 1500),
        ] {
            let said = node
                .exec("hostile", device)
                .program(["guest-probe", "hostile", id, &rounds.to_string(), SEED])
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

    /// The devices that a daemon serves, which may end of it, and the VM with it.
    #[test]
    fn a_driver_that_breaks_the_rules_of_a_daemons_device_ends_its_own_vm_at_most() -> Result<()> {
        let node = Node::start()?;
        node.run_spec("other", &node.spec("other", &["sleep", "1000"])?)?
            .arg("-d")
            .ok()?;
        for (device, id) in [("vsock", "0x1053"), ("fs", "0x105a")] {
            // From memory: the container's files may be behind the device, and what it says is behind the other.
            let script = format!("cp /bin/guest-probe /tmp/probe && exec /tmp/probe hostile {id} {ROUNDS} {SEED}");
            let spec = node.spec(device, &["sh", "-c", &script])?.of_the_guest()?;
            node.run_spec(device, &spec)?.arg("-d").ok()?;
            for look in 0..20 {
                alive(&node, &format!("{device}{look}"))?;
                for process in leftovers::processes(&node.id(device)) {
                    let status = fs::read_to_string(format!("/proc/{}/status", process.pid)).unwrap_or_default();
                    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
                    let resident = resident.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
                    // QEMU's is the VM's own memory and the translated code.
                    let most = if process.program().contains("qemu") {
                        1 << 20
                    } else {
                        256 << 10
                    };
                    assert!(
                        resident.unwrap_or(0) < most,
                        "{device}: {process:?} has {resident:?} kB"
                    );
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
}
