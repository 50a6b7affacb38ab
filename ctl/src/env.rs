//! `kata-ctl env`: the environment in the tables and keys of Kata's `kata-ctl env` (its format 0.0.1-kata-ctl), so that
//! the same programs can read both. A key whose feature does not exist here has its empty value.

use std::path::Path;

use base::meminfo::Meminfo;
use serde_json::{Value, json};

use crate::check::parts::version;
use crate::command;
use crate::config::ShowError;
use crate::report::Report;

/// Kata's name for the form of this output.
const FORMAT: &str = "0.0.1-kata-ctl";

pub(crate) async fn report(named: Option<&Path>, as_json: bool) -> Result<Report, ShowError> {
    let value = collect(named).await?;
    let text = if as_json {
        format!("{value:#}\n")
    } else {
        toml::to_string(&value)?
    };
    Ok(Report { text, good: true })
}

pub(crate) async fn collect(named: Option<&Path>) -> Result<Value, ShowError> {
    let path = crate::config::path(named);
    let loaded = config::load(&path)?;
    let config::Config {
        hypervisor,
        agent,
        runtime,
        ..
    } = &loaded.config;
    let text = |path: &Path| path.display().to_string();
    let search = std::env::var_os("PATH");
    let qemu = command::find(&hypervisor.path, search.as_deref());
    let qemu_version = match &qemu {
        Some(path) => version(path).await.unwrap_or_else(|why| format!("unknown: {why}")),
        None => "unknown: it is not in PATH".to_owned(),
    };
    let shim = command::find(Path::new("containerd-shim-kata-v2"), search.as_deref());
    let table = loaded.config.to_table();
    let qemu_key = |key: &str| {
        table["hypervisor"]["qemu"]
            .get(key)
            .map_or(Value::Null, |value| json!(value))
    };
    let patterns = qemu_key("enable_annotations");
    Ok(json!({
        "meta": { "version": FORMAT },
        "kernel": { "path": text(&loaded.config.guest_kernel()), "parameters": hypervisor.kernel_params, "debug": runtime.kernel_debug },
        "image": { "path": "" },
        "initrd": { "path": text(&hypervisor.initrd) },
        "agent": { "debug": agent.enable_debug, "trace": false },
        "hypervisor": {
            "machine_type": qemu_key("machine_type"),
            "machine_accelerators": qemu_key("accelerator"),
            "version": qemu_version,
            "path": text(qemu.as_deref().unwrap_or(&hypervisor.path)),
            "block_device_driver": "virtio-blk",
            "entropy_source": "/dev/urandom",
            "shared_fs": qemu_key("shared_fs"),
            "virtio_fs_daemon": text(&hypervisor.virtio_fs_daemon),
            "msize_9p": 0,
            "memory_slots": 0,
            "pcie_root_port": 0,
            "hotplug_vfio_on_rootbus": false,
            "debug": hypervisor.enable_debug,
            "enable_iommu": false,
            "enable_iommu_platform": false,
            "default_vcpus": qemu_key("default_vcpus"),
            "cpu_features": hypervisor.cpu_features,
            "security_info": {
                "rootless": hypervisor.rootless,
                "disable_seccomp": hypervisor.seccompsandbox.is_none(),
                "guest_hook_path": "",
                "enable_annotations": patterns,
                "confidential_guest": false,
            },
        },
        "runtime": {
            "path": shim.map_or_else(String::new, |path| text(&path)),
            "guest_selinux_label": "",
            "experimental": [],
            "debug": runtime.enable_debug,
            "trace": false,
            "disable_guest_seccomp": runtime.disable_guest_seccomp,
            "disable_new_net_ns": false,
            "sandbox_cgroup_only": true,
            "static_sandbox_resource_mgmt": runtime.static_sandbox_resource_mgmt,
            "config": { "path": text(&path) },
            "version": { "semver": env!("CARGO_PKG_VERSION"), "commit": "" },
        },
        "host": host(),
    }))
}

fn host() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let (release, cpuinfo) = (read("/etc/os-release"), read("/proc/cpuinfo"));
    // In KiB, as Kata's tools have them.
    let meminfo = base::meminfo::read();
    let kibibytes = |figure: fn(&Meminfo) -> Option<u64>| meminfo.as_ref().and_then(figure).unwrap_or(0) / 1024;
    let capable = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("flags"))
        .is_some_and(|flags| flags.split_ascii_whitespace().any(|flag| matches!(flag, "vmx" | "svm")));
    json!({
        "available_guest_protection": "none",
        "kernel": rustix::system::uname().release().to_string_lossy(),
        "architecture": std::env::consts::ARCH,
        "vm_container_capable": capable || std::env::consts::ARCH == "aarch64",
        "support_vsocks": Path::new("/dev/vhost-vsock").exists(),
        "distro": { "name": field(&release, "NAME", '='), "version": field(&release, "VERSION_ID", '=') },
        "cpu": {
            "vendor": field(&cpuinfo, "vendor_id", ':'),
            "model": field(&cpuinfo, "model name", ':'),
            "cpus": std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        },
        "memory": {
            "total": kibibytes(|meminfo| Some(meminfo.mem_total)),
            "free": kibibytes(|meminfo| Some(meminfo.mem_free)),
            "available": kibibytes(|meminfo| meminfo.mem_available),
        },
    })
}

/// The value of the first line that has this name.
fn field(text: &str, name: &str, separator: char) -> String {
    let line = text.lines().find_map(|line| {
        let (key, value) = line.split_once(separator)?;
        (key.trim() == name).then_some(value)
    });
    line.unwrap_or_default().trim().trim_matches('"').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_tables_and_keys_are_katas_in_both_forms() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("configuration.toml");
        std::fs::write(&file, "[hypervisor.qemu]\nkernel = \"/k\"\ninitrd = \"/i\"\n").unwrap();
        let value = collect(Some(&file)).await.unwrap();
        let tables: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(
            tables,
            [
                "agent",
                "host",
                "hypervisor",
                "image",
                "initrd",
                "kernel",
                "meta",
                "runtime"
            ]
        );
        assert_eq!(value["kernel"]["path"], "/k");
        assert_eq!(value["runtime"]["config"]["path"], file.display().to_string());
        let written = report(Some(&file), false).await.unwrap().text;
        let read: toml::Table = written.parse().unwrap();
        assert_eq!(read["initrd"]["path"].as_str(), Some("/i"));
        assert!(read["host"]["memory"]["total"].as_integer().unwrap() > 0);
        serde_json::from_str::<Value>(&report(Some(&file), true).await.unwrap().text).unwrap();
    }

    #[tokio::test]
    async fn it_prints_what_is_configured() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("configuration.toml");
        let text = "[hypervisor.qemu]\nkernel = \"/k/vmlinuz\"\ninitrd = \"/i\"\ncpu_features = \"pmu=off\"\n\
            [runtime]\nkernel_debug = true\n";
        std::fs::write(&file, text).unwrap();
        let value = collect(Some(&file)).await.unwrap();
        assert_eq!(value["hypervisor"]["cpu_features"], "pmu=off");
        assert_eq!(value["kernel"]["debug"], true);
        assert_eq!(value["kernel"]["path"], "/k/debug/vmlinuz");
    }

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        assert_eq!(
            field("PRETTY_NAME=\"x\"\nNAME=\"Debian GNU/Linux\"\n", "NAME", '='),
            "Debian GNU/Linux"
        );
        assert_eq!(field("", "NAME", '='), "");
    }
}
