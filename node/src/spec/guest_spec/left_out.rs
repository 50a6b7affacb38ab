//! Fields of `linux` that a guest cannot carry out. A field that a container can do without is left out, with one warning
//! that names it. A field that would be dangerous to leave out is refused.

use oci_spec::runtime::{Linux, LinuxResources, Spec};

use super::error::GuestSpecError;

/// What the guest's cgroups, of version 2, do not have.
const NOT_IN_V2: &str = "cgroup v2, which the guest has, knows no such limit";

fn sentence(field: &str, reason: &str) -> String {
    format!("{field} is left out: {reason}")
}

/// Takes the fields out of everything but the resources.
///
/// # Errors
/// A device of the host's network is to be moved into the container: there it would be missing.
pub(super) fn of_linux(linux: &mut Linux) -> Result<Vec<String>, GuestSpecError> {
    if let Some(device) = linux.net_devices().iter().flatten().map(|(name, _)| name).min() {
        return Err(GuestSpecError::Field {
            field: "linux.netDevices",
            reason: format!(
                "{device} cannot be moved into the guest: a device that is in the container's network namespace before the start \
                 is connected with it"
            ),
        });
    }
    let flags = linux
        .personality()
        .as_ref()
        .and_then(|personality| personality.flags().as_ref());
    let flags = flags.is_some_and(|flags| !flags.is_empty());
    let label = linux.mount_label().as_ref().is_some_and(|label| !label.is_empty());
    let asked = [
        (
            linux.intel_rdt().is_some(),
            "linux.intelRdt",
            "Intel RDT is not available in the guest",
        ),
        (label, "linux.mountLabel", "the guest has no SELinux"),
        (flags, "linux.personality.flags", "the specification defines none"),
    ];
    linux.set_intel_rdt(None).set_mount_label(None);
    linux.set_net_devices(None);
    Ok(asked
        .into_iter()
        .filter(|(asked, ..)| *asked)
        .map(|(_, field, reason)| sentence(field, reason))
        .collect())
}

/// Takes out of the resources what the guest has no controller for.
pub(super) fn of_resources(resources: &mut LinuxResources) -> Vec<String> {
    let mut asked = Vec::new();
    if let Some(memory) = resources.memory_mut() {
        asked.extend([
            (
                memory.swappiness().is_some(),
                "linux.resources.memory.swappiness",
                NOT_IN_V2,
            ),
            (
                memory.disable_oom_killer() == Some(true),
                "linux.resources.memory.disableOOMKiller",
                NOT_IN_V2,
            ),
            (memory.kernel().is_some(), "linux.resources.memory.kernel", NOT_IN_V2),
            (
                memory.kernel_tcp().is_some(),
                "linux.resources.memory.kernelTCP",
                NOT_IN_V2,
            ),
        ]);
        memory.set_swappiness(None).set_disable_oom_killer(None);
        memory.set_kernel(None).set_kernel_tcp(None);
    }
    if let Some(cpu) = resources.cpu_mut() {
        let realtime = [
            cpu.realtime_runtime().is_some_and(|runtime| runtime != 0),
            cpu.realtime_period().is_some_and(|period| period != 0),
        ];
        asked.push((realtime[0], "linux.resources.cpu.realtimeRuntime", NOT_IN_V2));
        asked.push((realtime[1], "linux.resources.cpu.realtimePeriod", NOT_IN_V2));
        cpu.set_realtime_runtime(None).set_realtime_period(None);
    }
    if let Some(block) = resources.block_io() {
        let of_devices = block
            .weight_device()
            .iter()
            .flatten()
            .map(|device| device.leaf_weight());
        let leaf = of_devices
            .chain([block.leaf_weight()])
            .flatten()
            .any(|weight| weight != 0);
        asked.push((leaf, "linux.resources.blockIO.leafWeight", NOT_IN_V2));
    }
    let rdma = resources.rdma().as_ref().is_some_and(|rdma| !rdma.is_empty());
    let network = resources.network().as_ref().is_some_and(|network| {
        network.class_id().is_some_and(|class| class != 0)
            || network
                .priorities()
                .as_ref()
                .is_some_and(|priorities| !priorities.is_empty())
    });
    asked.push((rdma, "linux.resources.rdma", "the guest has no RDMA devices"));
    asked.push((network, "linux.resources.network", NOT_IN_V2));
    resources.set_rdma(None);
    resources.set_network(None);
    asked
        .into_iter()
        .filter(|(asked, ..)| *asked)
        .map(|(_, field, reason)| sentence(field, reason))
        .collect()
}

/// Parts of a specification for other platforms.
pub(super) fn of_spec(spec: &mut Spec) -> Vec<String> {
    let asked = [
        (spec.vm().is_some(), "vm"),
        (spec.windows().is_some(), "windows"),
        (spec.solaris().is_some(), "solaris"),
        (spec.zos().is_some(), "zos"),
    ];
    spec.set_vm(None).set_windows(None).set_solaris(None).set_zos(None);
    let reason = "it is not of this platform: the VM is described by the runtime's configuration";
    asked
        .into_iter()
        .filter(|(asked, _)| *asked)
        .map(|(_, field)| sentence(field, reason))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::translate;
    use serde_json::json;

    #[test]
    fn each_field_that_is_left_out_is_named_once() {
        let resources = json!({
            "memory": {"swappiness": 60, "disableOOMKiller": true, "kernel": 1, "kernelTCP": 1, "limit": 1 << 30},
            "cpu": {"realtimeRuntime": 1, "realtimePeriod": 2, "shares": 2},
            "blockIO": {"leafWeight": 10},
            "network": {"classID": 7},
            "rdma": {"mlx5": {"hcaHandles": 1}},
        });
        let linux = json!({
            "resources": resources,
            "mountLabel": "system_u:object_r:x",
            "personality": {"domain": "LINUX32", "flags": ["X"]},
            "intelRdt": {"closID": "a"},
            "namespaces": [{"type": "network"}],
        });
        let guest = translate(json!({ "linux": linux, "vm": {"kernel": {"path": "/k"}} }), "me").unwrap();
        for field in [
            "linux.resources.memory.swappiness",
            "linux.resources.memory.disableOOMKiller",
            "linux.resources.memory.kernel",
            "linux.resources.memory.kernelTCP",
            "linux.resources.cpu.realtimeRuntime",
            "linux.resources.cpu.realtimePeriod",
            "linux.resources.blockIO.leafWeight",
            "linux.resources.network",
            "linux.resources.rdma",
            "linux.mountLabel",
            "linux.personality.flags",
            "linux.intelRdt",
            "vm",
        ] {
            let begin = format!("{field} is left out: ");
            let times = guest
                .warnings
                .iter()
                .filter(|warning| warning.starts_with(&begin))
                .count();
            assert_eq!(times, 1, "{field} in {:?}", guest.warnings);
        }
        let resources = guest.spec.linux().clone().unwrap().resources().clone().unwrap();
        assert_eq!(resources.memory().unwrap().limit(), Some(1 << 30));
        assert_eq!(resources.cpu().as_ref().unwrap().shares(), Some(2));
    }

    #[test]
    fn what_says_nothing_is_left_out_without_a_word() {
        let linux = json!({
            "resources": {"memory": {"disableOOMKiller": false}, "network": {}, "rdma": {}, "cpu": {"realtimeRuntime": 0}},
            "mountLabel": "",
            "namespaces": [{"type": "network"}, {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}],
        });
        let process = json!({"cwd": "/", "args": ["a"], "user": {"uid": 0, "gid": 0}, "apparmorProfile": "unconfined"});
        let guest = translate(json!({ "linux": linux, "process": process }), "me").unwrap();
        assert!(guest.warnings.is_empty(), "{:?}", guest.warnings);
    }

    #[test]
    fn a_device_of_the_hosts_network_is_refused() {
        let linux = json!({ "netDevices": {"eth7": {}}, "namespaces": [{"type": "network"}] });
        let error = translate(json!({ "linux": linux }), "me").unwrap_err().to_string();
        assert!(error.contains("linux.netDevices") && error.contains("eth7"), "{error}");
    }
}
