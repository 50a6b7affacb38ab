//! The VM of a pod grows and shrinks with its containers.

use framework::{
    Result,
    cri::{
        Container, PodNode, Sandboxer, eventually,
        messages::{LinuxContainerResources, UpdateContainerResourcesRequest},
        pod::resources,
    },
    locate::{self, Version},
};

const MIB: i64 = 1 << 20;

/// Memory of the guest in MiB, as a program in it sees it.
fn memory(container: &Container<'_>) -> Result<i64> {
    let text = container.sh("awk '/^MemTotal:/ { print int($2 / 1024) }' /proc/meminfo")?;
    Ok(text.trim().parse().unwrap_or(0))
}

fn vcpus(container: &Container<'_>) -> Result<u32> {
    Ok(container.sh("nproc")?.trim().parse().unwrap_or(0))
}

fn host_cpus() -> u32 {
    std::thread::available_parallelism().map_or(1, |cpus| u32::try_from(cpus.get()).unwrap_or(u32::MAX))
}

/// Uses so much memory at once, and gives it back.
fn uses(container: &Container<'_>, mib: i64) -> Result<()> {
    container
        .exec(&["guest-probe", "touch-memory", &(mib * MIB).to_string()])
        .map(drop)
}

#[test]
fn a_second_container_makes_the_vm_bigger_and_its_removal_gives_that_back() -> Result<()> {
    let node = PodNode::start()?;
    let pod = node.run_pod("grows")?;
    let first = pod.start(&pod.script("first", "sleep 1000"))?;
    let (cpus, before) = (vcpus(&first)?, memory(&first)?);
    assert_eq!(cpus, 1);

    let mut config = pod.script("second", "sleep 1000");
    resources(&mut config).memory_limit_in_bytes = 512 * MIB;
    resources(&mut config).cpu_quota = 150_000;
    resources(&mut config).cpu_period = 100_000;
    let second = pod.start(&config)?;
    let grown = memory(&first)?;
    assert!(
        (before + 512..=before + 524).contains(&grown),
        "{before} MiB became {grown}"
    );
    assert_eq!(vcpus(&first)?, 2.min(host_cpus()));
    assert_eq!(vcpus(&second)?, 2.min(host_cpus()));
    uses(&second, 480)?;
    // The daemon that serves its files sees the new memory, too.
    second.sh("cp /bin/busybox /copy && cmp /bin/busybox /copy")?;

    second.stop(0)?;
    second.remove()?;
    // The kernel may keep some pages of it for itself.
    eventually("the VM is small again", || {
        Ok((memory(&first)? <= before + 64).then_some(()))
    })?;
    // With TCG a vCPU stays: QEMU would abort when it came back (docs/decisions/0015-sizing.md).
    let left = if locate::has_to_be_kvm() { 1 } else { 2.min(host_cpus()) };
    eventually("the VM has the vCPUs that are left", || {
        Ok((vcpus(&first)? == left).then_some(()))
    })?;
    // It can grow again.
    config.metadata.get_or_insert_default().name = "third".to_owned();
    let third = pod.start(&config)?;
    uses(&third, 480)?;
    assert_eq!(vcpus(&third)?, 2.min(host_cpus()));
    pod.remove()?;
    node.nothing_left()
}

#[test]
fn an_update_gives_a_running_container_memory_that_it_can_use() -> Result<()> {
    a_container_is_given_memory(&PodNode::start()?)
}

#[test]
fn an_update_on_containerd_1_7_gives_a_running_container_memory_that_it_can_use() -> Result<()> {
    a_container_is_given_memory(&PodNode::start_with(Version::V1_7, Sandboxer::Podsandbox, None)?)
}

#[test]
fn an_update_by_the_sandbox_api_gives_a_running_container_memory_that_it_can_use() -> Result<()> {
    a_container_is_given_memory(&PodNode::start_with(Version::V2_1, Sandboxer::Shim, None)?)
}

/// The pod's limits are known before its VM boots.
fn a_container_is_given_memory(node: &PodNode) -> Result<()> {
    let mut config = node.pod("updates");
    config.linux.get_or_insert_default().resources = Some(LinuxContainerResources {
        memory_limit_in_bytes: 64 * MIB,
        ..LinuxContainerResources::default()
    });
    let pod = node.run(&config)?;
    let mut config = pod.script("user", "sleep 1000");
    resources(&mut config).memory_limit_in_bytes = 64 * MIB;
    let user = pod.start(&config)?;
    let before = memory(&user)?;
    assert!((192 + 64..=256 + 65).contains(&before), "{before} MiB");
    // Twice the same is once.
    for _ in 0..2 {
        node.cri().update_resources(UpdateContainerResourcesRequest {
            container_id: user.id.clone(),
            linux: Some(LinuxContainerResources {
                memory_limit_in_bytes: 512 * MIB,
                ..LinuxContainerResources::default()
            }),
        })?;
    }
    let grown = memory(&user)?;
    assert!(
        (before + 448..=before + 464).contains(&grown),
        "{before} MiB became {grown}"
    );
    uses(&user, 400)?;
    let stats = node.cri().container_stats(&user.id)?;
    let available = stats
        .memory
        .and_then(|memory| memory.available_bytes)
        .map_or(0, |bytes| bytes.value);
    let limit = u64::try_from(512 * MIB).unwrap_or_default();
    assert!(
        (limit / 2..=limit).contains(&available),
        "{available} bytes of the new limit are free"
    );
    pod.remove()?;
    node.nothing_left()
}

#[test]
fn a_pod_whose_limits_are_known_boots_with_them_and_a_static_one_stays_so() -> Result<()> {
    let node = PodNode::start_configured("[runtime]\nstatic_sandbox_resource_mgmt = true\n")?;
    let mut config = node.pod("known");
    config.linux.get_or_insert_default().resources = Some(LinuxContainerResources {
        memory_limit_in_bytes: 256 * MIB,
        cpu_quota: 200_000,
        cpu_period: 100_000,
        ..LinuxContainerResources::default()
    });
    let pod = node.run(&config)?;
    let first = pod.start(&pod.script("first", "sleep 1000"))?;
    let booted = memory(&first)?;
    assert!((192 + 256..=256 + 260).contains(&booted), "{booted} MiB");
    assert_eq!(vcpus(&first)?, 2.min(host_cpus()));
    let mut config = pod.script("second", "sleep 1000");
    resources(&mut config).memory_limit_in_bytes = 1024 * MIB;
    let second = pod.start(&config)?;
    assert_eq!(memory(&second)?, booted);
    pod.remove()?;
    node.nothing_left()
}
