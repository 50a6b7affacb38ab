//! Limits and figures, through CRI.

use std::{fs, path::Path};

use framework::{
    Result,
    cri::{
        PodNode, eventually,
        messages::{LinuxContainerResources, UpdateContainerResourcesRequest},
        pod::resources,
    },
};

#[test]
fn a_containers_figures_are_its_own_and_its_limits_can_be_changed() -> Result<()> {
    let node = PodNode::start()?;
    let pod = node.run_pod("figures")?;
    let mut config = pod.script("user", "guest-probe touch-memory 30000000; read forever");
    config.stdin = true;
    config.command = vec![
        "sh".into(),
        "-c".into(),
        "dd if=/dev/zero of=/dev/shm/f bs=1M count=24; echo ready; sleep 1000".into(),
    ];
    resources(&mut config).memory_limit_in_bytes = 64 << 20;
    let user = pod.start(&config)?;
    user.await_line("ready")?;

    let stats = node.cri().container_stats(&user.id)?;
    let memory = stats
        .memory
        .and_then(|memory| memory.working_set_bytes)
        .map_or(0, |bytes| bytes.value);
    assert!(
        (20 << 20..64 << 20).contains(&memory),
        "a working set of {memory} bytes"
    );
    let cpu = stats
        .cpu
        .and_then(|cpu| cpu.usage_core_nano_seconds)
        .map_or(0, |usage| usage.value);
    assert!(cpu > 0);
    let all = node.cri().all_container_stats()?;
    let ids: Vec<_> = all
        .iter()
        .filter_map(|stats| Some(stats.attributes.as_ref()?.id.as_str()))
        .collect();
    assert_eq!(ids, [user.id.as_str()]);

    node.cri().update_resources(UpdateContainerResourcesRequest {
        container_id: user.id.clone(),
        linux: Some(LinuxContainerResources {
            memory_limit_in_bytes: 40 << 20,
            cpu_period: 100_000,
            cpu_quota: 50_000,
            ..LinuxContainerResources::default()
        }),
    })?;
    let more = user.sh("dd if=/dev/zero of=/dev/shm/g bs=1M count=30 2>&1; echo code $?");
    // Either the writer was killed inside the shell, or the exec as a whole was: both are the new limit at work.
    assert!(more.as_ref().map_or(true, |text| !text.contains("code 0")), "{more:?}");
    pod.remove()?;
    node.nothing_left()
}

mod kata_only {
    use super::*;

    /// Files of the guest's cgroup, which are of version 2 on every host. A set of CPUs has the host's numbers, and stays there.
    const READ: &str =
        "cd /sys/fs/cgroup; cat memory.max memory.swap.max memory.high cpu.max cpu.weight cpuset.cpus pids.max";

    #[test]
    fn each_limit_is_in_force_and_is_changed_while_the_container_runs() -> Result<()> {
        let node = PodNode::start()?;
        let pod = node.run_pod("limits")?;
        let mut config = pod.container("limited", &["sleep", "1000"]);
        let unified = |high: &str, pids: &str| {
            let keys = [("memory.high", high), ("pids.max", pids)];
            keys.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
        };
        *resources(&mut config) = LinuxContainerResources {
            memory_limit_in_bytes: 64 << 20,
            memory_swap_limit_in_bytes: 96 << 20,
            cpu_period: 100_000,
            cpu_quota: 50_000,
            cpu_shares: 512,
            cpuset_cpus: "0".to_owned(),
            unified: unified("50331648", "33"),
            ..LinuxContainerResources::default()
        };
        let limited = pod.start(&config)?;
        assert_eq!(
            limited.sh(READ)?,
            "67108864\n33554432\n50331648\n50000 100000\n59\n\n33\n"
        );
        node.cri().update_resources(UpdateContainerResourcesRequest {
            container_id: limited.id.clone(),
            linux: Some(LinuxContainerResources {
                memory_limit_in_bytes: 80 << 20,
                memory_swap_limit_in_bytes: 80 << 20,
                cpu_period: 50_000,
                cpu_quota: 20_000,
                cpu_shares: 256,
                unified: unified("67108864", "44"),
                ..LinuxContainerResources::default()
            }),
        })?;
        assert_eq!(limited.sh(READ)?, "83886080\n0\n67108864\n20000 50000\n35\n\n44\n");
        pod.remove()?;
        node.nothing_left()
    }

    #[test]
    fn a_set_of_cpus_is_the_hosts_follows_updates_and_goes_when_it_is_taken_away() -> Result<()> {
        let node = PodNode::start()?;
        let pod = node.run_pod("sets")?;
        let set = || node.host_limit(&pod.id, &["cpuset.cpus.effective", "cpuset.effective_cpus"]);
        let whole = set()?;
        let mut config = pod.container("bound", &["sleep", "1000"]);
        resources(&mut config).cpuset_cpus = "0".to_owned();
        let bound = pod.start(&config)?;
        assert_eq!(set()?, "0");
        // Whoever has no set may use all CPUs, until it has gone.
        let free = pod.start(&pod.container("free", &["sleep", "1000"]))?;
        assert_eq!(set()?, whole);
        free.stop(0)?;
        free.remove()?;
        eventually("the set is in force again", || Ok((set()? == "0").then_some(())))?;

        let update = |cpus: &str, unified: &[(&str, &str)]| {
            let keys = unified
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
            node.cri().update_resources(UpdateContainerResourcesRequest {
                container_id: bound.id.clone(),
                linux: Some(LinuxContainerResources {
                    cpuset_cpus: cpus.to_owned(),
                    unified: keys.collect(),
                    ..LinuxContainerResources::default()
                }),
            })
        };
        // The guest has one CPU, and is not asked.
        update(&whole, &[])?;
        assert_eq!(set()?, whole);
        update("", &[("cpuset.cpus", "0")])?;
        assert_eq!(set()?, "0");
        update("", &[("cpuset.cpus", "")])?;
        assert_eq!(set()?, whole);
        assert_eq!(bound.sh("cat /sys/fs/cgroup/cpuset.cpus")?, "\n");
        pod.remove()?;
        node.nothing_left()
    }

    /// The CPUs that each thread of a pod's QEMU may run on, each list once, sorted.
    fn affinities(node: &PodNode, pod: &str) -> Result<Vec<String>> {
        let pids = node.host_limit(pod, &["vm/cgroup.procs", "cgroup.procs"])?;
        let qemu = pids
            .lines()
            .map(|pid| Path::new("/proc").join(pid))
            .find(|process| fs::read_to_string(process.join("comm")).is_ok_and(|name| name.starts_with("qemu-system")));
        let threads = qemu.and_then(|qemu| fs::read_dir(qemu.join("task")).ok()).into_iter();
        let mut lists: Vec<_> = threads
            .flatten()
            .filter_map(|thread| {
                // One that ends meanwhile counts no more.
                let status = fs::read_to_string(thread.ok()?.path().join("status")).ok()?;
                let list = status
                    .lines()
                    .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
                Some(list.trim().to_owned())
            })
            .collect();
        lists.sort();
        lists.dedup();
        Ok(lists)
    }

    #[test]
    fn vcpus_are_pinned_while_there_are_as_many_as_cpus_in_the_set() -> Result<()> {
        let node = PodNode::start_configured("[runtime]\nenable_vcpus_pinning = true\n")?;
        let pod = node.run_pod("pinned")?;
        let becomes =
            |what: &str, lists: &[&str]| eventually(what, || Ok((affinities(&node, &pod.id)? == lists).then_some(())));
        let whole = affinities(&node, &pod.id)?;
        let whole: Vec<_> = whole.iter().map(String::as_str).collect();
        assert_eq!(whole.len(), 1, "nobody has a set: {whole:?}");
        let mut config = pod.container("user", &["sleep", "1000"]);
        *resources(&mut config) = LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: 200_000,
            cpuset_cpus: "0-1".to_owned(),
            ..LinuxContainerResources::default()
        };
        let user = pod.start(&config)?;
        // Each vCPU has its own; QEMU's other threads have both.
        becomes("two vCPUs are pinned to two CPUs", &["0", "0-1", "1"])?;
        let update = |cpus: &str| {
            node.cri().update_resources(UpdateContainerResourcesRequest {
                container_id: user.id.clone(),
                linux: Some(LinuxContainerResources {
                    unified: [("cpuset.cpus".to_owned(), cpus.to_owned())].into(),
                    ..LinuxContainerResources::default()
                }),
            })
        };
        update("1")?;
        becomes("two vCPUs share a CPU", &["1"])?;
        update("0-1")?;
        becomes("they are pinned again", &["0", "0-1", "1"])?;
        update("")?;
        becomes("they may run everywhere", &whole)?;
        pod.remove()?;
        node.nothing_left()
    }
}
