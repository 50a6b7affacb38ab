//! Kata's keys that have no effect here, and what to say about keys that nobody has.
//!
//! The list is the union of the keys that Kata's Go runtime and its runtime-rs read from the QEMU configuration
//! (3.x): an operator whose file comes from there is told about each that is set and does nothing, and about nothing
//! else.

use std::path::Path;

use toml::de::DeValue;

use crate::settings::{SETTINGS, Table};
use crate::warning::{Place, Reason, Warning};
use Neutral::{Any, Off, Text, True};
use Table::{Agent, Hypervisor, Runtime};

/// Which value of an unsupported key asks for nothing.
#[derive(Debug, Clone, Copy)]
enum Neutral {
    /// Whatever it says, nothing is missing.
    Any,
    /// False, zero, an empty string or an empty list.
    Off,
    /// True.
    True,
    /// One of these strings, or an empty one.
    Text(&'static [&'static str]),
}

impl Neutral {
    fn allows(self, value: &DeValue<'_>) -> bool {
        match (self, value) {
            (Any, _) | (Off, DeValue::Boolean(false)) | (True, DeValue::Boolean(true)) => true,
            (Off, DeValue::Integer(number)) => number.as_str().bytes().all(|digit| digit == b'0'),
            (Off, DeValue::Array(list)) => list.is_empty(),
            (Off, DeValue::String(text)) => text.is_empty(),
            (Text(texts), DeValue::String(text)) => text.is_empty() || texts.contains(&text.as_ref()),
            _ => false,
        }
    }
}

const CONFIDENTIAL: &str = "there are no confidential guests";
const BLOCK: &str = "there are no block devices in the guest";
const IMAGE: &str = "the guest boots from an initrd, not from an image";
const VFIO: &str = "host devices are not passed through";
const NETWORK_RATE: &str = "there is no network to limit";
const TRACING: &str = "there is no tracing; use the logs";
const VHOST_USER: &str = "there are no vhost-user block devices";
const NO_DAX: &str = "files are not mapped into the guest (DAX)";
const MODULES: &str = "the guest's kernel has no modules";
const MEM_AGENT: &str = "there is no memory agent in the guest";
const DIAL: &str = "the guest calls the host, nothing is retried; dial_timeout limits it";
const SELINUX: &str = "there is no SELinux in the guest";
const HASH: &str = "files are not hashed; valid_boot_paths and valid_hypervisor_paths limit them";
const FIRMWARE: &str = "the kernel is started directly";

/// Table, key, which value is fine, and why the others have no effect.
static KEYS: &[(Table, &str, Neutral, &str)] = &[
    (Hypervisor, "image", Off, IMAGE),
    (Hypervisor, "rootfs_type", Any, IMAGE),
    (Hypervisor, "vm_rootfs_driver", Any, IMAGE),
    (Hypervisor, "disable_image_nvdimm", Any, IMAGE),
    (Hypervisor, "kernel_verity_params", Off, IMAGE),
    (Hypervisor, "confidential_guest", Off, CONFIDENTIAL),
    (Hypervisor, "sev_snp_guest", Off, CONFIDENTIAL),
    (Hypervisor, "sev_guest_policy", Any, CONFIDENTIAL),
    (Hypervisor, "sev_cert_chain", Off, CONFIDENTIAL),
    (Hypervisor, "snp_id_block", Off, CONFIDENTIAL),
    (Hypervisor, "snp_id_auth", Off, CONFIDENTIAL),
    (Hypervisor, "snp_guest_policy", Any, CONFIDENTIAL),
    (
        Hypervisor,
        "tdx_quote_generation_service_socket_port",
        Any,
        CONFIDENTIAL,
    ),
    (Hypervisor, "initdata", Off, CONFIDENTIAL),
    (Hypervisor, "default_initdata", Off, CONFIDENTIAL),
    (
        Hypervisor,
        "rootless",
        Off,
        "QEMU runs as the user that the shim runs as",
    ),
    (Hypervisor, "firmware", Off, FIRMWARE),
    (Hypervisor, "firmware_volume", Off, FIRMWARE),
    (Hypervisor, "pflashes", Off, FIRMWARE),
    (
        Hypervisor,
        "machine_accelerators",
        Off,
        "the machine's options are set by the runtime",
    ),
    (
        Hypervisor,
        "cpu_features",
        Off,
        "the CPU's features are set by the runtime",
    ),
    (
        Hypervisor,
        "default_bridges",
        Any,
        "devices are plugged into root ports",
    ),
    (Hypervisor, "default_maxmemory", Off, "the limit is the host's memory"),
    (Hypervisor, "memory_offset", Off, IMAGE),
    (Hypervisor, "enable_virtio_mem", Off, "memory is plugged in slots"),
    (Hypervisor, "disable_block_device_use", Any, BLOCK),
    (Hypervisor, "block_device_driver", Any, BLOCK),
    (Hypervisor, "block_device_aio", Any, BLOCK),
    (Hypervisor, "block_device_cache_set", Off, BLOCK),
    (Hypervisor, "block_device_cache_direct", Off, BLOCK),
    (Hypervisor, "block_device_cache_noflush", Off, BLOCK),
    (Hypervisor, "block_device_logical_sector_size", Off, BLOCK),
    (Hypervisor, "block_device_physical_sector_size", Off, BLOCK),
    (Hypervisor, "num_queues", Any, BLOCK),
    (Hypervisor, "queue_size", Any, BLOCK),
    (Hypervisor, "indep_iothreads", Off, BLOCK),
    (Hypervisor, "disk_rate_limiter_bw_max_rate", Off, BLOCK),
    (Hypervisor, "disk_rate_limiter_bw_one_time_burst", Off, BLOCK),
    (Hypervisor, "disk_rate_limiter_ops_max_rate", Off, BLOCK),
    (Hypervisor, "disk_rate_limiter_ops_one_time_burst", Off, BLOCK),
    (Hypervisor, "virtio_fs_cache_size", Off, NO_DAX),
    (Hypervisor, "virtio_fs_is_dax", Off, NO_DAX),
    (
        Hypervisor,
        "virtio_fs_inode_file_handles",
        Text(&["prefer"]),
        "virtiofsd runs with its default, \"prefer\"",
    ),
    (Hypervisor, "msize_9p", Any, "there is no 9p"),
    (
        Hypervisor,
        "enable_mem_prealloc",
        Off,
        "memory is given to the guest when it is used",
    ),
    (Hypervisor, "reclaim_guest_freed_memory", Off, "there is no balloon"),
    (Hypervisor, "enable_balloon_f_reporting", Off, "there is no balloon"),
    (
        Hypervisor,
        "enable_hugepages",
        Off,
        "the guest's memory is not on huge pages",
    ),
    (
        Hypervisor,
        "hugepage_type",
        Off,
        "the guest's memory is not on huge pages",
    ),
    (Hypervisor, "file_mem_backend", Off, "the guest's memory is a memfd"),
    (
        Hypervisor,
        "valid_file_mem_backends",
        Any,
        "the guest's memory is a memfd",
    ),
    (Hypervisor, "enable_swap", Off, "the host decides what it swaps"),
    (Hypervisor, "enable_guest_swap", Off, "the guest has no swap"),
    (Hypervisor, "guest_swap_path", Any, "the guest has no swap"),
    (Hypervisor, "guest_swap_size_percent", Any, "the guest has no swap"),
    (
        Hypervisor,
        "guest_swap_create_threshold_secs",
        Any,
        "the guest has no swap",
    ),
    (Hypervisor, "enable_vhost_user_store", Off, VHOST_USER),
    (Hypervisor, "vhost_user_store_path", Any, VHOST_USER),
    (Hypervisor, "valid_vhost_user_store_paths", Any, VHOST_USER),
    (Hypervisor, "vhost_user_reconnect_timeout_sec", Off, VHOST_USER),
    (Hypervisor, "enable_iommu", Off, "the guest has no IOMMU"),
    (Hypervisor, "enable_iommu_platform", Off, "the guest has no IOMMU"),
    (Hypervisor, "enable_numa", Off, "the guest has one NUMA node"),
    (Hypervisor, "numa_mapping", Off, "the guest has one NUMA node"),
    (
        Hypervisor,
        "extra_monitor_socket",
        Off,
        "QEMU's monitor is the runtime's alone",
    ),
    (Hypervisor, "disable_nesting_checks", Any, "there are none"),
    (Hypervisor, "hotplug_vfio_on_root_bus", Off, VFIO),
    (Hypervisor, "hot_plug_vfio", Text(&["no-port"]), VFIO),
    (Hypervisor, "cold_plug_vfio", Text(&["no-port"]), VFIO),
    (Hypervisor, "pcie_root_port", Any, VFIO),
    (Hypervisor, "pcie_switch_port", Any, VFIO),
    (Hypervisor, "pod_resource_api_sock", Off, VFIO),
    (Hypervisor, "disable_vhost_net", Any, "there is no network"),
    (
        Hypervisor,
        "entropy_source",
        Any,
        "the guest's entropy comes from the host's getrandom(2)",
    ),
    (
        Hypervisor,
        "valid_entropy_sources",
        Any,
        "the guest's entropy comes from the host's getrandom(2)",
    ),
    (
        Hypervisor,
        "guest_hook_path",
        Off,
        "hooks in the guest come from the container's specification",
    ),
    (Hypervisor, "rx_rate_limiter_max_rate", Off, NETWORK_RATE),
    (Hypervisor, "tx_rate_limiter_max_rate", Off, NETWORK_RATE),
    (Hypervisor, "net_rate_limiter_bw_max_rate", Off, NETWORK_RATE),
    (Hypervisor, "net_rate_limiter_bw_one_time_burst", Off, NETWORK_RATE),
    (Hypervisor, "net_rate_limiter_ops_max_rate", Off, NETWORK_RATE),
    (Hypervisor, "net_rate_limiter_ops_one_time_burst", Off, NETWORK_RATE),
    (
        Hypervisor,
        "guest_memory_dump_path",
        Off,
        "the guest's memory is not dumped",
    ),
    (
        Hypervisor,
        "guest_memory_dump_paging",
        Off,
        "the guest's memory is not dumped",
    ),
    (
        Hypervisor,
        "use_legacy_serial",
        Off,
        "the console is set by the runtime",
    ),
    (
        Hypervisor,
        "disable_seccomp",
        Off,
        "use seccompsandbox for QEMU's filter",
    ),
    (Hypervisor, "disable_selinux", Any, "QEMU keeps the shim's label"),
    (Hypervisor, "selinux_label", Off, "QEMU keeps the shim's label"),
    (Hypervisor, "disable_guest_selinux", True, SELINUX),
    (Hypervisor, "jailer_path", Off, "QEMU has no jailer"),
    (Hypervisor, "valid_jailer_paths", Any, "QEMU has no jailer"),
    (Hypervisor, "ctlpath", Off, "QEMU has no control program"),
    (Hypervisor, "valid_ctlpaths", Any, "QEMU has no control program"),
    // These exist as annotations only.
    (Hypervisor, "asset_hash_type", Any, HASH),
    (Hypervisor, "path_hash", Off, HASH),
    (Hypervisor, "hypervisor_hash", Off, HASH),
    (Hypervisor, "kernel_hash", Off, HASH),
    (Hypervisor, "initrd_hash", Off, HASH),
    (Hypervisor, "image_hash", Off, HASH),
    (Hypervisor, "firmware_hash", Off, HASH),
    (Hypervisor, "firmware_volume_hash", Off, HASH),
    (Hypervisor, "jailer_hash", Off, HASH),
    (Hypervisor, "use_vsock", Any, "it is always vsock"),
    (Hypervisor, "blk_logical_sector_size", Off, BLOCK),
    (Hypervisor, "blk_physical_sector_size", Off, BLOCK),
    (Hypervisor, "block_device_num_queues", Any, BLOCK),
    (Hypervisor, "block_device_queue_size", Any, BLOCK),
    (Hypervisor, "default_gpus", Off, VFIO),
    (Hypervisor, "default_gpu_model", Off, VFIO),
    (Agent, "enable_tracing", Off, TRACING),
    (Agent, "kernel_modules", Off, MODULES),
    (Agent, "container_pipe_size", Off, "the pipes have the kernel's size"),
    (Agent, "cdh_api_timeout", Any, CONFIDENTIAL),
    (Agent, "cdh_api_timeout_ms", Any, CONFIDENTIAL),
    (Agent, "image_pull_timeout", Any, "images are pulled on the host"),
    (Agent, "mem_agent", Any, MEM_AGENT),
    (Agent, "mem_agent_enable", Off, MEM_AGENT),
    (Agent, "dial_timeout_ms", Any, DIAL),
    (Agent, "reconnect_timeout_ms", Any, DIAL),
    (
        Agent,
        "health_check_request_timeout_ms",
        Any,
        "the agent is known to be dead when its connection ends",
    ),
    (Agent, "request_timeout_ms", Any, "each request has its own limit"),
    (Agent, "server_port", Any, "the ports are the runtime's"),
    (Agent, "log_port", Any, "the ports are the runtime's"),
    (Agent, "debug_console_port", Any, "the ports are the runtime's"),
    (Agent, "passfd_listener_port", Any, "the ports are the runtime's"),
    (Agent, "policy", Off, CONFIDENTIAL),
    (
        Runtime,
        "internetworking_model",
        Text(&["none"]),
        "the guest has no network but its loopback interface",
    ),
    (Runtime, "name", Any, "there is one runtime"),
    (Runtime, "hypervisor_name", Text(&["qemu"]), "the hypervisor is QEMU"),
    (Runtime, "agent_name", Text(&["kata"]), "there is one agent"),
    (Runtime, "enable_vcpus_pinning", Off, "vCPUs are not pinned"),
    (Runtime, "guest_selinux_label", Off, SELINUX),
    (Runtime, "enable_tracing", Off, TRACING),
    (Runtime, "jaeger_endpoint", Any, TRACING),
    (Runtime, "jaeger_user", Any, TRACING),
    (Runtime, "jaeger_password", Any, TRACING),
    (
        Runtime,
        "disable_new_netns",
        Off,
        "QEMU is in the pod's network namespace",
    ),
    (
        Runtime,
        "sandbox_bind_mounts",
        Off,
        "nothing but the containers' mounts is shared with the guest",
    ),
    (Runtime, "vfio_mode", Any, VFIO),
    (
        Runtime,
        "disable_guest_empty_dir",
        Any,
        "volumes are always on the host",
    ),
    (Runtime, "emptydir_mode", Any, "volumes are always on the host"),
    (Runtime, "experimental", Off, "there are no experimental features"),
    (
        Runtime,
        "experimental_force_guest_pull",
        Off,
        "images are pulled on the host",
    ),
    (Runtime, "enable_pprof", Off, "the shim has no profiler"),
    (Runtime, "dan_conf", Any, "there is no directly attached network"),
    (Runtime, "pod_resource_api_sock", Off, VFIO),
    (Runtime, "kubelet_root_dir", Any, "volumes are found by their mounts"),
    (
        Runtime,
        "keep_abnormal",
        Off,
        "nothing is kept of a sandbox that failed",
    ),
    (Runtime, "use_passfd_io", Any, "streams are always passed by descriptor"),
    (Runtime, "passfd_listener_port", Any, "the ports are the runtime's"),
    (Runtime, "log_level", Any, "use enable_debug"),
    (Runtime, "disable_guest_memory_reclaim", Any, "there is no balloon"),
];

/// Tables of Kata's that are not read.
static TABLES: &[(&str, &str)] = &[
    ("factory", "VMs are not kept ready"),
    ("image", "images are pulled on the host"),
    ("netmon", "the network is not watched"),
    ("hypervisor.acrn", "the hypervisor is QEMU"),
    ("hypervisor.clh", "the hypervisor is QEMU"),
    ("hypervisor.cloud-hypervisor", "the hypervisor is QEMU"),
    ("hypervisor.dragonball", "the hypervisor is QEMU"),
    ("hypervisor.firecracker", "the hypervisor is QEMU"),
    ("hypervisor.openvmm", "the hypervisor is QEMU"),
    ("hypervisor.remote", "the hypervisor is QEMU"),
    ("hypervisor.stratovirt", "the hypervisor is QEMU"),
    ("proxy.kata", "the shim talks to the agent itself"),
    ("shim.kata", "there is one shim"),
];

/// What to say about a key that is not supported: nothing if it asks for nothing.
pub(crate) fn key(path: &Path, line: usize, table: Table, key: &str, value: &DeValue<'_>) -> Option<Warning> {
    let reason = match known(table, key) {
        Some((neutral, _)) if neutral.allows(value) => return None,
        Some((_, why)) => Reason::Unsupported(why),
        None => Reason::Unknown {
            nearest: nearest(key, names(table)),
        },
    };
    Some(Warning {
        place: place(path, line),
        key: format!("{}.{key}", table.name()),
        reason,
    })
}

/// What to say about a table, or a key outside all tables, that is not read. An empty one has nothing to say.
pub(crate) fn table(path: &Path, line: usize, name: &str, value: &DeValue<'_>) -> Option<Warning> {
    if value.as_table().is_some_and(|table| table.is_empty()) {
        return None;
    }
    let reason = match TABLES.iter().find(|(table, _)| *table == name) {
        Some((_, why)) => Reason::Unsupported(why),
        None => {
            let tables = TABLES.iter().map(|(table, _)| *table);
            Reason::Unknown {
                nearest: nearest(name, tables.chain(Table::ALL.map(Table::name))),
            }
        }
    };
    Some(Warning {
        place: place(path, line),
        key: name.to_owned(),
        reason,
    })
}

/// What to say about an annotation that is allowed but does nothing.
pub(crate) fn annotation(annotation: &str, table: Table, name: &str) -> Warning {
    let reason = match known(table, name) {
        Some((_, why)) => Reason::Unsupported(why),
        None => Reason::Unknown {
            nearest: nearest(
                name,
                SETTINGS
                    .iter()
                    .filter(|s| s.table == table)
                    .filter_map(|s| s.annotation()),
            ),
        },
    };
    Warning {
        place: Place::Annotation,
        key: annotation.to_owned(),
        reason,
    }
}

fn place(path: &Path, line: usize) -> Place {
    Place::File {
        path: path.to_owned(),
        line,
    }
}

fn known(table: Table, key: &str) -> Option<(Neutral, &'static str)> {
    KEYS.iter()
        .find(|entry| entry.0 == table && entry.1 == key)
        .map(|entry| (entry.2, entry.3))
}

fn names(table: Table) -> impl Iterator<Item = &'static str> {
    let supported = SETTINGS
        .iter()
        .filter(move |setting| setting.table == table)
        .map(|setting| setting.key);
    supported.chain(KEYS.iter().filter(move |entry| entry.0 == table).map(|entry| entry.1))
}

/// Longest name for which a similar one is looked for: no real one is longer, and the search costs their product.
const LONGEST_NAME: usize = 64;

/// The most similar name, if at most a third of it has to change.
fn nearest(name: &str, names: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    if name.len() > LONGEST_NAME {
        return None;
    }
    let rated = names.map(|candidate| (strsim::osa_distance(name, candidate), candidate));
    let (distance, candidate) = rated.min_by_key(|(distance, _)| *distance)?;
    (distance * 3 <= candidate.len()).then_some(candidate)
}
