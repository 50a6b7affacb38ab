//! The configuration of one sandbox: the file that is in force, then the sandbox's annotations.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base::chain;
use config::{Config, Warning};
use oci_spec::runtime::Spec;

/// The configuration of one sandbox, annotations applied.
pub(crate) struct Settings {
    /// The file that it was loaded from.
    pub(crate) file: PathBuf,
    pub(crate) config: Config,
    /// What the operator and the author of the annotations are to be told.
    pub(crate) warnings: Vec<Warning>,
}

/// The kernel that the guest is to run.
///
/// # Errors
/// It is the one with BTF, and that is not installed.
fn guest_kernel(config: &Config) -> Result<PathBuf, String> {
    let kernel = config.guest_kernel();
    if config.runtime.kernel_debug && !kernel.exists() {
        return Err(format!(
            "runtime.kernel_debug: {} does not exist: `make kernel-debug` builds it",
            kernel.display()
        ));
    }
    Ok(kernel)
}

impl Settings {
    /// Loads them. `config_path` is what the runtime options named.
    ///
    /// # Errors
    /// The file or an annotation says what cannot be; all in one line.
    pub(crate) fn load(config_path: Option<&Path>, spec: &Spec) -> Result<Self, String> {
        let file = file(config_path);
        let loaded = config::load(&file).map_err(|error| chain(&error))?;
        let (mut config, mut warnings) = (loaded.config, loaded.warnings);
        let annotations: BTreeMap<_, _> = spec.annotations().clone().unwrap_or_default().into_iter().collect();
        let more = config::annotations::apply(&mut config, &annotations).map_err(|error| chain(&error))?;
        warnings.extend(more);
        config.hypervisor.kernel = guest_kernel(&config)?;
        Ok(Self { file, config, warnings })
    }
}

/// The configuration file: what the runtime's options name, what the environment names, or where Kata's is.
pub(crate) fn file(config_path: Option<&Path>) -> PathBuf {
    let environment = std::env::var_os("KATA_CONF_FILE").map(PathBuf::from);
    config::locate(config_path, environment.as_deref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_with_btf_is_that_of_the_debug_directory_and_has_to_be_there() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.hypervisor.kernel = directory.path().join("vmlinuz");
        assert_eq!(guest_kernel(&config).unwrap(), config.hypervisor.kernel);
        config.runtime.kernel_debug = true;
        let refused = guest_kernel(&config).unwrap_err();
        assert!(refused.contains("`make kernel-debug` builds it"), "{refused}");
        let kernel = directory.path().join("debug/vmlinuz");
        std::fs::create_dir(directory.path().join("debug")).unwrap();
        std::fs::write(&kernel, "").unwrap();
        assert_eq!(guest_kernel(&config).unwrap(), kernel);
    }
}
