//! The limits of the sandbox's cgroup on the host, computed from the VM's size and the limits of its containers
//! (docs/decisions/0019).
//!
//! The kubelet limits a pod's memory and shares, on the cgroup above. The CPUs that the kubelet assigns exclusively to a
//! container are known only here.

use config::Mebibytes;
use hypervisor::Size;

use super::limits::Limits;
use super::set::NumberSet;

/// Of the VM's memory, one in so many is added for what grows with it on the host: the page tables of who maps it, and what
/// virtiofsd keeps of each file that the guest knows.
const SHARE: u64 = 8;

/// Limits of a cgroup. What is not there is not limited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HostLimits {
    /// Limit of memory, in bytes.
    pub memory: Option<u64>,
    /// Shares of CPU time, as v1 counts them.
    pub shares: Option<u64>,
    /// CPUs that may be used.
    pub cpus: Option<NumberSet>,
    /// Memory nodes that may be used.
    pub mems: Option<NumberSet>,
    /// Processes and threads.
    pub pids: Option<u64>,
}

impl HostLimits {
    /// These limits, for a VM that may still have the memory that it had before.
    #[must_use]
    pub fn with_room_of(self, before: Self) -> Self {
        // No limit is the largest.
        let memory = self.memory.zip(before.memory).map(|(new, old)| new.max(old));
        Self { memory, ..self }
    }
}

/// How limits of containers become the host's.
#[derive(Debug, Clone, Copy)]
pub(super) struct HostRule {
    /// The kubelet limits the cgroup above.
    pub(super) kubelet: bool,
    /// What QEMU and the daemons may need of their own, however small the VM is.
    pub(super) overhead: Mebibytes,
    /// The most threads of QEMU and the daemons.
    pub(super) threads: u64,
}

impl HostRule {
    /// For a VM of this size with these containers, of which there is at least one. Memory follows the VM's size, whatever the
    /// containers' limits are: what they may use is in the VM. Sets and shares are limited for all together if they are for each.
    pub(super) fn limits(self, size: Size, containers: &[Limits]) -> HostLimits {
        let all = |what: fn(&Limits) -> Option<NumberSet>| {
            let sets: Option<Vec<_>> = containers.iter().map(what).collect();
            sets?.into_iter().reduce(NumberSet::union)
        };
        let own = (!self.kubelet).then_some(containers);
        let shares: Option<Vec<u64>> = own.and_then(|own| own.iter().map(|limits| limits.shares).collect());
        HostLimits {
            memory: own.map(|_| self.memory(size.memory)),
            shares: shares.map(|shares| shares.into_iter().fold(0, u64::saturating_add)),
            cpus: all(|limits| limits.cpus),
            mems: all(|limits| limits.mems),
            pids: Some(self.pids(containers.len())),
        }
    }

    /// A process stands for each container on the host.
    pub(super) fn pids(self, containers: usize) -> u64 {
        self.threads.saturating_add(containers.try_into().unwrap_or(u64::MAX))
    }

    fn memory(self, vm: Mebibytes) -> u64 {
        vm.bytes()
            .saturating_add(self.overhead.bytes())
            .saturating_add(vm.bytes() / SHARE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU32;

    const MIB: u64 = 1 << 20;
    const THREADS: u64 = 100;
    const MEMORY: Option<u64> = Some((800 + 128 + 100) * MIB);

    fn limits(json: &str) -> Limits {
        Limits::of(&serde_json::from_str(json).unwrap())
    }

    fn host(kubelet: bool, containers: &[Limits]) -> HostLimits {
        let overhead = Mebibytes(128);
        let size = Size {
            vcpus: NonZeroU32::MIN,
            memory: Mebibytes(800),
        };
        HostRule {
            kubelet,
            overhead,
            threads: THREADS,
        }
        .limits(size, containers)
    }

    #[test]
    fn the_vms_memory_and_what_the_vmm_needs_is_the_hosts_limit() {
        let one = limits(r#"{"memory":{"limit":536870912},"cpu":{"shares":512}}"#);
        let alone = host(false, &[one]);
        assert_eq!(alone.memory, MEMORY);
        assert_eq!(alone.shares, Some(512));
        assert_eq!(host(false, &[one, one]).shares, Some(1024));
        // A quota is kept in the guest.
        let quota = limits(r#"{"cpu":{"quota":10000,"period":100000}}"#);
        assert_eq!(host(false, &[quota]), of_the_vm(1));
    }

    /// What every VM's cgroup is limited to, without the kubelet.
    fn of_the_vm(containers: u64) -> HostLimits {
        HostLimits {
            memory: MEMORY,
            pids: Some(THREADS + containers),
            ..HostLimits::default()
        }
    }

    #[test]
    fn who_is_not_limited_has_what_the_vm_has() {
        let (one, free) = (
            limits(r#"{"memory":{"limit":4096},"cpu":{"shares":512,"cpus":"0","mems":"0"}}"#),
            limits("{}"),
        );
        assert_eq!(host(false, &[one, free]), of_the_vm(2));
        assert_eq!(host(false, &[free]), of_the_vm(1));
    }

    #[test]
    fn a_pods_memory_is_the_kubelets_and_its_cpus_are_those_of_its_containers() {
        let one = limits(r#"{"memory":{"limit":4096},"cpu":{"shares":512,"cpus":"0-1","mems":"0"}}"#);
        let other = limits(r#"{"cpu":{"cpus":"4"}}"#);
        let pod = host(true, &[one, other]);
        assert_eq!((pod.memory, pod.shares, pod.mems), (None, None, None));
        assert_eq!(pod.cpus.unwrap().to_string(), "0-1,4");
        assert_eq!(pod.pids, Some(THREADS + 2));
    }

    #[test]
    fn until_the_guest_has_given_memory_back_the_host_leaves_room_for_it() {
        let of = |memory| HostLimits {
            memory,
            ..HostLimits::default()
        };
        for (new, old, both) in [
            (Some(1), Some(2), Some(2)),
            (Some(2), Some(1), Some(2)),
            (None, Some(1), None),
            (Some(1), None, None),
        ] {
            assert_eq!(of(new).with_room_of(of(old)), of(both));
        }
    }
}
