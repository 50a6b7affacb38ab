//! Every supported key: its table, its parser, its field, and how it is shown.
//!
//! This is the only list of them; the loader, the annotations, `kata-ctl config` and the check of the shipped default all
//! use it.

use toml::Value;

use crate::codec::{
    ACCELERATOR, BIT_RATE, BLOCK_AIO, BOOLEAN, CACHE_IDLE_TIMEOUT, CACHE_NUMBER, CAP_POLICY, COLLECTOR,
    COLLECTOR_PASSWORD, COLLECTOR_USER, CPU_FEATURES, CREATE_TIMEOUT, DIAL_TIMEOUT, EMPTY_DIR_MODE, FILE, HOST_NETWORK,
    INTERNETWORKING, KERNEL_MODULES, KERNEL_PARAMS, LOCK_LIMIT, MACHINE_TYPE, MAX_MEMORY, MAX_VCPUS, MEMORY,
    MEMORY_LIMIT, NAME_PATTERNS, NETWORK_QUEUES, ON_EXCESS, OPERATION_RATE, OVERHEAD_MEMORY, OVERHEAD_VCPUS,
    PATH_PATTERNS, PERF_EVENT_KB, PROGRAM, QUEUE_SIZE, RECONNECT_TIMEOUT, SANDBOX_BINDS, SECCOMP_SANDBOX, SHARED_FS,
    SOCKET_PATTERNS, TIMEOUT_FACTOR, VCPUS, VIRTIO_FS_ARGS, VIRTIO_FS_CACHE, VSOCK,
};
use crate::model::Config;
use crate::raw::{Raw, Refusal};
use crate::value::PathPattern;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Table {
    Hypervisor,
    Agent,
    Runtime,
    Memlock,
    CapIpcLock,
    /// Kata's Go runtime has it here, runtime-rs in the next one.
    Factory,
    QemuFactory,
    /// Of Kata's memory agent: no key is supported.
    MemAgent,
}

impl Table {
    pub(crate) const ALL: [Table; 8] = [
        Table::Hypervisor,
        Table::Agent,
        Table::Runtime,
        Table::Memlock,
        Table::CapIpcLock,
        Table::Factory,
        Table::QemuFactory,
        Table::MemAgent,
    ];

    /// Its name in the file.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Table::Hypervisor => "hypervisor.qemu",
            Table::Agent => "agent.kata",
            Table::Runtime => "runtime",
            Table::Memlock => "runtime.memlock",
            Table::CapIpcLock => "runtime.cap_ipc_lock",
            Table::Factory => "factory",
            Table::QemuFactory => "hypervisor.qemu.factory",
            Table::MemAgent => "agent.kata.mem_agent",
        }
    }

    /// What its annotations start with; none if only a file can set its keys.
    pub(crate) fn annotation_prefix(self) -> Option<&'static str> {
        match self {
            Table::Hypervisor => Some("io.katacontainers.config.hypervisor."),
            Table::Agent => Some("io.katacontainers.config.agent."),
            Table::Runtime => Some("io.katacontainers.config.runtime."),
            Table::Memlock | Table::CapIpcLock | Table::Factory | Table::QemuFactory | Table::MemAgent => None,
        }
    }
}

/// Which list of the configuration has to allow the path in an annotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PathList {
    Hypervisor,
    VirtioFsDaemon,
    Boot,
}

impl PathList {
    /// The list's key.
    pub(crate) fn key(self) -> &'static str {
        match self {
            PathList::Hypervisor => "valid_hypervisor_paths",
            PathList::VirtioFsDaemon => "valid_virtio_fs_daemon_paths",
            PathList::Boot => "valid_boot_paths",
        }
    }

    /// The list itself.
    pub(crate) fn patterns(self, config: &Config) -> &[PathPattern] {
        match self {
            PathList::Hypervisor => &config.hypervisor.valid_hypervisor_paths,
            PathList::VirtioFsDaemon => &config.hypervisor.valid_virtio_fs_daemon_paths,
            PathList::Boot => &config.hypervisor.valid_boot_paths,
        }
    }
}

/// How a key can be set by an annotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    File,
    /// By the annotation of this name.
    Annotation(&'static str),
    /// By the annotation of this name, to a path that the list allows.
    Path(&'static str, PathList),
    /// By the annotation of this name, which adds to what the file says.
    Append(&'static str),
    /// By the annotation of this name, but not to this value where the file says the other: it would take away from what
    /// keeps the host from the pod, or the pod from the guest.
    Guarded(&'static str, bool),
    /// By the annotation of this name, which chooses among the paths and patterns that the file lists.
    Choose(&'static str),
}

pub(crate) struct Setting {
    pub(crate) table: Table,
    pub(crate) key: &'static str,
    pub(crate) access: Access,
    /// Another place for a key that is listed elsewhere too: read, but not shown.
    pub(crate) alias: bool,
    pub(crate) set: fn(&mut Config, Raw<'_>) -> Result<(), Refusal>,
    pub(crate) show: fn(&Config) -> Value,
}

impl Setting {
    /// The name of its annotation, without the prefix.
    pub(crate) fn annotation(&self) -> Option<&'static str> {
        match self.access {
            Access::File => None,
            Access::Annotation(name)
            | Access::Path(name, _)
            | Access::Append(name)
            | Access::Guarded(name, _)
            | Access::Choose(name) => Some(name),
        }
    }
}

pub(crate) fn find(table: Table, key: &str) -> Option<&'static Setting> {
    SETTINGS
        .iter()
        .find(|setting| setting.table == table && setting.key == key)
}

macro_rules! setting {
    ($table:ident, $room:ident . $field:ident, $codec:expr, $access:expr) => {
        setting!($table, $room.$field, $codec, $access, false)
    };
    ($table:ident, $room:ident . $field:ident, $codec:expr, $access:expr, $alias:expr) => {
        Setting {
            table: Table::$table,
            key: stringify!($field),
            access: $access,
            alias: $alias,
            set: |config, raw| {
                config.$room.$field = ($codec.read)(raw)?;
                Ok(())
            },
            show: |config| ($codec.show)(&config.$room.$field),
        }
    };
}

/// All supported keys, in the order in which they are shown.
pub(crate) static SETTINGS: &[Setting] = &[
    setting!(
        Hypervisor,
        hypervisor.path,
        PROGRAM,
        Access::Path("path", PathList::Hypervisor)
    ),
    setting!(
        Hypervisor,
        hypervisor.kernel,
        FILE,
        Access::Path("kernel", PathList::Boot)
    ),
    setting!(
        Hypervisor,
        hypervisor.initrd,
        FILE,
        Access::Path("initrd", PathList::Boot)
    ),
    setting!(
        Hypervisor,
        hypervisor.machine_type,
        MACHINE_TYPE,
        Access::Annotation("machine_type")
    ),
    setting!(Hypervisor, hypervisor.accelerator, ACCELERATOR, Access::File),
    setting!(
        Hypervisor,
        hypervisor.default_vcpus,
        VCPUS,
        Access::Annotation("default_vcpus")
    ),
    setting!(
        Hypervisor,
        hypervisor.default_maxvcpus,
        MAX_VCPUS,
        Access::Annotation("default_max_vcpus")
    ),
    setting!(
        Hypervisor,
        hypervisor.default_memory,
        MEMORY,
        Access::Annotation("default_memory")
    ),
    setting!(
        Hypervisor,
        hypervisor.default_memory_limit,
        MEMORY_LIMIT,
        Access::Annotation("default_memory_limit")
    ),
    setting!(Hypervisor, hypervisor.default_maxmemory, MAX_MEMORY, Access::File),
    setting!(Hypervisor, hypervisor.overhead_vcpus, OVERHEAD_VCPUS, Access::File),
    setting!(Hypervisor, hypervisor.overhead_memory, OVERHEAD_MEMORY, Access::File),
    setting!(
        Hypervisor,
        hypervisor.cpu_features,
        CPU_FEATURES,
        Access::Annotation("cpu_features")
    ),
    setting!(
        Hypervisor,
        hypervisor.enable_mem_prealloc,
        BOOLEAN,
        Access::Annotation("enable_mem_prealloc")
    ),
    setting!(
        Hypervisor,
        hypervisor.enable_hugepages,
        BOOLEAN,
        Access::Annotation("enable_hugepages")
    ),
    setting!(
        Hypervisor,
        hypervisor.kernel_params,
        KERNEL_PARAMS,
        Access::Append("kernel_params")
    ),
    setting!(
        Hypervisor,
        hypervisor.shared_fs,
        SHARED_FS,
        Access::Annotation("shared_fs")
    ),
    setting!(
        Hypervisor,
        hypervisor.virtio_fs_daemon,
        PROGRAM,
        Access::Path("virtio_fs_daemon", PathList::VirtioFsDaemon)
    ),
    setting!(
        Hypervisor,
        hypervisor.virtio_fs_cache,
        VIRTIO_FS_CACHE,
        Access::Annotation("virtio_fs_cache")
    ),
    setting!(
        Hypervisor,
        hypervisor.virtio_fs_queue_size,
        QUEUE_SIZE,
        Access::Annotation("virtio_fs_queue_size")
    ),
    setting!(
        Hypervisor,
        hypervisor.virtio_fs_extra_args,
        VIRTIO_FS_ARGS,
        Access::Annotation("virtio_fs_extra_args")
    ),
    setting!(Hypervisor, hypervisor.vsock, VSOCK, Access::File),
    setting!(Hypervisor, hypervisor.vsock_daemon, PROGRAM, Access::File),
    setting!(Hypervisor, hypervisor.seccompsandbox, SECCOMP_SANDBOX, Access::File),
    setting!(
        Hypervisor,
        hypervisor.rootless,
        BOOLEAN,
        Access::Guarded("rootless", false)
    ),
    setting!(Hypervisor, hypervisor.block_device_aio, BLOCK_AIO, Access::File),
    setting!(
        Hypervisor,
        hypervisor.block_device_cache_set,
        BOOLEAN,
        Access::Annotation("block_device_cache_set")
    ),
    setting!(
        Hypervisor,
        hypervisor.block_device_cache_direct,
        BOOLEAN,
        Access::Annotation("block_device_cache_direct")
    ),
    setting!(
        Hypervisor,
        hypervisor.block_device_cache_noflush,
        BOOLEAN,
        Access::Annotation("block_device_cache_noflush")
    ),
    setting!(
        Hypervisor,
        hypervisor.enable_iothreads,
        BOOLEAN,
        Access::Annotation("enable_iothreads")
    ),
    setting!(
        Hypervisor,
        hypervisor.disk_rate_limiter_bw_max_rate,
        BIT_RATE,
        Access::File
    ),
    setting!(
        Hypervisor,
        hypervisor.disk_rate_limiter_ops_max_rate,
        OPERATION_RATE,
        Access::File
    ),
    setting!(Hypervisor, hypervisor.guest_memory_dump_path, FILE, Access::File),
    setting!(Hypervisor, hypervisor.guest_memory_dump_paging, BOOLEAN, Access::File),
    setting!(Hypervisor, hypervisor.network_queues, NETWORK_QUEUES, Access::File),
    setting!(
        Hypervisor,
        hypervisor.rx_rate_limiter_max_rate,
        BIT_RATE,
        Access::Annotation("rx_rate_limiter_max_rate")
    ),
    setting!(
        Hypervisor,
        hypervisor.tx_rate_limiter_max_rate,
        BIT_RATE,
        Access::Annotation("tx_rate_limiter_max_rate")
    ),
    setting!(
        Hypervisor,
        hypervisor.disable_vhost_net,
        BOOLEAN,
        Access::Guarded("disable_vhost_net", false)
    ),
    setting!(Hypervisor, hypervisor.reclaim_guest_freed_memory, BOOLEAN, Access::File),
    setting!(Hypervisor, hypervisor.enable_debug, BOOLEAN, Access::File),
    setting!(Hypervisor, hypervisor.enable_annotations, NAME_PATTERNS, Access::File),
    setting!(
        Hypervisor,
        hypervisor.valid_hypervisor_paths,
        PATH_PATTERNS,
        Access::File
    ),
    setting!(
        Hypervisor,
        hypervisor.valid_virtio_fs_daemon_paths,
        PATH_PATTERNS,
        Access::File
    ),
    setting!(Hypervisor, hypervisor.valid_boot_paths, PATH_PATTERNS, Access::File),
    setting!(Agent, agent.dial_timeout, DIAL_TIMEOUT, Access::File),
    setting!(Agent, agent.enable_debug, BOOLEAN, Access::File),
    setting!(Agent, agent.debug_console_enabled, BOOLEAN, Access::File),
    setting!(
        Agent,
        agent.kernel_modules,
        KERNEL_MODULES,
        Access::Annotation("kernel_modules")
    ),
    setting!(
        Agent,
        agent.enable_tracing,
        BOOLEAN,
        Access::Annotation("enable_tracing")
    ),
    setting!(Runtime, runtime.enable_debug, BOOLEAN, Access::File),
    setting!(
        Runtime,
        runtime.create_container_timeout,
        CREATE_TIMEOUT,
        Access::Annotation("create_container_timeout")
    ),
    setting!(
        Runtime,
        runtime.disable_guest_seccomp,
        BOOLEAN,
        Access::Guarded("disable_guest_seccomp", true)
    ),
    setting!(Runtime, runtime.static_sandbox_resource_mgmt, BOOLEAN, Access::File),
    setting!(
        Runtime,
        runtime.enable_vcpus_pinning,
        BOOLEAN,
        Access::Annotation("enable_vcpus_pinning")
    ),
    setting!(Runtime, runtime.timeout_factor, TIMEOUT_FACTOR, Access::File),
    setting!(
        Runtime,
        runtime.kernel_debug,
        BOOLEAN,
        Access::Annotation("kernel_debug")
    ),
    setting!(
        Runtime,
        runtime.internetworking_model,
        INTERNETWORKING,
        Access::Annotation("internetworking_model")
    ),
    setting!(Runtime, runtime.host_network, HOST_NETWORK, Access::File),
    setting!(Runtime, runtime.emptydir_mode, EMPTY_DIR_MODE, Access::File),
    setting!(Runtime, runtime.sandbox_bind_mounts, SANDBOX_BINDS, Access::File),
    setting!(
        Runtime,
        runtime.share_host_sockets,
        SOCKET_PATTERNS,
        Access::Choose("share_host_sockets")
    ),
    setting!(Runtime, runtime.enable_tracing, BOOLEAN, Access::File),
    setting!(Runtime, runtime.jaeger_endpoint, COLLECTOR, Access::File),
    setting!(Runtime, runtime.jaeger_user, COLLECTOR_USER, Access::File),
    setting!(Runtime, runtime.jaeger_password, COLLECTOR_PASSWORD, Access::File),
    setting!(Memlock, memlock.default, LOCK_LIMIT, Access::File),
    setting!(Memlock, memlock.max, LOCK_LIMIT, Access::File),
    setting!(Memlock, memlock.on_excess, ON_EXCESS, Access::File),
    setting!(Memlock, memlock.allow_annotation, BOOLEAN, Access::File),
    setting!(Memlock, memlock.perf_event_mlock_kb, PERF_EVENT_KB, Access::File),
    setting!(CapIpcLock, cap_ipc_lock.policy, CAP_POLICY, Access::File),
    setting!(CapIpcLock, cap_ipc_lock.ambient, BOOLEAN, Access::File),
    setting!(CapIpcLock, cap_ipc_lock.allow_annotation, BOOLEAN, Access::File),
    setting!(CapIpcLock, cap_ipc_lock.grant_to_dropped, BOOLEAN, Access::File),
    setting!(Factory, factory.enable_template, BOOLEAN, Access::File),
    setting!(Factory, factory.template_path, FILE, Access::File),
    setting!(Factory, factory.vm_cache_number, CACHE_NUMBER, Access::File),
    setting!(Factory, factory.vm_cache_idle_timeout, CACHE_IDLE_TIMEOUT, Access::File),
    setting!(QemuFactory, factory.enable_template, BOOLEAN, Access::File, true),
    setting!(QemuFactory, factory.template_path, FILE, Access::File, true),
    setting!(QemuFactory, factory.vm_cache_number, CACHE_NUMBER, Access::File, true),
    // Kata's runtime-rs has it in the agent's table.
    setting!(
        Agent,
        runtime.create_container_timeout,
        CREATE_TIMEOUT,
        Access::File,
        true
    ),
    // And these by other names.
    Setting {
        table: Table::Hypervisor,
        key: "seccomp_sandbox",
        access: Access::File,
        alias: true,
        set: |config, raw| {
            config.hypervisor.seccompsandbox = (SECCOMP_SANDBOX.read)(raw)?;
            Ok(())
        },
        show: |config| (SECCOMP_SANDBOX.show)(&config.hypervisor.seccompsandbox),
    },
    // How long runtime-rs tries to reach an agent whose VM runs. Here the wait begins before the VM does: it can only be longer.
    Setting {
        table: Table::Agent,
        key: "reconnect_timeout_ms",
        access: Access::File,
        alias: true,
        set: |config, raw| {
            let asked = (RECONNECT_TIMEOUT.read)(raw)?;
            config.agent.dial_timeout = config.agent.dial_timeout.max(asked);
            Ok(())
        },
        show: |config| (DIAL_TIMEOUT.show)(&config.agent.dial_timeout),
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_annotation_is_named_as_its_key_but_for_katas_exception() {
        for setting in SETTINGS {
            match setting.annotation() {
                Some("default_max_vcpus") => assert_eq!(setting.key, "default_maxvcpus"),
                Some(name) => assert_eq!(setting.key, name),
                None => {}
            }
        }
    }
}
