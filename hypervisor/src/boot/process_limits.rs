//! The limits of each of a VM's processes on the host: private memory and threads. `sys::child` applies them; the sandbox's cgroup
//! limits all processes together.

use config::{BlockAio, Hypervisor};

use crate::helpers::virtiofsd::arguments;
use crate::helpers::vsock_daemon;
use crate::machine::size;
use crate::process::sys::child::ProcessLimits;

const MIB: u64 = 1 << 20;

/// virtiofsd's processes and threads beside its pool: its two processes, a thread for each queue, and room.
const VIRTIOFSD_THREADS: u64 = 16;

/// Workers of a thread pool of QEMU (`THREAD_POOL_MAX_THREADS_DEFAULT` in its include/block/aio.h).
const POOL: u64 = 64;

/// Requests in a ring of QEMU's for io_uring (`MAX_ENTRIES` in its block/io_uring.c). The kernel may have a worker for each.
const RING: u64 = 1024;

/// QEMU's threads beside vCPUs and pools: the main loop, RCU, the disks' own, preallocation.
const OTHERS: u64 = 16;

/// The most NICs that a VM has: 16 at its boot, and as many later.
const NICS: u64 = 32;

/// Pairs of queues of a NIC, if the configuration names no number (docs/network.md).
const QUEUES: u64 = 8;

/// A thread's stack in bytes: the usual RLIMIT_STACK.
const STACK: u64 = 8 * MIB;

/// QEMU's private memory beside stacks, translated code and what it was measured to have (docs/sizing.md).
const ROOM: u64 = 512 * MIB;

/// Of all processes of a VM: what the stand-ins of a pod's sandbox and processes that are just being started are.
const SPARE: u64 = 32;

/// QEMU's. `own_user`: whether its user is nobody else's.
pub(crate) fn of_qemu(config: &Hypervisor, own_user: bool) -> ProcessLimits {
    let (threads, workers) = (qemu_threads(config), io_workers(config) + vhost_workers(config));
    ProcessLimits {
        data: size::overhead(config).bytes() + STACK * threads + ROOM,
        threads: own_user.then_some(threads + workers),
    }
}

/// The most threads that QEMU and the helpers of a VM have together, when the VM is as large as it can become. Stand-ins of
/// containers are not counted.
#[must_use]
pub fn most_threads(config: &Hypervisor) -> u64 {
    let pools = 2 * arguments::thread_pool(config);
    let helpers = VIRTIOFSD_THREADS + pools + vsock_daemon::LIMITS.threads.unwrap_or_default();
    qemu_threads(config) + io_workers(config) + vhost_workers(config) + helpers + SPARE
}

/// Loops of events that have a pool, and a ring, each.
fn loops(config: &Hypervisor) -> u64 {
    1 + u64::from(config.enable_iothreads)
}

fn qemu_threads(config: &Hypervisor) -> u64 {
    u64::from(size::largest_size(config).vcpus.get()) + POOL * loops(config) + OTHERS
}

/// The kernel's workers for io_uring, which count as threads of the process.
fn io_workers(config: &Hypervisor) -> u64 {
    match config.block_device_aio {
        BlockAio::IoUring => RING * loops(config),
        BlockAio::Threads | BlockAio::Native => 0,
    }
}

/// The kernel's workers for NICs and vsock, which since Linux 6.4 count as threads of the process: one for each pair of queues.
fn vhost_workers(config: &Hypervisor) -> u64 {
    let queues = match u64::from(config.network_queues) {
        0 => QUEUES,
        queues => queues,
    };
    let nics = if config.disable_vhost_net { 0 } else { NICS * queues };
    nics + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use config::{Accelerator, Vcpus};
    use std::num::NonZeroU32;

    fn config() -> Hypervisor {
        Hypervisor {
            default_maxvcpus: Vcpus::Count(NonZeroU32::MIN),
            default_vcpus: Vcpus::Count(NonZeroU32::MIN),
            // Nothing is added for translated code then, which would depend on the machine.
            accelerator: Accelerator::Kvm,
            virtio_fs_extra_args: Vec::new(),
            disable_vhost_net: true,
            ..Hypervisor::default()
        }
    }

    #[test]
    fn qemu_has_a_stack_for_each_thread_that_it_can_come_to_have() {
        let limits = of_qemu(&config(), true);
        assert_eq!(limits.threads, Some(1 + 64 + 16 + 1));
        assert_eq!(limits.data, (128 + 8 * 81 + 512) * MIB);
        // Root's are everybody's.
        assert_eq!(of_qemu(&config(), false).threads, None);
    }

    #[test]
    fn a_second_loop_has_a_pool_of_its_own_and_the_kernels_workers_have_no_stack() {
        let config = Hypervisor {
            enable_iothreads: true,
            block_device_aio: BlockAio::IoUring,
            ..config()
        };
        let limits = of_qemu(&config, true);
        assert_eq!(limits.threads, Some(1 + 128 + 16 + 2048 + 1));
        assert_eq!(limits.data, (128 + 8 * 145 + 512) * MIB);
    }

    #[test]
    fn a_vms_threads_are_those_of_all_its_processes() {
        assert_eq!(most_threads(&config()), 82 + 16 + 16 + 32);
        let pool = Hypervisor {
            virtio_fs_extra_args: vec!["--thread-pool-size=8".to_owned()],
            ..config()
        };
        assert_eq!(most_threads(&pool), 82 + 16 + 16 + 16 + 32);
    }

    #[test]
    fn each_pair_of_queues_may_have_a_worker_of_the_kernel() {
        let many = Hypervisor {
            disable_vhost_net: false,
            network_queues: 64,
            ..config()
        };
        let limits = of_qemu(&many, true);
        assert_eq!(limits.threads, Some(81 + 32 * 64 + 1));
        assert_eq!(
            limits.data,
            of_qemu(&config(), true).data,
            "they have no stack of its own"
        );
    }
}
