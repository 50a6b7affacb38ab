//! Kata's other files: those of QEMU start, or one sentence names the key that cannot be done; those of other hypervisors are refused.
//!
//! Each is a stock file with the keys in which Kata's file of that name differs from it and that matter to what becomes of it.

use config::{ConfigError, Installation, Loaded, Reason, Warning};

const GO: &str = include_str!("stock/go.toml");
const RUNTIME_RS: &str = include_str!("stock/runtime-rs.toml");

enum Becomes {
    /// Containers start. The keys are those that are warned of.
    Starts(&'static [&'static str]),
    /// It is refused by an error with this in it.
    Refused(&'static str),
}
use Becomes::{Refused, Starts};

struct File {
    /// `configuration-NAME.toml`.
    name: &'static str,
    stock: &'static str,
    /// Lines of the hypervisor's table, in the place of those with the same keys.
    hypervisor: &'static str,
    /// Lines of `[runtime]`, likewise.
    runtime: &'static str,
    becomes: Becomes,
}

const CONFIDENTIAL: &str = "confidential_guest = true\nfirmware = \"/opt/kata/share/ovmf/OVMF.fd\"";
const NVIDIA: &str = "image = \"@PREFIX@/share/kata-containers/kata-containers-nvidia-gpu.img\"\n\
                      kernel = \"@PREFIX@/share/kata-containers/vmlinuz-nvidia-gpu.container\"\n\
                      kernel_verity_params = \"\"\nenable_numa = false\nnuma_mapping = []\n\
                      cold_plug_vfio = \"root-port\"\nhot_plug_vfio = \"no-port\"\npcie_root_port = 8";
const NVIDIA_RUNTIME: &str = "pod_resource_api_sock = \"/var/lib/kubelet/pod-resources/kubelet.sock\"\n\
                              kubelet_root_dir = \"/var/lib/kubelet\"\ncreate_container_timeout = 1200";
const ENCRYPTED: &str = "emptydir_mode = \"block-encrypted\"";

/// `configuration-NAME.toml` in `src/runtime/config` and `src/runtime-rs/config` of Kata's source, for one of each kind.
const FILES: &[File] = &[
    qemu("qemu", GO, "", "", Starts(&[])),
    qemu(
        "qemu-nvidia-cpu",
        GO,
        "image = \"@PREFIX@/share/kata-containers/kata-containers-nvidia-cpu.img\"",
        "",
        Starts(&[]),
    ),
    qemu(
        "qemu-nvidia-gpu",
        GO,
        NVIDIA,
        NVIDIA_RUNTIME,
        Starts(&["hypervisor.qemu.cold_plug_vfio", "runtime.pod_resource_api_sock"]),
    ),
    qemu(
        "qemu-nvidia-gpu-snp",
        GO,
        "confidential_guest = true\nsev_snp_guest = true",
        NVIDIA_RUNTIME,
        Refused("hypervisor.qemu.confidential_guest"),
    ),
    qemu(
        "qemu-nvidia-gpu-tdx",
        GO,
        "confidential_guest = true",
        NVIDIA_RUNTIME,
        Refused("hypervisor.qemu.confidential_guest"),
    ),
    qemu(
        "qemu-tdx",
        GO,
        CONFIDENTIAL,
        ENCRYPTED,
        Refused("hypervisor.qemu.confidential_guest"),
    ),
    qemu(
        "qemu-snp",
        GO,
        "confidential_guest = true\nsev_snp_guest = true\nsnp_guest_policy = 196608",
        ENCRYPTED,
        Refused("hypervisor.qemu.confidential_guest"),
    ),
    qemu(
        "qemu-se",
        GO,
        "confidential_guest = true\nmachine_type = \"s390-ccw-virtio\"",
        ENCRYPTED,
        Refused("hypervisor.qemu.confidential_guest"),
    ),
    qemu(
        "qemu-cca",
        GO,
        "confidential_guest = true\nmachine_type = \"virt\"",
        ENCRYPTED,
        Refused("hypervisor.qemu.confidential_guest"),
    ),
    qemu(
        "qemu-coco-dev",
        GO,
        "shared_fs = \"none\"",
        ENCRYPTED,
        Refused("runtime.emptydir_mode = \"block-encrypted\""),
    ),
    other("acrn", GO, "acrn", ""),
    other("clh", GO, "clh", ""),
    other("fc", GO, "firecracker", ""),
    other("remote", GO, "remote", ""),
    other("stratovirt", GO, "stratovirt", ""),
    qemu("qemu-runtime-rs", RUNTIME_RS, "", "", Starts(&[])),
    qemu(
        "qemu-nvidia-gpu-runtime-rs",
        RUNTIME_RS,
        NVIDIA,
        NVIDIA_RUNTIME,
        Starts(&["hypervisor.qemu.cold_plug_vfio", "runtime.pod_resource_api_sock"]),
    ),
    qemu(
        "qemu-tdx-runtime-rs",
        RUNTIME_RS,
        "confidential_guest = true",
        ENCRYPTED,
        Refused("hypervisor.qemu.confidential_guest"),
    ),
    qemu(
        "qemu-snp-runtime-rs",
        RUNTIME_RS,
        "confidential_guest = true\nsev_snp_guest = true",
        ENCRYPTED,
        Refused("hypervisor.qemu.confidential_guest"),
    ),
    qemu(
        "qemu-se-runtime-rs",
        RUNTIME_RS,
        "confidential_guest = true",
        ENCRYPTED,
        Refused("hypervisor.qemu.confidential_guest"),
    ),
    qemu(
        "qemu-coco-dev-runtime-rs",
        RUNTIME_RS,
        "shared_fs = \"none\"",
        ENCRYPTED,
        Refused("runtime.emptydir_mode = \"block-encrypted\""),
    ),
    other(
        "clh-runtime-rs",
        RUNTIME_RS,
        "cloud-hypervisor",
        "hypervisor_name = \"cloud-hypervisor\"",
    ),
    other(
        "dragonball",
        RUNTIME_RS,
        "dragonball",
        "hypervisor_name = \"dragonball\"",
    ),
    other("rs-fc", RUNTIME_RS, "firecracker", "hypervisor_name = \"firecracker\""),
    other(
        "openvmm-azure-runtime-rs",
        RUNTIME_RS,
        "openvmm",
        "hypervisor_name = \"openvmm\"",
    ),
    other(
        "remote (runtime-rs)",
        RUNTIME_RS,
        "remote",
        "hypervisor_name = \"remote\"",
    ),
];

const fn qemu(
    name: &'static str,
    stock: &'static str,
    hypervisor: &'static str,
    runtime: &'static str,
    becomes: Becomes,
) -> File {
    File {
        name,
        stock,
        hypervisor,
        runtime,
        becomes,
    }
}

/// A file of another hypervisor, which is refused by its table.
const fn other(name: &'static str, stock: &'static str, table: &'static str, runtime: &'static str) -> File {
    qemu(name, stock, "", runtime, Refused(table))
}

#[cfg(test)]
mod files {
    use super::*;

    impl File {
        /// Its text, without the packages of Kata's.
        pub(super) fn text(&self) -> String {
            let mut text = with(self.stock, "[hypervisor.qemu]", self.hypervisor);
            text = with(&text, "[runtime]", self.runtime);
            if let Refused(table) = self.becomes
                && self.hypervisor.is_empty()
            {
                text = text.replace("[hypervisor.qemu", &format!("[hypervisor.{table}"));
            }
            text.replace("@PREFIX@", "/nonexistent/opt/kata")
        }

        pub(super) fn load(&self) -> Result<Loaded, ConfigError> {
            let directory = tempfile::tempdir().unwrap();
            let prefix = directory.path().join("ours");
            for name in [
                "share/tatami/vmlinuz",
                "share/tatami/initrd.img",
                "libexec/tatami/virtiofsd",
                "libexec/tatami/vhost-device-vsock",
            ] {
                let path = prefix.join(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, name).unwrap();
            }
            let path = directory.path().join("configuration.toml");
            std::fs::write(&path, self.text()).unwrap();
            config::load_for(&path, Some(&Installation::below(&prefix).unwrap()))
        }
    }

    /// A file with lines of one of its tables in the place of those with the same keys.
    fn with(text: &str, table: &str, lines: &str) -> String {
        let key = |line: &str| line.split(" = ").next().unwrap_or_default().to_owned();
        let replaced: Vec<_> = lines.lines().map(key).collect();
        let mut inside = false;
        let mut all = String::new();
        for line in text.lines() {
            if line.starts_with('[') {
                inside = line == table;
            }
            if inside && replaced.contains(&key(line)) {
                continue;
            }
            all += &format!("{line}\n");
            if line == table {
                all += &format!("{lines}\n");
            }
        }
        all
    }
}

#[test]
fn each_of_katas_files_starts_or_is_refused_by_the_key_that_cannot_be_done() {
    for file in FILES {
        let name = file.name;
        match (&file.becomes, file.load()) {
            (Starts(keys), Ok(loaded)) => {
                let of_a_key = |warning: &&Warning| !matches!(warning.reason, Reason::Replaced(_) | Reason::Weakens(_));
                let warned: Vec<_> = loaded
                    .warnings
                    .iter()
                    .filter(of_a_key)
                    .map(|warning| warning.key.as_str())
                    .collect();
                assert_eq!(warned, *keys, "{name}");
            }
            (Refused(part), Err(error)) => {
                let said = error.to_string();
                assert!(said.contains(part), "{name}: {said}");
                assert!(
                    !said.contains('\n') && said.contains("configuration.toml:"),
                    "{name}: {said}"
                );
            }
            (Starts(_), Err(error)) => panic!("{name}: {error}"),
            (Refused(_), Ok(loaded)) => panic!("{name} is {:?}", loaded.warnings),
        }
    }
}

#[test]
fn a_file_of_several_hypervisors_is_that_of_qemu() {
    let clh = "\n[hypervisor.clh]\ndefault_memory = 2048\n";
    let both = File {
        name: "both",
        stock: GO,
        hypervisor: "",
        runtime: "",
        becomes: Starts(&["hypervisor.clh"]),
    };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("configuration.toml");
    std::fs::write(&path, both.text() + clh).unwrap();
    let prefix = directory.path().join("ours/share/tatami");
    std::fs::create_dir_all(&prefix).unwrap();
    for name in ["vmlinuz", "initrd.img"] {
        std::fs::write(prefix.join(name), "").unwrap();
    }
    let installed = Installation::below(&directory.path().join("ours"));
    let loaded = config::load_for(&path, installed.as_ref()).unwrap();
    assert!(loaded.warnings.iter().any(|warning| warning.key == "hypervisor.clh"));

    // A drop-in of a node for QEMU changes nothing for a file of another hypervisor alone.
    let drop_in = directory.path().join("config.d/50-node.toml");
    std::fs::create_dir(drop_in.parent().unwrap()).unwrap();
    std::fs::write(&drop_in, "[hypervisor.qemu]\ndefault_memory = 512\n").unwrap();
    std::fs::write(&path, clh).unwrap();
    let said = config::load_for(&path, installed.as_ref()).unwrap_err().to_string();
    assert!(said.contains("[hypervisor.clh] is for another hypervisor"), "{said}");
    std::fs::remove_file(&drop_in).unwrap();

    // One of another hypervisor alone that names it for runtime-rs is refused by the first of the two.
    let named = GO.replace("[runtime]\n", "[runtime]\nhypervisor_name = \"clh\"\n");
    std::fs::write(&path, named.replace("@PREFIX@", "/nonexistent/opt/kata")).unwrap();
    let said = config::load_for(&path, installed.as_ref()).unwrap_err().to_string();
    assert!(
        said.contains("runtime.hypervisor_name = \"clh\": must be \"qemu\""),
        "{said}"
    );
}
