//! The configuration that is installed: complete, free of warnings, and equal to the crate's defaults.

use std::path::{Path, PathBuf};

use config::Config;

use template::rendered;

#[cfg(test)]
mod template {
    /// The template with the paths of some installation.
    pub(super) fn rendered() -> String {
        let template = concat!(env!("CARGO_MANIFEST_DIR"), "/configuration.toml.in");
        let text = std::fs::read_to_string(template).unwrap();
        let text = text.replace("@QEMU@", "/usr/bin/qemu-system-x86_64");
        text.replace("@BIN@", "/opt/tatami/bin")
            .replace("@SHARE@", "/opt/tatami/share")
    }
}

#[test]
fn it_loads_without_warnings_and_says_what_holds_anyhow() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("configuration.toml");
    std::fs::write(&path, rendered()).unwrap();
    let loaded = config::load(&path).unwrap();
    assert_eq!(loaded.warnings, []);
    assert_eq!(loaded.files, [path]);

    let mut expected = Config::default();
    expected.hypervisor.path = PathBuf::from("/usr/bin/qemu-system-x86_64");
    expected.hypervisor.kernel = PathBuf::from("/opt/tatami/share/vmlinuz");
    expected.hypervisor.initrd = PathBuf::from("/opt/tatami/share/initrd.img");
    expected.hypervisor.virtio_fs_daemon = PathBuf::from("/opt/tatami/bin/virtiofsd");
    expected.hypervisor.vsock_daemon = PathBuf::from("/opt/tatami/bin/vhost-device-vsock");
    assert_eq!(loaded.config, expected);
}

#[test]
fn it_has_every_supported_key_and_no_other() {
    let written: toml::Table = rendered().parse().unwrap();
    let supported = Config::default().to_table();
    assert_eq!(keys(&written), keys(&supported));
}

/// All keys with the tables that they are in.
#[cfg(test)]
fn keys(table: &toml::Table) -> Vec<String> {
    let mut found = Vec::new();
    for (key, value) in table {
        match value.as_table() {
            Some(inner) => found.extend(keys(inner).into_iter().map(|inner| format!("{key}.{inner}"))),
            None => found.push(key.clone()),
        }
    }
    found
}

#[test]
fn it_has_no_placeholder_but_the_three_for_paths() {
    assert_eq!(rendered().matches('@').count(), 0);
    assert!(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("configuration.toml.in")
            .exists()
    );
}

#[test]
fn what_is_shown_loads_to_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("configuration.toml");
    std::fs::write(&path, rendered()).unwrap();
    let first = config::load(&path).unwrap().config;
    std::fs::write(&path, toml::to_string(&first.to_table()).unwrap()).unwrap();
    assert_eq!(config::load(&path).unwrap().config, first);
}
