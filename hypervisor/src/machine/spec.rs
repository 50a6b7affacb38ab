//! The complete description of a VM: [`crate::boot::argv`] converts it to QEMU's arguments.
//!
//! Plain data. Knows no process and no configuration file. Descriptors are numbers that QEMU inherits.

use std::os::fd::RawFd;
use std::path::PathBuf;

use config::Hypervisor;

use crate::machine::accel::Accel;
use crate::machine::arch::Arch;
use crate::machine::disk_rates::DiskRates;
use crate::machine::mac_address::MacAddress;
use crate::machine::size::Size;
use crate::machine::vsock::Cid;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VmSpec {
    /// `-name`, seen in process lists.
    pub(crate) name: String,
    pub(crate) arch: Arch,
    pub(crate) machine_type: &'static str,
    pub(crate) accel: Accel,
    /// Added to `-cpu`, if anything.
    pub(crate) cpu_features: String,
    pub(crate) backing: Backing,
    /// `/dev/kvm`, where QEMU cannot open it by itself.
    pub(crate) kvm: Option<RawFd>,
    pub(crate) size: Size,
    /// What it can become: not less.
    pub(crate) largest: Size,
    pub(crate) beginning: Beginning,
    /// The value of `-sandbox`.
    pub(crate) seccomp: Option<String>,
    /// Connected sockets.
    pub(crate) monitor: RawFd,
    pub(crate) console: RawFd,
    pub(crate) share: Option<VirtioFs>,
    pub(crate) vsock: Option<VsockDevice>,
    /// Whether the guest reports the memory that it has freed.
    pub(crate) reports_free: bool,
    /// The name of a thread for disks that are plugged in later.
    pub(crate) iothread: Option<&'static str>,
    /// Whether QEMU waits for the host when the guest has ended.
    pub(crate) waits_at_end: bool,
    /// What all disks together may do.
    pub(crate) disk_rates: Option<DiskRates>,
    pub(crate) nics: Vec<NicDevice>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Beginning {
    /// It boots.
    Kernel {
        kernel: PathBuf,
        initrd: PathBuf,
        command_line: String,
    },
    /// It waits, to be given the memory and the state of another VM.
    Saved,
}

/// What the host gives the guest for memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Backing {
    /// Huge pages of 2 MiB.
    pub(crate) huge: bool,
    /// All of it before the guest runs.
    pub(crate) prealloc: bool,
}

impl Backing {
    /// As the configuration says. Huge pages are always taken at once: one that is missing later is the end of the VM (SIGBUS).
    pub(crate) fn of(config: &Hypervisor) -> Self {
        Self {
            huge: config.enable_hugepages,
            prealloc: config.enable_mem_prealloc || config.enable_hugepages,
        }
    }

    /// Whether what the guest has freed goes back to the host. Memory that is taken at boot is kept: huge pages that are given back may be
    /// another's when the guest wants them again, and that is the end of the VM (SIGBUS).
    pub(crate) fn gives_back(self, config: &Hypervisor) -> bool {
        config.reclaim_guest_freed_memory && !self.prealloc
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VirtioFs {
    /// Under which the guest mounts it.
    pub(crate) tag: String,
    /// Entries of the request queue.
    pub(crate) queue_size: u16,
    /// Connected to virtiofsd.
    pub(crate) socket: RawFd,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum VsockDevice {
    /// Served by the kernel.
    Vhost { device: RawFd, cid: Cid },
    /// Served by a daemon, to which the socket is connected.
    VhostUser { socket: RawFd },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NicDevice {
    pub(crate) mac: MacAddress,
    /// Queues of one tap, at least one.
    pub(crate) taps: Vec<RawFd>,
    /// `/dev/vhost-net`, opened once for each queue; or none.
    pub(crate) vhost: Vec<RawFd>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_taken_at_boot_is_not_given_back() {
        let gives_back = |prealloc: bool, huge: bool| {
            let config = Hypervisor {
                enable_mem_prealloc: prealloc,
                enable_hugepages: huge,
                ..Hypervisor::default()
            };
            Backing::of(&config).gives_back(&config)
        };
        assert!(gives_back(false, false));
        assert!(!gives_back(true, false) && !gives_back(false, true));
        let never = Hypervisor {
            reclaim_guest_freed_memory: false,
            ..Hypervisor::default()
        };
        assert!(!Backing::of(&never).gives_back(&never));
    }
}
