//! The figures of pods and of their containers, as the kubelet asks for them.

use std::thread;

use framework::{
    Result,
    cri::{
        PodNode, Sandboxer,
        messages::{ContainerStats, UInt64Value},
        node::eventually,
        pod::resources,
    },
    locate::Version,
};

fn value(value: Option<UInt64Value>) -> u64 {
    value.map_or(0, |value| value.value)
}

fn working_set(stats: &ContainerStats) -> u64 {
    value(stats.memory.as_ref().and_then(|memory| memory.working_set_bytes))
}

fn cpu(stats: &ContainerStats) -> u64 {
    value(stats.cpu.as_ref().and_then(|cpu| cpu.usage_core_nano_seconds))
}

/// Two pods, in one of which a container uses a known amount of memory and the processor.
fn a_pod_has_its_own_figures_and_its_containers(version: Version, sandboxer: Sandboxer) -> Result<()> {
    let node = PodNode::start_with(version, sandboxer, None)?;
    let (busy, idle) = (node.run_pod("busy")?, node.run_pod("idle")?);
    let mut config = busy.script(
        "user",
        "dd if=/dev/zero of=/dev/shm/f bs=1M count=24; echo ready; while true; do :; done",
    );
    resources(&mut config).memory_limit_in_bytes = 64 << 20;
    let user = busy.start(&config)?;
    let sleeper = busy.start(&busy.container("sleeper", &["sleep", "1000"]))?;
    user.await_line("ready")?;
    // Figures may be those of a moment ago.
    let stats = eventually("the pod has figures, and both containers have", || {
        let stats = node.cri().pod_stats(&busy.id)?;
        let linux = stats.linux.clone().unwrap_or_default();
        let used = value(linux.memory.as_ref().and_then(|memory| memory.working_set_bytes));
        let largest = linux.containers.iter().map(working_set).max().unwrap_or_default();
        let counted = linux.containers.iter().any(|container| cpu(container) > 0);
        // What the pod uses, counted on the host, is its containers' use and what holds them.
        let whole = linux.containers.len() == 2 && largest > 20 << 20 && used > largest;
        Ok((whole && counted).then_some(stats))
    })?;
    let linux = stats.linux.unwrap_or_default();
    let attributes = stats.attributes.unwrap_or_default();
    assert_eq!(attributes.id, busy.id);
    assert_eq!(attributes.metadata.unwrap_or_default().name, "busy");

    // What the container uses is counted in the guest.
    let of = |id: &str| {
        let mut all = linux.containers.iter();
        all.find(|stats| stats.attributes.as_ref().is_some_and(|attributes| attributes.id == id))
    };
    let used = of(&user.id).map_or(0, working_set);
    assert!((20 << 20..64 << 20).contains(&used), "a working set of {used} bytes");
    assert!(of(&sleeper.id).is_some_and(|stats| working_set(stats) < 20 << 20));
    assert!(value(linux.cpu.as_ref().and_then(|cpu| cpu.usage_core_nano_seconds)) > 0);

    // Each pod has its own, in the list too.
    let all = node.cri().all_pod_stats()?;
    let mut ids: Vec<_> = all
        .iter()
        .filter_map(|stats| Some(stats.attributes.as_ref()?.id.clone()))
        .collect();
    ids.sort();
    let mut wanted = vec![busy.id.clone(), idle.id.clone()];
    wanted.sort();
    assert_eq!(ids, wanted);
    thread::scope(|scope| {
        let removed = scope.spawn(|| busy.remove());
        let other = idle.remove();
        removed
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        other
    })?;
    node.nothing_left()
}

#[test]
fn a_pod_on_containerd_1_7_has_its_figures() -> Result<()> {
    a_pod_has_its_own_figures_and_its_containers(Version::V1_7, Sandboxer::Podsandbox)
}

#[test]
fn a_pod_on_containerd_2_1_has_its_figures() -> Result<()> {
    a_pod_has_its_own_figures_and_its_containers(Version::V2_1, Sandboxer::Podsandbox)
}

mod kata_only {
    use super::*;

    #[test]
    fn a_pod_by_the_sandbox_api_has_its_figures() -> Result<()> {
        a_pod_has_its_own_figures_and_its_containers(Version::V2_1, Sandboxer::Shim)
    }
}
