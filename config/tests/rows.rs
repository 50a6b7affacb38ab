//! What the manual's table says of each key and annotation is what becomes of it.

use std::collections::BTreeMap;

use config::{Config, Row, Status, annotations, reference};

/// A value that is not the default for each key that is done, in the order of the table; as TOML.
const SAMPLES: &[(&str, &str)] = &[
    ("hypervisor.qemu.accelerator", "\"tcg\""),
    ("hypervisor.qemu.block_device_aio", "\"native\""),
    ("hypervisor.qemu.block_device_cache_direct", "true"),
    ("hypervisor.qemu.block_device_cache_noflush", "true"),
    ("hypervisor.qemu.block_device_cache_set", "true"),
    ("hypervisor.qemu.cpu_features", "\"pmu=off\""),
    ("hypervisor.qemu.default_maxmemory", "4096"),
    ("hypervisor.qemu.default_maxvcpus", "3"),
    ("hypervisor.qemu.default_memory", "512"),
    ("hypervisor.qemu.default_memory_limit", "1024"),
    ("hypervisor.qemu.default_vcpus", "2"),
    ("hypervisor.qemu.disable_vhost_net", "true"),
    ("hypervisor.qemu.disk_rate_limiter_bw_max_rate", "8000000"),
    ("hypervisor.qemu.disk_rate_limiter_ops_max_rate", "1000"),
    ("hypervisor.qemu.enable_annotations", "[\"x\"]"),
    ("hypervisor.qemu.enable_debug", "true"),
    ("hypervisor.qemu.enable_hugepages", "true"),
    ("hypervisor.qemu.enable_iothreads", "true"),
    ("hypervisor.qemu.enable_mem_prealloc", "true"),
    ("hypervisor.qemu.guest_memory_dump_paging", "true"),
    ("hypervisor.qemu.guest_memory_dump_path", "\"/var/crash\""),
    ("hypervisor.qemu.initrd", "\"/other/initrd\""),
    ("hypervisor.qemu.kernel", "\"/other/kernel\""),
    ("hypervisor.qemu.kernel_params", "\"a=b\""),
    ("hypervisor.qemu.network_queues", "2"),
    ("hypervisor.qemu.overhead_memory", "100"),
    ("hypervisor.qemu.overhead_vcpus", "0.5"),
    ("hypervisor.qemu.path", "\"/other/qemu\""),
    ("hypervisor.qemu.reclaim_guest_freed_memory", "false"),
    ("hypervisor.qemu.rootless", "false"),
    ("hypervisor.qemu.rx_rate_limiter_max_rate", "8000000"),
    ("hypervisor.qemu.seccomp_sandbox", "\"on\""),
    ("hypervisor.qemu.seccompsandbox", "\"on\""),
    ("hypervisor.qemu.shared_fs", "\"none\""),
    ("hypervisor.qemu.tx_rate_limiter_max_rate", "8000000"),
    ("hypervisor.qemu.valid_boot_paths", "[\"/x\"]"),
    ("hypervisor.qemu.valid_hypervisor_paths", "[\"/x\"]"),
    ("hypervisor.qemu.valid_virtio_fs_daemon_paths", "[\"/x\"]"),
    ("hypervisor.qemu.virtio_fs_cache", "\"never\""),
    ("hypervisor.qemu.virtio_fs_daemon", "\"/other/virtiofsd\""),
    ("hypervisor.qemu.virtio_fs_extra_args", "[\"--thread-pool-size=2\"]"),
    ("hypervisor.qemu.virtio_fs_queue_size", "512"),
    ("hypervisor.qemu.vsock", "\"vhost\""),
    ("hypervisor.qemu.vsock_daemon", "\"/other/vsock\""),
    ("agent.kata.create_container_timeout", "33"),
    ("agent.kata.debug_console_enabled", "true"),
    ("agent.kata.dial_timeout", "33"),
    ("agent.kata.enable_debug", "true"),
    ("agent.kata.enable_tracing", "true"),
    ("agent.kata.kernel_modules", "[\"nfs\"]"),
    ("agent.kata.reconnect_timeout_ms", "99000"),
    ("runtime.create_container_timeout", "33"),
    ("runtime.disable_guest_seccomp", "true"),
    ("runtime.emptydir_mode", "\"block-plain\""),
    ("runtime.enable_debug", "true"),
    ("runtime.enable_tracing", "true"),
    ("runtime.enable_vcpus_pinning", "true"),
    ("runtime.host_network", "\"deny\""),
    ("runtime.internetworking_model", "\"none\""),
    ("runtime.jaeger_endpoint", "\"http://c:4318/v1/traces\""),
    ("runtime.jaeger_password", "\"secret\""),
    ("runtime.jaeger_user", "\"user\""),
    ("runtime.kernel_debug", "true"),
    ("runtime.sandbox_bind_mounts", "[\"/srv:rw\"]"),
    ("runtime.share_host_sockets", "[\"/run/x.sock\"]"),
    ("runtime.static_sandbox_resource_mgmt", "true"),
    ("runtime.timeout_factor", "2.0"),
    ("runtime.memlock.allow_annotation", "false"),
    ("runtime.memlock.default", "\"16MiB\""),
    ("runtime.memlock.max", "\"16MiB\""),
    ("runtime.memlock.on_excess", "\"clamp\""),
    ("runtime.memlock.perf_event_mlock_kb", "1000"),
    ("runtime.cap_ipc_lock.allow_annotation", "false"),
    ("runtime.cap_ipc_lock.ambient", "true"),
    ("runtime.cap_ipc_lock.grant_to_dropped", "true"),
    ("runtime.cap_ipc_lock.policy", "\"grant\""),
    ("factory.enable_template", "true"),
    ("factory.template_path", "\"/var/lib/templates\""),
    ("factory.vm_cache_idle_timeout", "60"),
    ("factory.vm_cache_number", "2"),
    ("hypervisor.qemu.factory.enable_template", "true"),
    ("hypervisor.qemu.factory.template_path", "\"/var/lib/templates\""),
    ("hypervisor.qemu.factory.vm_cache_number", "2"),
];

/// What is done otherwise, and by no value of the configuration.
const NO_VALUE: [&str; 2] = ["hypervisor.qemu.image", "runtime.sandbox_cgroup_only"];

/// What has one value, which is the default.
const ONE_VALUE: [&str; 1] = ["hypervisor.qemu.machine_type"];

/// One of them asks for what a key that has no effect is about.
const ASKING: [&str; 3] = ["true", "false", "\"other\""];

#[cfg(test)]
mod files {
    use super::*;

    /// What loading a file says of one key, in warnings that name it, and what holds then.
    pub(super) fn load(key: &str, value: &str) -> Result<(usize, Config), String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("configuration.toml");
        let (table, name) = key.rsplit_once('.').unwrap();
        let needed = [("kernel", "/k"), ("initrd", "/i")];
        let needed = needed.iter().filter(|(needed, _)| *needed != name);
        let mut text = String::from("[hypervisor.qemu]\n");
        text.extend(needed.map(|(name, value)| format!("{name} = \"{value}\"\n")));
        if table != "hypervisor.qemu" {
            text += &format!("[{table}]\n");
        }
        text += &format!("{name} = {value}\n");
        std::fs::write(&path, text).unwrap();
        let loaded = config::load(&path).map_err(|error| error.to_string())?;
        let named = loaded.warnings.iter().filter(|warning| warning.key == key);
        Ok((named.count(), loaded.config))
    }

    /// The table of the configuration without the key.
    pub(super) fn before() -> Config {
        load("runtime.enable_debug", "false").unwrap().1
    }
}

#[cfg(test)]
fn sample(key: &str) -> &'static str {
    let found = SAMPLES.iter().find(|(sampled, _)| *sampled == key);
    assert!(found.is_some(), "{key} has no sample here");
    found.unwrap().1
}

#[test]
fn a_key_in_a_file_is_done_warned_of_refused_or_has_no_effect_as_the_table_says() {
    let before = files::before().to_table();
    for Row { key, status, .. } in reference() {
        match status {
            _ if NO_VALUE.contains(&key.as_str()) => {}
            _ if ONE_VALUE.contains(&key.as_str()) => {
                let error = files::load(&key, "\"other\"").unwrap_err();
                assert!(error.contains(&key), "{error}");
            }
            Status::Done | Status::Otherwise | Status::Own => {
                let (warnings, config) = files::load(&key, sample(&key)).unwrap();
                assert_eq!(warnings, 0, "{key}");
                assert_ne!(config.to_table(), before, "{key} has no effect");
            }
            Status::Warned => {
                let counts = ASKING.map(|value| files::load(&key, value).unwrap().0);
                assert!(
                    counts.contains(&1) && counts.iter().all(|count| *count <= 1),
                    "{key}: {counts:?}"
                );
            }
            Status::Refused => {
                let errors: Vec<_> = ASKING
                    .iter()
                    .filter_map(|value| files::load(&key, value).err())
                    .collect();
                assert!(!errors.is_empty(), "{key} is not refused");
                assert!(errors.iter().all(|error| error.contains(&key)), "{key}: {errors:?}");
            }
            Status::Unneeded => {
                for value in ASKING {
                    let (warnings, config) = files::load(&key, value).unwrap();
                    assert_eq!((warnings, config.to_table()), (0, before.clone()), "{key} = {value}");
                }
            }
        }
    }
}

/// The name of the annotation for a key; none if its table has none.
#[cfg(test)]
fn annotation(key: &str) -> Option<String> {
    let names = [
        ("hypervisor.qemu", "hypervisor"),
        ("agent.kata", "agent"),
        ("runtime", "runtime"),
    ];
    let (table, name) = key.rsplit_once('.')?;
    let (_, prefix) = names.into_iter().find(|(known, _)| *known == table)?;
    // Kata's one annotation that is not named as its key.
    let name = name.replace("default_maxvcpus", "default_max_vcpus");
    Some(format!("io.katacontainers.config.{prefix}.{name}"))
}

/// A configuration of an operator who allows everything, and has what annotations may only make stricter.
#[cfg(test)]
fn allowing() -> Config {
    let mut config = files::before();
    let patterns = |texts: &[&str]| {
        texts
            .iter()
            .map(|text| config::PathPattern::new(text).unwrap())
            .collect()
    };
    config.hypervisor.enable_annotations = vec![config::NamePattern::new(".*").unwrap()];
    config.hypervisor.valid_hypervisor_paths = patterns(&["/other/*"]);
    config.hypervisor.valid_virtio_fs_daemon_paths = patterns(&["/other/*"]);
    config.hypervisor.valid_boot_paths = patterns(&["/other/*"]);
    config.hypervisor.rootless = false;
    config.hypervisor.disable_vhost_net = false;
    config.runtime.disable_guest_seccomp = true;
    // Without it the agent's own has no effect, which is said.
    config.runtime.enable_tracing = true;
    config.runtime.share_host_sockets = patterns(&["/run/x.sock", "/run/y.sock"]);
    config
}

#[test]
fn an_annotation_is_done_warned_of_refused_or_has_no_effect_as_the_table_says() {
    let allowing = allowing();
    let apply = |annotation: &str, value: &str| {
        let mut config = allowing.clone();
        let value = value.trim_matches('"').to_owned();
        let map = BTreeMap::from([(annotation.to_owned(), value)]);
        annotations::apply(&mut config, &map).map(|warnings| (warnings.len(), config))
    };
    for row in reference() {
        let Some(name) = annotation(&row.key) else {
            assert!(!row.annotated, "{}", row.key);
            continue;
        };
        if ONE_VALUE.contains(&row.key.as_str()) {
            apply(&name, "other").unwrap_err();
            continue;
        }
        if row.annotated {
            // What may only be made stricter.
            let value = match row.key.as_str() {
                "hypervisor.qemu.rootless" => "true",
                "runtime.disable_guest_seccomp" => "false",
                key => sample(key),
            };
            let (warnings, config) = apply(&name, value).unwrap();
            assert_eq!(warnings, 0, "{name}");
            assert_ne!(config, allowing, "{name} has no effect");
            continue;
        }
        let answers = ASKING.map(|value| apply(&name, value));
        let warned = answers.iter().any(|answer| matches!(answer, Ok((1, _))));
        match row.status {
            Status::Refused => assert!(answers.iter().any(Result::is_err), "{name} is not refused"),
            Status::Unneeded => assert!(answers.iter().all(|answer| matches!(answer, Ok((0, _)))), "{name}"),
            Status::Warned => assert!(warned, "{name}: {answers:?}"),
            // Only in a file: said, as any annotation that does nothing.
            Status::Done | Status::Otherwise | Status::Own => {
                assert!(warned || NO_VALUE.contains(&row.key.as_str()), "{name}: {answers:?}");
            }
        }
        let unchanged = answers.iter().flatten().all(|(_, config)| *config == allowing);
        assert!(unchanged, "{name} has an effect");
    }
}

#[test]
fn every_sample_is_of_a_key_that_there_is() {
    let rows = reference();
    for (key, _) in SAMPLES {
        assert!(rows.iter().any(|row| row.key == *key), "{key}");
    }
}
