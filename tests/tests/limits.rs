//! The limits of a container's spec are those of its cgroup, and they hold.

use framework::{Node, Result};

/// Prints the files of the process's own cgroup, wherever the hierarchy is mounted: first those of version 2, then those
/// of version 1, so that the same test reads both.
const READ: &str = "cd /sys/fs/cgroup; for file in memory.max memory/memory.limit_in_bytes; do [ -e $file ] && cat $file; done; \
    for file in pids.max pids/pids.max; do [ -e $file ] && cat $file; done; \
    for file in cpu.max cpu/cpu.cfs_quota_us; do [ -e $file ] && cut -d' ' -f1 $file; done; true";

#[test]
fn memory_pids_and_cpu_are_limited_as_the_spec_says() -> Result<()> {
    let node = Node::start()?;
    let spec = node
        .spec("limits", &["sh", "-c", READ])?
        .set("/linux/resources/memory/limit", 64 << 20)?
        .set("/linux/resources/pids/limit", 23)?
        .set("/linux/resources/cpu/quota", 50_000)?
        .set("/linux/resources/cpu/period", 100_000)?
        .own_cgroup()?;
    let said = node.run_spec("limits", &spec)?.arg("--rm").ok()?;
    assert_eq!(said, "67108864\n23\n50000\n");
    node.nothing_left()
}

#[test]
fn a_process_too_many_cannot_be_started() -> Result<()> {
    let node = Node::start()?;
    let script = "for n in 1 2 3 4 5 6 7 8 9 10; do sleep 1000 & done; echo all";
    let spec = node
        .spec("forks", &["sh", "-c", script])?
        .set("/linux/resources/pids/limit", 5)?;
    let output = node.run_spec("forks", &spec)?.arg("--rm").output()?;
    assert!(output.stderr().contains("fork"), "{}", output.stderr());
    assert!(!output.stdout().contains("all"), "{}", output.stdout());
    node.nothing_left()
}

#[test]
fn a_container_that_takes_more_memory_than_it_may_is_killed_and_that_is_announced() -> Result<()> {
    let node = Node::start()?;
    let spec = node
        .spec("oom", &["guest-probe", "touch-memory", "200000000"])?
        .set("/linux/resources/memory/limit", 32 << 20)?
        .set("/linux/resources/memory/swap", 32 << 20)?;
    node.run_spec("oom", &spec)?.arg("-d").ok()?;
    assert_eq!(node.await_stopped("oom")?, 137);
    node.forget("oom")?;
    node.nothing_left()
}

/// runc's own start needs more than a megabyte, so there the limit kills it, not the program.
mod kata_only {
    use super::*;

    #[test]
    fn one_megabyte_is_enough_to_start_and_a_program_that_takes_more_is_killed() -> Result<()> {
        let node = Node::start()?;
        let small = |name: &str, args: &[&str]| {
            node.spec(name, args)?
                .set("/linux/resources/memory/limit", 1 << 20)?
                .set("/linux/resources/memory/swap", 1 << 20)
        };
        let output = node
            .run_spec("small", &small("small", &["echo", "small"])?)?
            .arg("--rm")
            .output()?;
        assert_eq!(output.success()?.stdout(), "small\n");

        node.run_spec("oom", &small("oom", &["guest-probe", "touch-memory", "50000000"])?)?
            .arg("-d")
            .ok()?;
        node.await_oom("oom")?;
        assert_eq!(node.await_stopped("oom")?, 137);
        node.forget("oom")?;
        node.nothing_left()
    }
}
