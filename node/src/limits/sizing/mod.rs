//! Computes the VM's size for its containers: a pure function of their limits and the configuration (docs/sizing.md).
//!
//! ```text
//! memory = default_memory + memory limits + 1/64 of the limits, for the guest kernel's page records
//! vCPUs  = sum of the CPU limits, rounded up, but never fewer than default_vcpus
//! ```
//! If a container without a memory limit runs, the memory that the guest asks for is added, within `default_memory_limit`.
//!
//! If the configuration sets an overhead (`overhead_vcpus`, `overhead_memory`) and a constant size
//! (`static_sandbox_resource_mgmt`), and there are limits, the rule is that of Kata's runtime-rs:
//! ```text
//! memory = memory limits + overhead_memory
//! vCPUs  = sum of the CPU limits + overhead_vcpus, rounded up
//! ```
//! It knows no VM and no container: the caller passes the limits.

mod host;
mod limits;
mod set;

use std::num::NonZeroU32;

use config::{Config, Mebibytes, Vcpus};
use hypervisor::Size;
use oci_spec::runtime::Spec;

use self::host::HostRule;
use crate::spec::bundle;

pub use self::host::HostLimits;
pub use self::limits::Limits;
pub use self::set::NumberSet;

/// The guest's kernel keeps 64 bytes for each page of 4 KiB (`struct page`).
const PAGES_PER_RECORD_PAGE: u64 = 64;

/// What the guest's kernel and initrd need (the least of `default_memory`).
const LEAST_MEMORY: Mebibytes = Mebibytes(64);

/// What a VM has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// The size within the bounds.
    pub size: Size,
    /// What the limits ask for, where that is more than it can have.
    pub beyond: Option<Size>,
}

/// What a VM has beyond its limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Overhead {
    milli: u64,
    memory: Mebibytes,
}

impl Overhead {
    /// None if the configuration has the other rule.
    fn of(config: &Config) -> Option<Self> {
        let (cpus, memory) = (config.hypervisor.overhead_vcpus, config.hypervisor.overhead_memory);
        let told = config.runtime.static_sandbox_resource_mgmt && (cpus.is_some() || memory.is_some());
        told.then(|| Self {
            milli: cpus.map_or(0, |cpus| cpus.0.into()),
            memory: memory.unwrap_or(Mebibytes(0)),
        })
    }
}

/// How the limits of one sandbox's containers become a size.
#[derive(Debug, Clone, Copy)]
pub struct Sizing {
    base: Size,
    /// The size at boot, below which the VM never shrinks.
    boot: Wanted,
    most: Size,
    /// What containers without a limit of memory may have beyond `base` and the limits of others.
    growth: Mebibytes,
    /// Of the other rule.
    overhead: Option<Overhead>,
    pod: Limits,
    first: Limits,
    host: HostRule,
}

impl Sizing {
    /// For a sandbox, by the specification of its first container: the pod's limits are in its annotations, its own in
    /// its resources.
    #[must_use]
    pub fn new(config: &Config, spec: &Spec) -> Self {
        let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
        let first = resources.map(Limits::of).unwrap_or_default();
        let pod = spec.annotations().as_ref().map(Limits::of_pod).unwrap_or_default();
        let (base, most) = (
            hypervisor::boot_size(&config.hypervisor),
            hypervisor::largest_size(&config.hypervisor),
        );
        let host = HostRule {
            kubelet: spec.annotations().as_ref().is_some_and(bundle::is_pod_sandbox),
            overhead: hypervisor::overhead(&config.hypervisor),
            threads: hypervisor::most_threads(&config.hypervisor),
        };
        let free = Self::before_the_boot(base, most, pod, first, host);
        let free = Self {
            overhead: Overhead::of(config),
            growth: growth(&config.hypervisor, base, most),
            ..free
        };
        free.at_boot(config.runtime.static_sandbox_resource_mgmt)
    }

    fn before_the_boot(base: Size, most: Size, pod: Limits, first: Limits, host: HostRule) -> Self {
        Self {
            base,
            boot: Wanted {
                size: base,
                beyond: None,
            },
            most,
            growth: Mebibytes(0),
            overhead: None,
            pod,
            first,
            host,
        }
    }

    fn at_boot(self, fixed: bool) -> Self {
        let boot = self.wanted([self.first]);
        if fixed {
            let (most, growth) = (boot.size, Mebibytes(0));
            return Self {
                boot,
                most,
                growth,
                ..self
            };
        }
        Self { boot, ..self }
    }

    /// What the VM boots with.
    #[must_use]
    pub fn boot(&self) -> Wanted {
        self.boot
    }

    /// What the sandbox's cgroup on the host gets before anything runs in it.
    #[must_use]
    pub fn host_at_boot(&self) -> HostLimits {
        // A pod's first is no container of its author's: whose CPUs it may have is not known yet.
        let known = if self.host.kubelet { None } else { Some(self.first) };
        self.host_limits(self.boot.size, known).unwrap_or_else(|| HostLimits {
            pids: Some(self.host.pids(1)),
            ..HostLimits::default()
        })
    }

    /// What it gets for a VM of this size and these containers; none if there are no containers.
    #[must_use]
    pub fn host_limits(&self, size: Size, containers: impl IntoIterator<Item = Limits>) -> Option<HostLimits> {
        let containers: Vec<_> = containers.into_iter().collect();
        (!containers.is_empty()).then(|| self.host.limits(size, &containers))
    }

    /// Whether the sandbox's own container is the runtime's, and not one with limits of somebody's.
    #[must_use]
    pub fn is_pod(&self) -> bool {
        self.host.kubelet
    }

    /// What containers without a limit of memory may have beyond what the VM has without them; 0 if that does not grow.
    #[must_use]
    pub fn growth(&self) -> Mebibytes {
        self.growth
    }

    /// The memory that the VM has when it is asked to have so much.
    #[must_use]
    pub fn plugged(&self, wanted: Mebibytes) -> Mebibytes {
        hypervisor::plugged(self.boot.size.memory, self.most.memory, wanted)
    }

    /// Whether the VM keeps the size that it boots with.
    #[must_use]
    pub fn is_fixed(&self) -> bool {
        self.boot.size == self.most
    }

    /// Whether a VM that has booted without knowing any limit can become what is wanted: one that keeps its size cannot.
    #[must_use]
    pub fn fits_a_warm_vm(&self) -> bool {
        !self.is_fixed() || self.boot.size == self.base
    }

    /// For a VM that has booted without knowing any limit: it grows to what is wanted when the first container is created.
    #[must_use]
    pub fn of_a_warm_vm(self) -> Self {
        let boot = Wanted {
            size: self.base,
            ..self.boot
        };
        Self { boot, ..self }
    }

    /// Writes into a configuration what the VM boots with and what it can become.
    pub fn apply(&self, config: &mut Config) {
        let hypervisor = &mut config.hypervisor;
        hypervisor.default_vcpus = Vcpus::Count(self.boot.size.vcpus);
        hypervisor.default_memory = self.boot.size.memory;
        hypervisor.default_maxvcpus = Vcpus::Count(self.most.vcpus);
        hypervisor.default_maxmemory = Some(self.most.memory);
    }

    /// What the VM has to be for containers with these limits: never less than what it booted with. What the pod says of
    /// itself as a whole counts where it is more than what its containers have together.
    #[must_use]
    pub fn wanted(&self, containers: impl IntoIterator<Item = Limits>) -> Wanted {
        self.wanted_with(containers, Mebibytes(0))
    }

    /// The same, with so much memory for those that have no limit of it.
    #[must_use]
    pub fn wanted_with(&self, containers: impl IntoIterator<Item = Limits>, extra: Mebibytes) -> Wanted {
        let containers: Vec<Limits> = containers.into_iter().collect();
        let milli = Limits::together_milli(&containers);
        let bytes = containers.iter().map(Limits::memory_bytes).fold(0, u64::saturating_add);
        let (milli, bytes) = (milli.max(self.pod.cpu_milli()), bytes.max(self.pod.memory_bytes()));
        let asked = match self.overhead {
            Some(overhead) if milli > 0 || bytes > 0 => return self.with_overhead(overhead, milli, bytes),
            _ => Size {
                vcpus: self.vcpus(milli),
                memory: self.memory(bytes),
            },
        };
        let memory = Mebibytes(asked.memory.0.saturating_add(extra.0));
        let size = Size {
            vcpus: asked.vcpus.min(self.most.vcpus).max(self.boot.size.vcpus),
            memory: memory.min(self.most.memory).max(self.boot.size.memory),
        };
        let beyond = asked.vcpus > size.vcpus || asked.memory > size.memory;
        Wanted {
            size,
            beyond: beyond.then_some(asked),
        }
    }

    /// The rule of Kata's runtime-rs. Such a VM keeps its size, so nothing is to be kept of what it had.
    fn with_overhead(&self, overhead: Overhead, milli: u64, bytes: u64) -> Wanted {
        let whole = u32::try_from(milli.saturating_add(overhead.milli).div_ceil(1000)).unwrap_or(u32::MAX);
        let limits = u32::try_from(bytes.div_ceil(1 << 20)).unwrap_or(u32::MAX);
        let memory = Mebibytes(limits.saturating_add(overhead.memory.0));
        let asked = Size {
            vcpus: NonZeroU32::new(whole).unwrap_or(NonZeroU32::MIN),
            // Nothing of either is no memory; Kata refuses that.
            memory: if memory.0 == 0 {
                self.base.memory
            } else {
                memory.max(LEAST_MEMORY)
            },
        };
        let size = Size {
            vcpus: asked.vcpus.min(self.most.vcpus),
            memory: asked.memory.min(self.most.memory),
        };
        Wanted {
            size,
            beyond: (asked != size).then_some(asked),
        }
    }

    fn vcpus(&self, milli: u64) -> NonZeroU32 {
        let whole = u32::try_from(milli.div_ceil(1000)).unwrap_or(u32::MAX);
        NonZeroU32::new(whole).map_or(self.base.vcpus, |whole| whole.max(self.base.vcpus))
    }

    fn memory(&self, bytes: u64) -> Mebibytes {
        let with_records = bytes.saturating_add(bytes.div_ceil(PAGES_PER_RECORD_PAGE));
        let more = u32::try_from(with_records.div_ceil(1 << 20)).unwrap_or(u32::MAX);
        Mebibytes(self.base.memory.0.saturating_add(more))
    }
}

/// Memory on huge pages does not grow: where the host's pool is empty, the VM would end.
fn growth(config: &config::Hypervisor, base: Size, most: Size) -> Mebibytes {
    let limit = config.default_memory_limit.filter(|_| !config.enable_hugepages);
    let limit = limit.map_or(Mebibytes(0), |limit| limit.min(most.memory));
    Mebibytes(limit.0.saturating_sub(base.memory.0))
}

#[cfg(test)]
mod tests;
