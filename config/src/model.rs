//! The configuration's fields and their defaults.
//!
//! The fields have Kata's names. `settings` maps tables and keys to fields.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use crate::locked::{CapPolicy, LockLimit, OnExcess, PerfEventKb};
use crate::value::{
    Accelerator, BlockAio, EmptyDirMode, Factor, HostNetwork, InterNetworking, MachineType, Mebibytes, MilliCpus,
    NamePattern, PathPattern, SandboxBind, Secret, SharedFs, Vcpus, VirtioFsCache, Vsock,
};

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Config {
    /// `[hypervisor.qemu]`
    pub hypervisor: Hypervisor,
    /// `[agent.kata]`
    pub agent: Agent,
    /// `[runtime]`
    pub runtime: Runtime,
    /// `[runtime.memlock]`
    pub memlock: Memlock,
    /// `[runtime.cap_ipc_lock]`
    pub cap_ipc_lock: CapIpcLock,
    /// `[factory]`
    pub factory: Factory,
}

impl Config {
    /// The guest's kernel: the configured one, or with `kernel_debug` what `make kernel-debug` has put into `debug/` beside it.
    #[must_use]
    pub fn guest_kernel(&self) -> PathBuf {
        let kernel = &self.hypervisor.kernel;
        if !self.runtime.kernel_debug {
            return kernel.clone();
        }
        let name = kernel.file_name().unwrap_or_default();
        kernel.with_file_name("debug").join(name)
    }
}

/// The annotations that Kata's own files allow, and that of a key which they do not have.
const ENABLED_ANNOTATIONS: [&str; 7] = [
    "enable_iommu",
    "virtio_fs_extra_args",
    "kernel_params",
    "kernel_verity_params",
    "default_vcpus",
    "default_memory",
    "default_memory_limit",
];

/// `[hypervisor.qemu]`: the VM and its helpers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hypervisor {
    /// QEMU: an absolute path, or a bare name that is looked up in PATH.
    pub path: PathBuf,
    /// The guest kernel; absolute. Empty only in a default that was not loaded from a file.
    pub kernel: PathBuf,
    /// The guest's initrd; absolute. Empty only in a default that was not loaded from a file.
    pub initrd: PathBuf,
    /// QEMU's machine.
    pub machine_type: MachineType,
    /// KVM or not.
    pub accelerator: Accelerator,
    /// vCPUs at boot, where no limit asks for more.
    pub default_vcpus: Vcpus,
    /// vCPUs that can be reached by hot-plugging.
    pub default_maxvcpus: Vcpus,
    /// Memory at boot, before what limits add to it.
    pub default_memory: Mebibytes,
    /// What that may grow to for containers without a limit of memory; none if it does not grow.
    pub default_memory_limit: Option<Mebibytes>,
    /// Memory that can be reached by hot-plugging; none: the host's.
    pub default_maxmemory: Option<Mebibytes>,
    /// What the VM has beyond its containers' limits of CPU, where `static_sandbox_resource_mgmt` holds and this or the next
    /// is set.
    pub overhead_vcpus: Option<MilliCpus>,
    /// What it has beyond their limits of memory.
    pub overhead_memory: Option<Mebibytes>,
    /// Added to QEMU's `-cpu`; empty if nothing is.
    pub cpu_features: String,
    /// Whether the guest's memory is taken from the host at boot, all of it.
    pub enable_mem_prealloc: bool,
    /// Whether it is on the host's huge pages, of 2 MiB.
    pub enable_hugepages: bool,
    /// Appended to the guest kernel's command line.
    pub kernel_params: String,
    /// How the host's directories reach the guest.
    pub shared_fs: SharedFs,
    /// virtiofsd: an absolute path, or a bare name that is looked up in PATH.
    pub virtio_fs_daemon: PathBuf,
    /// virtiofsd's `--cache`.
    pub virtio_fs_cache: VirtioFsCache,
    /// Entries of the virtio-fs queue; a power of two.
    pub virtio_fs_queue_size: u16,
    /// More arguments for virtiofsd, none of which the runtime sets itself.
    pub virtio_fs_extra_args: Vec<String>,
    /// What connects host and guest.
    pub vsock: Vsock,
    /// vhost-device-vsock: an absolute path, or a bare name that is looked up in PATH.
    pub vsock_daemon: PathBuf,
    /// The value of QEMU's `-sandbox`; none if it is to run without.
    pub seccompsandbox: Option<String>,
    /// Whether QEMU runs as a user that owns nothing on the host and sees nothing of its files but its own.
    pub rootless: bool,
    /// How QEMU reads and writes disks.
    pub block_device_aio: BlockAio,
    /// Whether the next two hold; otherwise disks bypass the host's cache where they can, and flushes are honoured.
    pub block_device_cache_set: bool,
    /// Whether disks bypass the host's cache.
    pub block_device_cache_direct: bool,
    /// Whether the guest's flushes are ignored.
    pub block_device_cache_noflush: bool,
    /// Whether virtio devices of disks get a thread of their own.
    pub enable_iothreads: bool,
    /// Bits per second that all disks of the VM together read and write; 0: any.
    pub disk_rate_limiter_bw_max_rate: u64,
    /// Requests per second of all disks of the VM together; 0: any.
    pub disk_rate_limiter_ops_max_rate: u64,
    /// Where the guest's memory is written to when its kernel has panicked; empty: nowhere.
    pub guest_memory_dump_path: PathBuf,
    /// Whether the addresses of a dump are those of the guest's page tables, too.
    pub guest_memory_dump_paging: bool,
    /// Pairs of queues that each of the VM's network devices has; 0: as many as the VM has vCPUs when it boots, at most 8.
    pub network_queues: u32,
    /// Bits per second that each of the VM's network devices receives; 0: any.
    pub rx_rate_limiter_max_rate: u64,
    /// Bits per second that each of them sends; 0: any.
    pub tx_rate_limiter_max_rate: u64,
    /// Whether QEMU moves the frames of the network itself, even where `/dev/vhost-net` exists.
    pub disable_vhost_net: bool,
    /// Whether memory that the guest has freed goes back to the host.
    pub reclaim_guest_freed_memory: bool,
    /// Whether the guest's kernel and the helpers log more.
    pub enable_debug: bool,
    /// Names of the annotations that are honoured.
    pub enable_annotations: Vec<NamePattern>,
    /// What an annotation may set `path` to.
    pub valid_hypervisor_paths: Vec<PathPattern>,
    /// What an annotation may set `virtio_fs_daemon` to.
    pub valid_virtio_fs_daemon_paths: Vec<PathPattern>,
    /// What an annotation may set `kernel` and `initrd` to.
    pub valid_boot_paths: Vec<PathPattern>,
}

impl Default for Hypervisor {
    fn default() -> Self {
        Self {
            path: PathBuf::from("qemu-system-x86_64"),
            kernel: PathBuf::new(),
            initrd: PathBuf::new(),
            machine_type: MachineType::Q35,
            accelerator: Accelerator::Auto,
            default_vcpus: Vcpus::Count(NonZeroU32::MIN),
            default_maxvcpus: Vcpus::Host,
            default_memory: Mebibytes(256),
            default_memory_limit: Some(Mebibytes(2048)),
            default_maxmemory: None,
            overhead_vcpus: None,
            overhead_memory: None,
            cpu_features: String::new(),
            enable_mem_prealloc: false,
            enable_hugepages: false,
            kernel_params: String::new(),
            shared_fs: SharedFs::VirtioFs,
            virtio_fs_daemon: PathBuf::from("virtiofsd"),
            virtio_fs_cache: VirtioFsCache::Auto,
            virtio_fs_queue_size: 1024,
            virtio_fs_extra_args: Vec::new(),
            vsock: Vsock::Auto,
            vsock_daemon: PathBuf::from("vhost-device-vsock"),
            seccompsandbox: Some(String::from(
                "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
            )),
            rootless: true,
            block_device_aio: BlockAio::Threads,
            block_device_cache_set: false,
            block_device_cache_direct: false,
            block_device_cache_noflush: false,
            enable_iothreads: false,
            disk_rate_limiter_bw_max_rate: 0,
            disk_rate_limiter_ops_max_rate: 0,
            guest_memory_dump_path: PathBuf::new(),
            guest_memory_dump_paging: false,
            network_queues: 0,
            rx_rate_limiter_max_rate: 0,
            tx_rate_limiter_max_rate: 0,
            disable_vhost_net: false,
            reclaim_guest_freed_memory: true,
            enable_debug: false,
            enable_annotations: ENABLED_ANNOTATIONS
                .iter()
                .filter_map(|name| NamePattern::new(name).ok())
                .collect(),
            valid_hypervisor_paths: Vec::new(),
            valid_virtio_fs_daemon_paths: Vec::new(),
            valid_boot_paths: Vec::new(),
        }
    }
}

/// `[agent.kata]`: the agent in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    /// How long a VM may take until its agent has called.
    pub dial_timeout: Duration,
    /// Whether the agent logs at debug level.
    pub enable_debug: bool,
    /// Whether the guest offers a shell to `kata-ctl exec`.
    pub debug_console_enabled: bool,
    /// Modules of the guest's kernel that are loaded before the first container, each a name with its parameters after it.
    pub kernel_modules: Vec<String>,
    /// Whether the agent records spans, if the shim does.
    pub enable_tracing: bool,
}

impl Default for Agent {
    fn default() -> Self {
        Self {
            dial_timeout: Duration::from_secs(45),
            enable_debug: false,
            debug_console_enabled: false,
            kernel_modules: Vec::new(),
            enable_tracing: false,
        }
    }
}

/// `[runtime]`: the shim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    /// Whether the shim logs at debug level.
    pub enable_debug: bool,
    /// How long the agent may take to create a container.
    pub create_container_timeout: Duration,
    /// Whether the seccomp profile of a container is dropped. Kata's default is true; here it is false: what the
    /// specification asks for is applied.
    pub disable_guest_seccomp: bool,
    /// Whether the VM is sized at boot from the pod's limits, and never later.
    pub static_sandbox_resource_mgmt: bool,
    /// Whether each vCPU is pinned to a CPU of the sandbox's set, while there are as many.
    pub enable_vcpus_pinning: bool,
    /// What the runtime's own time-outs are multiplied by (docs/configuration.md).
    pub timeout_factor: Factor,
    /// Whether the guest runs the kernel with BTF and function tracing ([`Config::guest_kernel`]).
    pub kernel_debug: bool,
    /// How the pod's interfaces reach the VM.
    pub internetworking_model: InterNetworking,
    /// What becomes of a container that asks for the host's network.
    pub host_network: HostNetwork,
    /// Where emptyDirs that are not in memory are.
    pub emptydir_mode: EmptyDirMode,
    /// Directories and files of the host for the guest itself, and for no container.
    pub sandbox_bind_mounts: Vec<SandboxBind>,
    /// The sockets of the host that containers may connect to, if they have a bind mount of them.
    pub share_host_sockets: Vec<PathPattern>,
    /// Whether the shim sends spans of its requests to a collector.
    pub enable_tracing: bool,
    /// The collector's URL; empty: the environment's, or the node's own.
    pub jaeger_endpoint: String,
    /// Whom the shim is to the collector (HTTP Basic); empty: nobody.
    pub jaeger_user: String,
    /// The password of `jaeger_user`.
    pub jaeger_password: Secret,
}

impl Default for Runtime {
    fn default() -> Self {
        Self {
            enable_debug: false,
            create_container_timeout: Duration::from_secs(60),
            disable_guest_seccomp: false,
            static_sandbox_resource_mgmt: false,
            enable_vcpus_pinning: false,
            timeout_factor: Factor(1000),
            kernel_debug: false,
            internetworking_model: InterNetworking::TcFilter,
            host_network: HostNetwork::None,
            emptydir_mode: EmptyDirMode::SharedFs,
            sandbox_bind_mounts: Vec::new(),
            share_host_sockets: Vec::new(),
            enable_tracing: false,
            jaeger_endpoint: String::new(),
            jaeger_user: String::new(),
            jaeger_password: Secret::default(),
        }
    }
}

/// `[runtime.memlock]`: how much memory a container's processes may lock (RLIMIT_MEMLOCK, getrlimit(2)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memlock {
    /// What a process gets for which neither its specification nor an annotation says anything, soft and hard.
    pub default: LockLimit,
    /// The most that any process gets.
    pub max: LockLimit,
    /// What is done about a limit above it.
    pub on_excess: OnExcess,
    /// Whether annotations of containers and pods may ask for a limit.
    pub allow_annotation: bool,
    /// What each user may have of perf buffers before its limit counts, per CPU.
    pub perf_event_mlock_kb: PerfEventKb,
}

impl Default for Memlock {
    fn default() -> Self {
        Self {
            default: LockLimit::KERNEL_DEFAULT,
            max: LockLimit::UNLIMITED,
            on_excess: OnExcess::Deny,
            allow_annotation: true,
            perf_event_mlock_kb: PerfEventKb::KERNEL_DEFAULT,
        }
    }
}

/// `[runtime.cap_ipc_lock]`: who has CAP_IPC_LOCK, with which no limit counts (capabilities(7)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapIpcLock {
    /// Whether processes have it.
    pub policy: CapPolicy,
    /// Whether those that have it keep it as another user than root.
    pub ambient: bool,
    /// Whether annotations of containers and pods may ask for it.
    pub allow_annotation: bool,
    /// Whether they may also for a container that has dropped all capabilities.
    pub grant_to_dropped: bool,
}

impl Default for CapIpcLock {
    fn default() -> Self {
        Self {
            policy: CapPolicy::Spec,
            ambient: false,
            allow_annotation: true,
            grant_to_dropped: false,
        }
    }
}

/// `[factory]`: VMs that are booted before anybody asks for them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Factory {
    /// Whether VMs are copies of one that has booted.
    pub enable_template: bool,
    /// The directory of these.
    pub template_path: PathBuf,
    /// How many are kept ready; 0: none.
    pub vm_cache_number: u32,
    /// How long one is kept that nobody takes.
    pub vm_cache_idle_timeout: Duration,
}

impl Default for Factory {
    fn default() -> Self {
        Self {
            enable_template: false,
            template_path: PathBuf::from("/run/vc/vm/template"),
            vm_cache_number: 0,
            vm_cache_idle_timeout: Duration::from_secs(3600),
        }
    }
}
