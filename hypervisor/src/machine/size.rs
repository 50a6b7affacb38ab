//! The size of a VM at boot, and its maximum size: from its configuration and the host.
//!
//! Knows no container: the caller that sizes a VM for its containers writes the result into the configuration before the
//! boot.

use std::num::NonZeroU32;
use std::thread::available_parallelism;

use config::{Hypervisor, Mebibytes};

use crate::machine::accel::{Accel, accelerator};

/// What QEMU and the daemons take themselves, with room (docs/sizing.md has what was measured).
const OVERHEAD: u32 = 128;
/// The most that TCG keeps of translated code: an eighth of the host's memory within this (QEMU's tcg/region.c,
/// `size_code_gen_buffer`).
const TRANSLATED: u32 = 1024;

/// The most that a VM gets where nobody says how much: half of what a guest of 40 address bits can address (QEMU's `max` CPU
/// under TCG), because plugged memory comes after the first 4 GiB and at aligned addresses.
const MOST_MEMORY: u32 = 512 << 10;

/// The size of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// The number of vCPUs.
    pub vcpus: NonZeroU32,
    /// The memory, in MiB.
    pub memory: Mebibytes,
}

/// What a VM has when it boots.
#[must_use]
pub fn boot_size(config: &Hypervisor) -> Size {
    let memory = config.default_memory;
    Size {
        vcpus: vcpus(config),
        // Huge pages are of 2 MiB.
        memory: if config.enable_hugepages {
            Mebibytes(memory.0.next_multiple_of(2))
        } else {
            memory
        },
    }
}

/// How many vCPUs a VM has when it boots.
#[must_use]
pub fn vcpus(config: &Hypervisor) -> NonZeroU32 {
    config.default_vcpus.resolve(host_cpus())
}

/// What it can become. Never less than what it boots with.
#[must_use]
pub fn largest_size(config: &Hypervisor) -> Size {
    let boot = boot_size(config);
    Size {
        vcpus: config.default_maxvcpus.resolve(host_cpus()).max(boot.vcpus),
        memory: config.default_maxmemory.unwrap_or_else(host_memory).max(boot.memory),
    }
}

/// What the VM's processes may take on the host beside the guest's memory.
#[must_use]
pub fn overhead(config: &Hypervisor) -> Mebibytes {
    let emulated = matches!(accelerator(config.accelerator), Ok((Accel::Tcg, _)));
    let translated = if emulated {
        (host_memory().0 / 8).min(TRANSLATED)
    } else {
        0
    };
    Mebibytes(OVERHEAD + translated)
}

fn host_cpus() -> NonZeroU32 {
    available_parallelism()
        .ok()
        .and_then(|cpus| cpus.try_into().ok())
        .unwrap_or(NonZeroU32::MIN)
}

fn host_memory() -> Mebibytes {
    let host = rustix::system::sysinfo();
    let mebibytes = host.totalram.saturating_mul(u64::from(host.mem_unit)) >> 20;
    Mebibytes(u32::try_from(mebibytes).unwrap_or(u32::MAX).min(MOST_MEMORY))
}

#[cfg(test)]
mod tests {
    use super::*;
    use config::Vcpus;

    #[test]
    fn a_vm_can_become_what_the_host_has_unless_it_is_told_otherwise() {
        let config = Hypervisor::default();
        let largest = largest_size(&config);
        assert_eq!(largest.vcpus, host_cpus().min(config::MAX_VCPUS));
        assert!(largest.memory >= config.default_memory && largest.memory.0 <= MOST_MEMORY);
        let told = Hypervisor {
            default_maxvcpus: Vcpus::Count(NonZeroU32::MIN),
            default_maxmemory: Some(Mebibytes(300)),
            ..config
        };
        let size = Size {
            vcpus: NonZeroU32::MIN,
            memory: Mebibytes(300),
        };
        assert_eq!(largest_size(&told), size);
    }

    #[test]
    fn a_limit_below_the_boots_size_does_not_make_it_smaller() {
        let config = Hypervisor {
            default_memory: Mebibytes(512),
            default_maxmemory: Some(Mebibytes(128)),
            ..Hypervisor::default()
        };
        assert_eq!(largest_size(&config).memory, Mebibytes(512));
    }
}
