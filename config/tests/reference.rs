//! The manual's table of keys is what the code knows, and Kata's documented annotations are all in it.

use config::{Row, reference};

const GUIDE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
const BEGIN: &str =
    "<!-- keys: `cargo test -p tatami-config --test reference` with WRITE_GUIDE=1 writes what follows -->\n";
const END: &str = "<!-- end of keys -->";

/// Kata's annotations (its docs/how-to/how-to-set-sandbox-config-kata.md), without io.katacontainers.config.
const ANNOTATIONS: &str = "runtime.experimental runtime.disable_guest_seccomp runtime.disable_new_netns runtime.internetworking_model \
    runtime.sandbox_cgroup_only runtime.enable_pprof runtime.create_container_timeout runtime.experimental_force_guest_pull \
    agent.enable_tracing agent.container_pipe_size agent.kernel_modules agent.cdh_api_timeout agent.cdh_api_timeout_ms \
    hypervisor.asset_hash_type hypervisor.block_device_cache_direct hypervisor.block_device_cache_noflush \
    hypervisor.block_device_cache_set hypervisor.block_device_driver hypervisor.blk_logical_sector_size \
    hypervisor.blk_physical_sector_size hypervisor.cpu_features hypervisor.default_max_vcpus hypervisor.default_memory \
    hypervisor.default_vcpus hypervisor.disable_block_device_use hypervisor.disable_image_nvdimm hypervisor.disable_vhost_net \
    hypervisor.enable_hugepages hypervisor.enable_iommu_platform hypervisor.enable_iommu hypervisor.enable_iothreads \
    hypervisor.enable_mem_prealloc hypervisor.enable_vhost_user_store hypervisor.vhost_user_reconnect_timeout_sec \
    hypervisor.enable_virtio_mem hypervisor.entropy_source hypervisor.firmware_hash hypervisor.firmware \
    hypervisor.firmware_volume_hash hypervisor.firmware_volume hypervisor.guest_hook_path hypervisor.cold_plug_vfio \
    hypervisor.hot_plug_vfio hypervisor.hypervisor_hash hypervisor.image_hash hypervisor.image hypervisor.initrd_hash \
    hypervisor.initrd hypervisor.jailer_hash hypervisor.jailer_path hypervisor.kernel_hash hypervisor.kernel_params \
    hypervisor.kernel hypervisor.machine_accelerators hypervisor.machine_type hypervisor.memory_offset hypervisor.memory_slots \
    hypervisor.msize_9p hypervisor.path hypervisor.pcie_root_port hypervisor.shared_fs hypervisor.use_vsock \
    hypervisor.vhost_user_store_path hypervisor.virtio_fs_cache_size hypervisor.virtio_fs_cache hypervisor.virtio_fs_daemon \
    hypervisor.virtio_fs_extra_args hypervisor.enable_guest_swap hypervisor.use_legacy_serial hypervisor.default_gpus \
    hypervisor.default_gpu_model hypervisor.block_device_num_queues hypervisor.block_device_queue_size \
    hypervisor.rx_rate_limiter_max_rate hypervisor.tx_rate_limiter_max_rate hypervisor.hotplug_vfio_on_root_bus \
    hypervisor.file_mem_backend hypervisor.enable_swap hypervisor.ctlpath hypervisor.rootless hypervisor.cc_init_data \
    runtime.name runtime.hypervisor_name runtime.agent_name";

#[cfg(test)]
mod table {
    use super::*;

    pub(super) fn rendered() -> String {
        let mut text = String::from("| key | | annotation | |\n|---|---|---|---|\n");
        for Row {
            key,
            status,
            annotated,
            note,
        } in reference()
        {
            let annotated = if annotated { "yes" } else { "" };
            text += &format!("| `{key}` | {} | {annotated} | {note} |\n", status.as_str());
        }
        text
    }
}

#[test]
fn the_manual_has_every_key_and_what_becomes_of_it() {
    let guide = std::fs::read_to_string(GUIDE).unwrap();
    let (before, rest) = guide.split_once(BEGIN).unwrap();
    let (written, after) = rest.split_once(END).unwrap();
    let rendered = table::rendered();
    if std::env::var_os("WRITE_GUIDE").is_some() {
        std::fs::write(GUIDE, format!("{before}{BEGIN}{rendered}{END}{after}")).unwrap();
    } else {
        assert_eq!(
            written, rendered,
            "docs/configuration.md is not what the code knows: WRITE_GUIDE=1 writes it"
        );
    }
}

#[test]
fn every_annotation_that_kata_documents_is_known() {
    let rows = reference();
    for annotation in ANNOTATIONS.split_whitespace() {
        let (table, name) = annotation.split_once('.').unwrap();
        let table = match table {
            "hypervisor" => "hypervisor.qemu",
            "agent" => "agent.kata",
            other => other,
        };
        // Kata's one annotation that is not named as its key.
        let name = if name == "default_max_vcpus" {
            "default_maxvcpus"
        } else {
            name
        };
        let key = format!("{table}.{name}");
        assert!(rows.iter().any(|row| row.key == key), "{annotation}");
    }
}

#[test]
fn every_key_of_katas_files_is_known() {
    let rows = reference();
    for file in [include_str!("stock/go.toml"), include_str!("stock/runtime-rs.toml")] {
        let mut table = "";
        for line in file.lines() {
            if let Some(name) = line.strip_prefix('[') {
                table = name.trim_end_matches(']');
            } else if let Some((key, _)) = line.split_once(" = ") {
                let key = format!("{table}.{key}");
                assert!(rows.iter().any(|row| row.key == key), "{key}");
            }
        }
    }
}
