//! Every key of Kata's files and annotations, and its effect here: for the manual and for `kata-ctl`.

use crate::row::{Row, Status};
use crate::settings::{SETTINGS, Table};
use crate::unsupported;

/// What a supported key does otherwise than Kata's.
const OTHERWISE: [(&str, &str); 32] = [
    (
        "hypervisor.qemu.path",
        "a path of Kata's that is not there is QEMU in PATH",
    ),
    (
        "hypervisor.qemu.kernel",
        "not set, or a path of Kata's that is not there: the installed one; as an annotation only what valid_boot_paths allows",
    ),
    (
        "hypervisor.qemu.initrd",
        "not set, or another runtime's: the installed one; as an annotation only what valid_boot_paths allows",
    ),
    (
        "hypervisor.qemu.default_vcpus",
        "limits of CPUs are not added to it but count where they are more, unless overhead_vcpus is set",
    ),
    ("hypervisor.qemu.default_memory", "256; out of range is an error"),
    ("hypervisor.qemu.overhead_vcpus", "negative: not set"),
    (
        "hypervisor.qemu.overhead_memory",
        "negative: not set; without a limit of memory, and 0, default_memory counts",
    ),
    (
        "hypervisor.qemu.enable_hugepages",
        "of hugetlbfs, 2 MiB each, by memfd_create(2)",
    ),
    (
        "hypervisor.qemu.shared_fs",
        "\"virtio-fs\", and \"none\": files are copied, 1 MiB of each volume, and the root has to be on disks",
    ),
    (
        "hypervisor.qemu.virtio_fs_daemon",
        "a path of Kata's that is not there is the installed one",
    ),
    (
        "hypervisor.qemu.virtio_fs_extra_args",
        "as an annotation a short list of options",
    ),
    ("hypervisor.qemu.seccompsandbox", "on by default"),
    ("hypervisor.qemu.seccomp_sandbox", "as seccompsandbox"),
    (
        "hypervisor.qemu.rootless",
        "true by default: a user that no database has, and an empty root; an annotation can only set it to true",
    ),
    (
        "hypervisor.qemu.block_device_aio",
        "threads by default, and where the host has no io_uring",
    ),
    (
        "hypervisor.qemu.disk_rate_limiter_bw_max_rate",
        "bits per second of all disks of a VM together, by a throttle group of QEMU's",
    ),
    (
        "hypervisor.qemu.disk_rate_limiter_ops_max_rate",
        "requests per second of all disks of a VM together, by a throttle group of QEMU's",
    ),
    (
        "hypervisor.qemu.guest_memory_dump_path",
        "one ELF file, PATH/SANDBOX/vmcore-TIME.elf, when the guest panics or restarts",
    ),
    (
        "hypervisor.qemu.network_queues",
        "not set, or 0: as many pairs as the VM has vCPUs when it boots, at most 8",
    ),
    (
        "hypervisor.qemu.rx_rate_limiter_max_rate",
        "bits per second of each device, by tc-tbf(8) on its tap; with macvtap a warning",
    ),
    (
        "hypervisor.qemu.tx_rate_limiter_max_rate",
        "bits per second of each device, by tc-tbf(8) on the pod's interface",
    ),
    (
        "hypervisor.qemu.disable_vhost_net",
        "an annotation can only set it to true",
    ),
    ("hypervisor.qemu.reclaim_guest_freed_memory", "true by default"),
    (
        "hypervisor.qemu.enable_annotations",
        "an entry has to match the whole last part of the name",
    ),
    (
        "agent.kata.reconnect_timeout_ms",
        "raises dial_timeout, never lowers it",
    ),
    ("agent.kata.create_container_timeout", "as in [runtime]"),
    (
        "agent.kata.enable_tracing",
        "the shim sends the agent's spans with its own, if runtime.enable_tracing is set: no forwarder is needed",
    ),
    (
        "runtime.enable_tracing",
        "spans are sent by OTLP/HTTP, as JSON (docs/diagnostics.md)",
    ),
    (
        "runtime.jaeger_endpoint",
        "an http:// URL that ends in /v1/traces; another is a warning: Jaeger's own protocol is not spoken",
    ),
    (
        "runtime.emptydir_mode",
        "\"shared-fs\" and \"block-plain\"; encrypted ones are refused: there are no confidential guests",
    ),
    (
        "runtime.disable_guest_seccomp",
        "false by default; an annotation can only set it to false",
    ),
    (
        "factory.vm_cache_number",
        "0 to 1024; kept by shims that have booted a VM, without a server",
    ),
];

/// Supported keys that Kata does not have.
const OWN: [&str; 10] = [
    "hypervisor.qemu.default_memory_limit",
    "hypervisor.qemu.accelerator",
    "hypervisor.qemu.vsock",
    "hypervisor.qemu.vsock_daemon",
    "hypervisor.qemu.valid_boot_paths",
    "runtime.host_network",
    "runtime.timeout_factor",
    "runtime.kernel_debug",
    "runtime.share_host_sockets",
    "factory.vm_cache_idle_timeout",
];

/// All keys, those of a table together and in the order of their names.
#[must_use]
pub fn reference() -> Vec<Row> {
    let mut rows = Vec::new();
    for table in Table::ALL {
        let supported = SETTINGS.iter().filter(|setting| setting.table == table).map(|setting| {
            let key = format!("{}.{}", table.name(), setting.key);
            let note = OTHERWISE.iter().find(|(other, _)| *other == key).map(|(_, note)| *note);
            let own = OWN.contains(&key.as_str()) || matches!(table, Table::Memlock | Table::CapIpcLock);
            let status = match note {
                _ if own => Status::Own,
                Some(_) => Status::Otherwise,
                None => Status::Done,
            };
            Row {
                key,
                status,
                annotated: setting.annotation().is_some(),
                note: note.unwrap_or_default(),
            }
        });
        let mut of_table: Vec<_> = supported.chain(unsupported::rows(table)).collect();
        of_table.sort_by(|one, other| one.key.cmp(&other.key));
        rows.extend(of_table);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_a_key_is_said_of_one_that_there_is() {
        let rows = reference();
        for key in OTHERWISE.iter().map(|(key, _)| key).chain(&OWN) {
            assert!(rows.iter().any(|row| row.key == **key), "{key}");
        }
    }

    #[test]
    fn a_key_that_is_not_simply_done_has_a_note() {
        for row in reference() {
            assert_eq!(
                row.note.is_empty(),
                matches!(row.status, Status::Done | Status::Own),
                "{}",
                row.key
            );
        }
    }
}
