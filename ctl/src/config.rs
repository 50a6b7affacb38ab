//! `kata-ctl config`: the configuration in effect.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use config::{ConfigError, Loaded};

use crate::report::{Report, print_message};

#[derive(Debug, thiserror::Error)]
pub(crate) enum ShowError {
    #[error(transparent)]
    Load(#[from] ConfigError),
    /// It is there but cannot be written as TOML.
    #[error("cannot show the configuration as TOML")]
    Toml(#[from] toml::ser::Error),
    /// It is there but cannot be written as JSON.
    #[error("cannot show the configuration as JSON")]
    Json(#[from] serde_json::Error),
}

/// The file that the command line names, else the one that the runtime would read in this environment.
pub(crate) fn path(named: Option<&Path>) -> PathBuf {
    let environment = std::env::var_os("KATA_CONF_FILE").map(PathBuf::from);
    config::locate(named, environment.as_deref())
}

/// The configuration as TOML or JSON, with the files that it comes from. Warnings go to standard error.
pub(crate) fn report(named: Option<&Path>, json: bool) -> Result<Report, ShowError> {
    let loaded = config::load(&path(named))?;
    for warning in &loaded.warnings {
        print_message(&format!("warning: {warning}"));
    }
    let text = if json { as_json(&loaded)? } else { as_toml(&loaded)? };
    Ok(Report { text, good: true })
}

/// Every key that Kata's files and annotations have, and what becomes of it.
pub(crate) fn keys() -> Report {
    let mut text = String::new();
    for row in config::reference() {
        let annotated = if row.annotated { ", also as an annotation" } else { "" };
        let note = if row.note.is_empty() {
            String::new()
        } else {
            format!(": {}", row.note)
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}: {}{annotated}{note}", row.key, row.status.as_str());
    }
    Report { text, good: true }
}

fn as_toml(loaded: &Loaded) -> Result<String, ShowError> {
    let mut text = String::new();
    for file in &loaded.files {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# from {}", file.display());
    }
    text.push('\n');
    text.push_str(&toml::to_string(&loaded.config.to_table())?);
    Ok(text)
}

fn as_json(loaded: &Loaded) -> Result<String, ShowError> {
    let value = serde_json::json!({
        "files": loaded.files.iter().map(|file| file.to_string_lossy()).collect::<Vec<_>>(),
        "warnings": loaded.warnings.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "config": serde_json::to_value(loaded.config.to_table())?,
    });
    Ok(format!("{}\n", serde_json::to_string_pretty(&value)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loaded(directory: &Path) -> Loaded {
        let file = directory.join("configuration.toml");
        std::fs::write(
            &file,
            "[hypervisor.qemu]\nkernel = \"/k\"\ninitrd = \"/i\"\nenable_iommu = true\n",
        )
        .unwrap();
        config::load(&file).unwrap()
    }

    #[test]
    fn the_toml_names_the_files_and_can_be_loaded_again() {
        let directory = tempfile::tempdir().unwrap();
        let loaded = loaded(directory.path());
        let text = as_toml(&loaded).unwrap();
        assert!(
            text.starts_with(&format!("# from {}\n", loaded.files[0].display())),
            "{text}"
        );
        let copy = directory.path().join("copy.toml");
        std::fs::write(&copy, text).unwrap();
        assert_eq!(config::load(&copy).unwrap().config, loaded.config);
    }

    #[test]
    fn the_json_has_files_warnings_and_every_table() {
        let directory = tempfile::tempdir().unwrap();
        let loaded = loaded(directory.path());
        let json: serde_json::Value = serde_json::from_str(&as_json(&loaded).unwrap()).unwrap();
        assert_eq!(json["files"][0], *loaded.files[0].to_string_lossy());
        assert_eq!(json["warnings"][0], loaded.warnings[0].to_string());
        assert_eq!(json["config"]["hypervisor"]["qemu"]["kernel"], "/k");
        assert_eq!(json["config"]["agent"]["kata"]["dial_timeout"], 45);
    }
}
