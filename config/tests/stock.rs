//! Kata's own files: what they name and nobody has installed is replaced, what they ask for holds, and nothing of it is an error.

use std::path::{Path, PathBuf};
use std::time::Duration;

use config::{Installation, Loaded, Mebibytes, Reason, Warning};

const GO: &str = include_str!("stock/go.toml");
const RUNTIME_RS: &str = include_str!("stock/runtime-rs.toml");

use flavours::{Stock, warnings};

#[cfg(test)]
mod flavours {
    use super::*;
    use config::ConfigError;
    use tempfile::TempDir;

    /// A file of Kata's, and an installation of ours.
    pub(super) struct Stock {
        pub(super) directory: TempDir,
        pub(super) installed: Installation,
    }

    impl Stock {
        pub(super) fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let file = |name: &str| {
                let path = directory.path().join(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, name).unwrap();
            };
            for name in ["vmlinuz", "initrd.img"] {
                file(&format!("ours/share/tatami/{name}"));
            }
            for name in ["virtiofsd", "vhost-device-vsock"] {
                file(&format!("ours/libexec/tatami/{name}"));
            }
            let installed = Installation::below(&directory.path().join("ours")).unwrap();
            Self { directory, installed }
        }

        pub(super) fn prefix(&self) -> PathBuf {
            self.directory.path().join("opt/kata")
        }

        /// Puts a file where Kata's package would.
        pub(super) fn kata_has(&self, name: &str) -> PathBuf {
            let path = self.prefix().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, b"\x1f\x8b").unwrap();
            path
        }

        pub(super) fn load(&self, text: &str) -> Result<Loaded, ConfigError> {
            let path = self.directory.path().join("configuration.toml");
            std::fs::write(&path, text.replace("@PREFIX@", &self.prefix().display().to_string())).unwrap();
            config::load_for(&path, Some(&self.installed))
        }
    }

    /// The keys that are warned of because they have no effect.
    pub(super) fn warnings(loaded: &Loaded) -> Vec<&str> {
        let weakens = |warning: &Warning| matches!(warning.reason, Reason::Weakens(_));
        let kept = loaded
            .warnings
            .iter()
            .filter(|warning| !is_replaced(warning) && !weakens(warning));
        kept.map(|warning| warning.key.as_str()).collect()
    }

    pub(super) fn is_replaced(warning: &Warning) -> bool {
        matches!(warning.reason, Reason::Replaced(_))
    }
}

#[test]
fn the_go_runtimes_file_holds() {
    let stock = Stock::new();
    let loaded = stock.load(GO).unwrap();
    assert_eq!(warnings(&loaded), [""; 0]);
    let hypervisor = &loaded.config.hypervisor;
    assert_eq!(hypervisor.default_memory, Mebibytes(2048));
    assert_eq!(
        hypervisor.virtio_fs_extra_args,
        ["--thread-pool-size=1", "--announce-submounts"]
    );
    assert_eq!(
        hypervisor.seccompsandbox.as_deref(),
        Some("on,obsolete=deny,spawn=deny,resourcecontrol=deny")
    );
    assert!(loaded.config.runtime.disable_guest_seccomp);
}

#[test]
fn runtime_rs_file_holds() {
    let stock = Stock::new();
    let loaded = stock.load(RUNTIME_RS).unwrap();
    assert_eq!(warnings(&loaded), [""; 0]);
    let config = &loaded.config;
    assert_eq!(config.hypervisor.virtio_fs_extra_args, ["--thread-pool-size=1"]);
    assert_eq!(config.hypervisor.seccompsandbox, None);
    // 3 s are too short for what is waited for here.
    assert_eq!(config.agent.dial_timeout, Duration::from_secs(45));
    assert_eq!(config.runtime.create_container_timeout, Duration::from_secs(30));
    assert!(config.runtime.static_sandbox_resource_mgmt);
    let longer = RUNTIME_RS.replace("reconnect_timeout_ms = 3000", "reconnect_timeout_ms = 90500");
    let loaded = stock.load(&longer).unwrap();
    assert_eq!(loaded.config.agent.dial_timeout, Duration::from_secs(91));
}

#[test]
fn what_katas_defaults_take_away_of_the_confinement_is_one_warning_that_names_the_keys() {
    let stock = Stock::new();
    for (text, keys) in [
        (GO, &["rootless = false", "disable_guest_seccomp = true"][..]),
        (
            RUNTIME_RS,
            &[
                "rootless = false",
                "seccompsandbox = \"\"",
                "disable_guest_seccomp = true",
            ],
        ),
    ] {
        let loaded = stock.load(text).unwrap();
        let said: Vec<_> = loaded
            .warnings
            .iter()
            .filter(|warning| matches!(warning.reason, Reason::Weakens(_)))
            .map(ToString::to_string)
            .collect();
        assert_eq!(said.len(), 1, "{said:?}");
        for key in keys {
            assert!(said[0].contains(key), "{key}: {said:?}");
        }
    }
    let own = stock.load("[hypervisor.qemu]\nrootless = true\n").unwrap();
    assert!(
        own.warnings
            .iter()
            .all(|warning| !matches!(warning.reason, Reason::Weakens(_)))
    );
}

#[test]
fn without_katas_packages_all_that_is_named_is_replaced_with_one_warning() {
    for text in [GO, RUNTIME_RS] {
        let stock = Stock::new();
        let loaded = stock.load(text).unwrap();
        let hypervisor = loaded.config.hypervisor.clone();
        assert_eq!(hypervisor.kernel, stock.installed.kernel);
        assert_eq!(hypervisor.initrd, stock.installed.initrd);
        assert_eq!(hypervisor.path, Path::new("qemu-system-x86_64"));
        assert_eq!(Some(hypervisor.virtio_fs_daemon), stock.installed.virtiofsd);
        assert_eq!(Some(hypervisor.vsock_daemon), stock.installed.vsock_daemon);
        let replaced: Vec<_> = loaded
            .warnings
            .iter()
            .filter(|one| flavours::is_replaced(one))
            .collect();
        let [warning] = replaced[..] else {
            panic!("{replaced:?}")
        };
        let said = warning.to_string();
        for named in [
            "vmlinux.container, which is not there",
            "kata-containers.img, another runtime's guest",
            "bin/qemu-system-x86_64, which is not there",
            "libexec/virtiofsd, which is not there",
        ] {
            assert!(said.contains(named), "{named} is not in {said}");
        }
    }
}

#[test]
fn what_katas_packages_have_is_taken_but_for_the_guests_files() {
    let stock = Stock::new();
    let kernel = stock.kata_has("share/kata-containers/vmlinux.container");
    stock.kata_has("share/kata-containers/kata-containers.img");
    let initrd = stock.kata_has("share/kata-containers/kata-containers-initrd.img");
    let (qemu, virtiofsd) = (
        stock.kata_has("bin/qemu-system-x86_64"),
        stock.kata_has("libexec/virtiofsd"),
    );
    let hypervisor = stock.load(GO).unwrap().config.hypervisor;
    assert_eq!(
        (hypervisor.kernel, hypervisor.path, hypervisor.virtio_fs_daemon),
        (kernel, qemu, virtiofsd)
    );
    assert_eq!(hypervisor.initrd, stock.installed.initrd);

    let with_initrd = GO.replace("image = ", "initrd = ").replace(".img", "-initrd.img");
    let loaded = stock.load(&with_initrd).unwrap();
    assert_eq!(loaded.config.hypervisor.initrd, stock.installed.initrd);
    assert!(
        loaded.warnings[0]
            .to_string()
            .contains(&format!("initrd {}", initrd.display()))
    );
}

#[test]
fn a_flavour_that_promises_a_confidential_guest_is_refused() {
    for promise in [
        ("confidential_guest = false", "confidential_guest = true"),
        ("sev_snp_guest = false", "sev_snp_guest = true"),
        ("emptydir_mode = \"shared-fs\"", "emptydir_mode = \"block-encrypted\""),
    ] {
        assert!(GO.contains(promise.0));
        let error = Stock::new().load(&GO.replace(promise.0, promise.1)).unwrap_err();
        let said = error.to_string();
        assert!(said.contains(promise.1) && said.contains("must be "), "{said}");
    }
}

#[test]
fn every_value_that_is_switched_on_holds_or_is_said() {
    // Debugging, and what changes nothing that a container sees; the rest is in the model, or warned of, or refused.
    for text in [GO, RUNTIME_RS] {
        let before = Stock::new().load(text).unwrap();
        for line in text.lines().filter(|line| line.ends_with(" = false")) {
            let on = line.replace(" = false", " = true");
            match Stock::new().load(&text.replace(&format!("\n{line}\n"), &format!("\n{on}\n"))) {
                Err(error) => assert!(error.to_string().contains(&on), "{error}"),
                Ok(loaded) => {
                    let key = on.split(' ').next().unwrap();
                    let silent = [
                        "disable_nesting_checks",
                        "disable_image_nvdimm",
                        "enable_virtio_mem",
                        "disable_selinux",
                    ];
                    let changes_nothing = silent.contains(&key)
                        || key.starts_with("memcg")
                        || key.starts_with("compact")
                        || key == "disable_guest_empty_dir"
                        || key == "sandbox_cgroup_only";
                    let told = loaded.warnings.iter().any(|warning| warning.key.ends_with(key));
                    let holds = loaded.config.to_table() != before.config.to_table();
                    assert!(told || holds || changes_nothing, "{on} is ignored in silence");
                }
            }
        }
    }
}
