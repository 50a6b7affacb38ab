//! A VM is as big as its containers may use, and the limits hold in it.

use framework::{Node, Result, cri::eventually};

/// The quota of a cgroup holds a program that always wants to run: `cpu.stat` counts the periods in which it had to wait. The
/// loop ends with the first of them.
const SPIN: &str = "cd /sys/fs/cgroup; [ -e cpu.stat ] || cd cpu; until grep -q 'nr_throttled [1-9]' cpu.stat; do :; done; \
    grep -o 'nr_throttled' cpu.stat";

#[test]
fn a_quota_of_half_a_cpu_throttles_a_program_that_spins() -> Result<()> {
    let node = Node::start()?;
    let spec = node
        .spec("spin", &["sh", "-c", SPIN])?
        .set("/linux/resources/cpu/quota", 50_000)?
        .set("/linux/resources/cpu/period", 100_000)?
        .own_cgroup()?;
    let said = node.run_spec("spin", &spec)?.arg("--rm").ok()?;
    assert_eq!(said, "nr_throttled\n");
    node.nothing_left()
}

mod kata_only {
    use std::time::{Duration, Instant};

    use framework::wait;
    use serde_json::json;

    use super::*;

    /// CPUs, and the memory that is there in MiB. (/proc/meminfo tells containers without a limit what may still come.)
    const SIZE: &str = "nproc; awk '/^ *managed/ { pages += $2 } END { print int(pages / 256) }' /proc/zoneinfo";

    fn size(text: &str) -> (u32, u32) {
        let mut lines = text.lines().map(|line| line.trim().parse().unwrap_or(0));
        (lines.next().unwrap_or(0), lines.next().unwrap_or(0))
    }

    fn host_cpus() -> u32 {
        std::thread::available_parallelism().map_or(1, |cpus| u32::try_from(cpus.get()).unwrap_or(u32::MAX))
    }

    #[test]
    fn a_container_of_ctr_has_the_memory_and_the_cpus_that_it_may_use_and_256_mib_are_added() -> Result<()> {
        let node = Node::start()?;
        let (vcpus, plain) = size(&node.run("plain").args(["--rm"]).sh(SIZE).ok()?);
        assert_eq!(vcpus, 1);
        assert!((192..=256).contains(&plain), "{plain} MiB");

        let limits = ["--rm", "--memory-limit", "671088640", "--cpus", "1.5"];
        let (vcpus, memory) = size(&node.run("big").args(limits).sh(SIZE).ok()?);
        assert_eq!(vcpus, 2.min(host_cpus()));
        // 256 + 640 + 10, less what the kernel keeps for its records of pages and its tables.
        assert!((plain + 630..=906).contains(&memory), "{memory} MiB");
        node.nothing_left()
    }

    #[test]
    fn a_program_can_use_all_of_its_limit_and_no_more() -> Result<()> {
        let node = Node::start()?;
        let limited = |name: &str| node.run(name).args(["--memory-limit", "419430400", "-d"]);
        limited("all").program(["sleep", "1000"]).ok()?;
        // 256 + 400 + 7 MiB; an eighth of it, 128 MiB, and what TCG may keep of translated code, at most 1 GiB.
        let memory = node.host_memory("all")?;
        let allowed = memory.limit()?.unwrap_or(0) >> 20;
        assert!(
            (663 + 82 + 128..=663 + 83 + 128 + 1024).contains(&allowed),
            "{allowed} MiB"
        );
        node.exec("all", "use")
            .program(["guest-probe", "touch-memory", "408944640"])
            .ok()?;
        assert_eq!(memory.oom_kills()?, 0);
        // The program has ended. The host has less now than what it had taken.
        eventually("the host has its memory again", || {
            Ok((memory.used()? < 408_944_640).then_some(()))
        })?;
        node.remove("all")?;
        limited("more")
            .program(["guest-probe", "touch-memory", "425000000"])
            .ok()?;
        assert_eq!(node.await_stopped("more")?, 137);
        // It was the guest's kernel that killed it, and not the host's that killed the VM.
        assert!(!node.log().contains("the host has killed it"));
        node.forget("more")?;
        // Who asks for no limit has the VM's: 256 MiB, an eighth of it, 128 MiB, and what TCG may keep.
        node.run("free").arg("-d").program(["sleep", "1000"]).ok()?;
        let allowed = node.host_memory("free")?.limit()?.unwrap_or(0) >> 20;
        assert!(
            (256 + 32 + 128..=256 + 32 + 128 + 1024).contains(&allowed),
            "{allowed} MiB"
        );
        node.remove("free")?;
        node.nothing_left()
    }

    #[test]
    fn more_than_the_maxima_is_cut_with_a_warning() -> Result<()> {
        let node = Node::start_configured("[hypervisor.qemu]\ndefault_maxmemory = 320\ndefault_maxvcpus = 1\n")?;
        let limits = ["--rm", "--memory-limit", "4294967296", "--cpus", "64"];
        let (vcpus, memory) = size(&node.run("greedy").args(limits).sh(SIZE).ok()?);
        assert_eq!(vcpus, 1);
        assert!((250..=320).contains(&memory), "{memory} MiB");
        node.await_log(&["the limits ask for more than the VM gets: 1 vCPUs, 320 MiB"])?;
        node.nothing_left()
    }

    /// Kata's runtime-rs has the rule (its how-to-size-sandbox-overhead-runtime-rs.md).
    #[test]
    fn with_an_overhead_a_vm_has_its_limits_and_that() -> Result<()> {
        let node = Node::start_configured(
            "[hypervisor.qemu]\noverhead_vcpus = 0.5\noverhead_memory = 200\n[runtime]\nstatic_sandbox_resource_mgmt = true\n",
        )?;
        let limits = ["--rm", "--memory-limit", "314572800", "--cpus", "1"];
        let (vcpus, memory) = size(&node.run("limited").args(limits).sh(SIZE).ok()?);
        assert_eq!(vcpus, 2.min(host_cpus()));
        assert!((436..=500).contains(&memory), "{memory} MiB");
        node.nothing_left()
    }

    #[test]
    fn a_set_of_cpus_that_the_guest_has_not_is_as_many_of_its_own() -> Result<()> {
        let node = Node::start()?;
        let spec = node
            .spec("set", &["nproc"])?
            .set("/linux/resources/cpu/cpus", "200-201")?;
        let said = node.run_spec("set", &spec)?.arg("--rm").ok()?;
        assert_eq!(said.trim(), 2.min(host_cpus()).to_string());
        node.nothing_left()
    }

    /// Takes memory of the guest's that the container is not charged for, until there is no more input.
    const HOLD: &str = "mkdir /run/held && mount -t tmpfs -o size=600m held /run/held && \
        dd if=/dev/zero of=/run/held/file bs=1M count=450 2>/dev/null && echo held && exec cat";

    /// Looks until it is so: nobody tells of a limit that has changed.
    fn until(what: &str, so: impl Fn() -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + wait::patience(Duration::from_secs(200));
        while !so()? {
            assert!(Instant::now() < deadline, "not in time: the guest {what}");
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    #[test]
    fn what_a_guest_gives_back_late_the_host_takes_back_then() -> Result<()> {
        let node = Node::start_configured("[agent.kata]\ndebug_console_enabled = true\n")?;
        // A guest that is left without memory may end who holds it, and nobody else.
        let spec = node
            .spec("late", &["sleep", "1000"])?
            .set("/process/oomScoreAdj", -1000)?
            .set("/linux/resources/memory/limit", 64 << 20)?;
        node.run_spec("late", &spec)?.arg("-d").ok()?;
        let host = node.host_memory("late")?;
        let allowed = || Ok::<_, framework::Error>(host.limit()?.unwrap_or(0) >> 20);
        let limit = |mib: u64| node.update("late", &json!({ "memory": { "limit": mib << 20 } }));
        let small = allowed()?;
        limit(640)?;
        let big = allowed()?;
        assert!(big >= small + 576, "{small} MiB became {big}");
        let holder = node
            .diagnose()?
            .args(["exec", &node.id("late"), "--", "sh", "-c", HOLD]);
        let mut holder = holder.limit(Duration::from_secs(280)).spawn()?;
        holder.shows("held")?;
        limit(64)?;
        // The guest may end the holder before it is told of, and then gives everything back at once.
        let gave = |allowed: u64| allowed <= small + 100;
        let told = || {
            node.log()
                .contains("the guest keeps memory that it should give back: it is waited for")
        };
        until("keeps memory or gives it back", || Ok(told() || gave(allowed()?)))?;
        let kept = allowed()?;
        holder.close_stdin();
        holder.wait()?;
        // The guest's kernel tries again 50 s after it has failed, and the next time 100 s later.
        until("gives back what it kept", || {
            let allowed = allowed()?;
            Ok(gave(allowed) || allowed + 100 <= kept)
        })?;
        node.remove("late")?;
        node.nothing_left()
    }
}
