//! Each limit is a file of the container's own cgroup in the guest, holds there, and is changed while the container runs. Memory, CPU
//! time, processes and unified keys are in `cri/resources.rs`; sets of CPUs, which are the host's, too.

mod kata_only {
    use framework::{Node, Result, disk::RawImage};
    use serde_json::{Value, json};

    const MIB: i64 = 1 << 20;

    /// What a container's own cgroup says in these files.
    fn says(node: &Node, name: &str, exec: &str, files: &str) -> Result<String> {
        node.exec(name, exec)
            .sh(&format!("cd /sys/fs/cgroup; cat {files}"))
            .ok()
    }

    #[test]
    fn reservation_swap_burst_and_huge_pages_are_limits_that_can_be_changed() -> Result<()> {
        let node = Node::start()?;
        let resources = |memory: i64, swap: i64, burst: u64, huge: i64| {
            json!({
                "memory": { "limit": 2 * memory, "reservation": memory, "swap": 2 * memory + swap },
                "cpu": { "quota": 50_000, "period": 100_000, "burst": burst },
                "hugepageLimits": [{ "pageSize": "2MB", "limit": huge }],
            })
        };
        let files = "memory.low memory.max memory.swap.max cpu.max.burst hugetlb.2MB.max hugetlb.2MB.rsvd.max";
        let mut spec = node.spec("limited", &["sleep", "1000"])?.own_cgroup()?;
        for (name, value) in resources(32 * MIB, 16 * MIB, 20_000, 4 * MIB)
            .as_object()
            .into_iter()
            .flatten()
        {
            spec = spec.set(&format!("/linux/resources/{name}"), value.clone())?;
        }
        node.run_spec("limited", &spec)?.arg("-d").ok()?;
        assert_eq!(
            says(&node, "limited", "before", files)?,
            "33554432\n67108864\n16777216\n20000\n4194304\n4194304\n"
        );
        node.update("limited", &resources(48 * MIB, 0, 10_000, 6 * MIB))?;
        assert_eq!(
            says(&node, "limited", "after", files)?,
            "50331648\n100663296\n0\n10000\n6291456\n6291456\n"
        );
        // What an update does not name stays; -1 is no limit.
        node.update("limited", &json!({ "memory": { "reservation": -1, "limit": -1 } }))?;
        assert_eq!(
            says(&node, "limited", "free", files)?,
            "max\nmax\nmax\n10000\n6291456\n6291456\n"
        );
        node.remove("limited")?;
        node.nothing_left()
    }

    #[test]
    fn an_update_that_is_refused_half_way_changes_nothing() -> Result<()> {
        let node = Node::start()?;
        let spec = node.spec("limited", &["sleep", "1000"])?.own_cgroup()?;
        node.run_spec("limited", &spec)?.arg("-d").ok()?;
        node.update("limited", &json!({ "cpu": { "idle": 1 } }))?;
        let files = "cpu.idle memory.low";
        assert_eq!(says(&node, "limited", "before", files)?, "1\n0\n");
        let half = json!({
            "cpu": { "idle": 0 },
            "memory": { "reservation": 32 * MIB },
            "unified": { "memory.oom.group": "7" },
        });
        let refused = format!("{:?}", node.update("limited", &half).unwrap_err());
        assert!(refused.contains("memory.oom.group"), "{refused}");
        assert_eq!(says(&node, "limited", "refused", files)?, "1\n0\n");
        // One that is idle has no weight: it stops being idle first.
        node.update("limited", &json!({ "cpu": { "shares": 1024, "idle": 0 } }))?;
        assert_eq!(says(&node, "limited", "after", "cpu.idle cpu.weight")?, "0\n100\n");
        node.remove("limited")?;
        node.nothing_left()
    }

    #[test]
    fn huge_pages_beyond_the_limit_cannot_be_mapped_until_an_update_allows_them() -> Result<()> {
        // The guest has more of them than the container may have.
        let node = Node::start_configured("[hypervisor.qemu]\nkernel_params = \"hugepages=8\"\n")?;
        let limit = |pages: i64| json!([{ "pageSize": "2MB", "limit": pages * 2 * MIB }]);
        let spec = node
            .spec("huge", &["sleep", "1000"])?
            .set("/linux/resources/hugepageLimits", limit(2))?;
        node.run_spec("huge", &spec)?.arg("-d").ok()?;
        let maps = |exec: &str, pages: &str| {
            node.exec("huge", exec)
                .program(["guest-probe", "huge-pages", "-", pages])
                .ok()
        };
        let enomem = "12\n";
        assert_eq!((maps("a", "2")?.as_str(), maps("b", "3")?.as_str()), ("0\n", enomem));
        node.update("huge", &json!({ "hugepageLimits": limit(4) }))?;
        assert_eq!((maps("c", "4")?.as_str(), maps("d", "5")?.as_str()), ("0\n", enomem));
        node.remove("huge")?;
        node.nothing_left()
    }

    /// Reads six MiB of the disk that nobody has read before, and says for how many whole seconds.
    fn reads(node: &Node, exec: &str, from: u32) -> Result<u64> {
        let script = format!(
            "t=$(date +%s); dd if=/dev/disk of=/dev/null bs=1M skip={from} count=6 2>/dev/null; echo $(($(date +%s) - t))"
        );
        let seconds = node.exec("reader", exec).sh(&script).ok()?;
        Ok(seconds.trim().parse().unwrap_or(0))
    }

    #[test]
    fn a_disk_of_the_container_is_throttled_and_a_limit_for_one_that_the_guest_has_not_is_said_to_be_left_out()
    -> Result<()> {
        let node = Node::start()?;
        let image = RawImage::with(&node.dir().join("disk"), "x", 32 << 20)?;
        let host = image.loop_device()?;
        let spec = node.spec("reader", &["sleep", "1000"])?.own_cgroup()?;
        let spec = host.given_to(spec, "/dev/disk", "rwm")?;
        let numbers = |field: &str| spec.get(&format!("/linux/devices/0/{field}")).as_i64().unwrap_or(-1);
        let (major, minor) = (numbers("major"), numbers("minor"));
        let rate = |major: i64, minor: i64, rate: i64| json!({ "major": major, "minor": minor, "rate": rate });
        let block = |bytes: i64, operations: i64| -> Value {
            json!({
                "weight": 300,
                "throttleReadBpsDevice": [rate(major, minor, bytes), rate(4001, 7, 1)],
                "throttleWriteIOPSDevice": [rate(major, minor, operations)],
            })
        };
        let spec = spec.set("/linux/resources/blockIO", block(MIB, 50))?;
        node.run_spec("reader", &spec)?.arg("-d").ok()?;
        let disk = node
            .exec("reader", "number")
            .sh("printf %d:%d 0x$(stat -c %t /dev/disk) 0x$(stat -c %T /dev/disk)")
            .ok()?;
        let disk = disk.trim();
        assert_eq!(
            says(&node, "reader", "set", "io.max io.weight")?,
            format!("{disk} rbps=1048576 wbps=max riops=max wiops=50\ndefault 2930\n")
        );
        node.await_log(&["limits of I/O are left out", "4001:7"])?;
        let slow = reads(&node, "slow", 0)?;
        assert!(slow >= 3, "6 MiB in {slow} s at 1 MiB/s");

        node.update("reader", &json!({ "blockIO": block(64 * MIB, 0) }))?;
        assert_eq!(
            says(&node, "reader", "updated", "io.max")?,
            format!("{disk} rbps=67108864 wbps=max riops=max wiops=max\n")
        );
        reads(&node, "fast", 8)?;
        let key = format!("{major}:{minor} rbps=max wbps=2097152");
        node.update("reader", &json!({ "unified": { "io.max": key } }))?;
        assert_eq!(
            says(&node, "reader", "unified", "io.max")?,
            format!("{disk} rbps=max wbps=2097152 riops=max wiops=max\n")
        );
        node.remove("reader")?;
        host.detach()?;
        node.nothing_left()
    }
}
