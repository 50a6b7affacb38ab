//! The configuration of one sandbox: the file that is in force, then the sandbox's annotations.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base::chain;
use config::{Config, Warning};
use oci_spec::runtime::Spec;

/// What holds for a sandbox.
pub(crate) struct Settings {
    /// The file that it was loaded from.
    pub(crate) file: PathBuf,
    /// What holds.
    pub(crate) config: Config,
    /// What the operator and the author of the annotations are to be told.
    pub(crate) warnings: Vec<Warning>,
}

impl Settings {
    /// Loads them. `config_path` is what the runtime options named.
    ///
    /// # Errors
    /// The file or an annotation says what cannot be; all in one line.
    pub(crate) fn load(config_path: Option<&Path>, spec: &Spec) -> Result<Self, String> {
        let environment = std::env::var_os("KATA_CONF_FILE").map(PathBuf::from);
        let file = config::locate(config_path, environment.as_deref());
        let loaded = config::load(&file).map_err(|error| chain(&error))?;
        let (mut config, mut warnings) = (loaded.config, loaded.warnings);
        let annotations: BTreeMap<_, _> = spec.annotations().clone().unwrap_or_default().into_iter().collect();
        let more = config::annotations::apply(&mut config, &annotations).map_err(|error| chain(&error))?;
        warnings.extend(more);
        Ok(Self { file, config, warnings })
    }
}
