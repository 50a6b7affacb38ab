//! Finds the configuration file, reads it and its drop-ins, and reports errors with their position.
//!
//! It only reads configuration files; `installation` replaces the paths in them.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::installation::{self, Installation};
use crate::model::Config;
use crate::raw::Raw;
use crate::settings::{self, Table};
use crate::unsupported;
use crate::value::SharedFs;
use crate::warning::{Place, Reason, Warning};

/// Where Kata looks, in its order.
pub const DEFAULT_PATHS: [&str; 2] = [
    "/etc/kata-containers/configuration.toml",
    "/usr/share/defaults/kata-containers/configuration.toml",
];

/// The path at which a collector takes spans by OTLP/HTTP.
pub const OTLP_PATH: &str = "/v1/traces";

/// Bytes that a file may have; Kata's own, with all their comments, have about 36 KiB.
pub const MAX_FILE_SIZE: u64 = 1 << 20;

/// Files that a directory of drop-ins may have.
pub const MAX_DROP_INS: usize = 256;

/// A configuration and how it came about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The configuration in effect.
    pub config: Config,
    /// What was read but has no effect.
    pub warnings: Vec<Warning>,
    /// The files, in the order in which they were read: a later one overrides an earlier one.
    pub files: Vec<PathBuf>,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what they are")]
pub enum ConfigError {
    #[error("cannot read the configuration {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// A pipe, a device or a directory: opening or reading it might never end.
    #[error("cannot read the configuration {}: not a regular file", path.display())]
    NotAFile { path: PathBuf },
    /// A file is too large to be meant.
    #[error("{}: larger than {MAX_FILE_SIZE} bytes", path.display())]
    TooLarge { path: PathBuf },
    /// A directory has too many drop-ins to be meant.
    #[error("{}: more than {MAX_DROP_INS} drop-ins", path.display())]
    TooManyDropIns { path: PathBuf },
    #[error("{}:{line}: not valid TOML: {message}", path.display())]
    Syntax {
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        message: String,
    },
    /// A value has the wrong type or is out of range.
    #[error("{}:{line}: {key} = {value}: must be {allowed}", path.display())]
    Value {
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        key: String,
        /// The value, as it was written; the beginning of it if it is long.
        value: String,
        allowed: String,
    },
    /// The files configure another hypervisor alone: nothing of what they say about the VM would hold.
    #[error("{}:{line}: [{table}] is for another hypervisor than QEMU, which this runtime starts: its settings belong into [hypervisor.qemu]", path.display())]
    OtherHypervisor {
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        table: String,
    },
    #[error("{}: {reason}", path.display())]
    Conflict { path: PathBuf, reason: String },
    /// A key that is needed is in none of the files.
    #[error("{}: {key} is not set: {why}{}", path.display(), hint(misspelt.as_deref()))]
    Missing {
        path: PathBuf,
        key: &'static str,
        why: &'static str,
        /// A key that looks as if this one was meant.
        misspelt: Option<Box<Warning>>,
    },
}

fn hint(misspelt: Option<&Warning>) -> String {
    misspelt.map_or_else(String::new, |warning| format!(" ({warning})"))
}

/// The configuration file: the one that the runtime's options name, else the one of KATA_CONF_FILE, else the first of
/// [`DEFAULT_PATHS`] that exists, else the first of them.
#[must_use]
pub fn locate(options_path: Option<&Path>, environment: Option<&Path>) -> PathBuf {
    let named = [options_path, environment]
        .into_iter()
        .flatten()
        .find(|path| !path.as_os_str().is_empty());
    if let Some(path) = named {
        return path.to_owned();
    }
    let [first, second] = DEFAULT_PATHS.map(PathBuf::from);
    if !first.exists() && second.exists() {
        second
    } else {
        first
    }
}

/// Reads a configuration file and the drop-ins `config.d/*.toml` beside it (if it is a link: beside what it points to).
/// What they do not say, or name without its being there, is what is installed beside the running program.
///
/// # Errors
/// A file cannot be read, is not TOML, or has a value of the wrong type or out of range; or kernel or initrd are neither
/// set nor installed.
pub fn load(path: &Path) -> Result<Loaded, ConfigError> {
    load_for(path, Installation::find().as_ref())
}

/// As [`load`], with the guest and the daemons of a given installation.
///
/// # Errors
/// As [`load`].
pub fn load_for(path: &Path, installed: Option<&Installation>) -> Result<Loaded, ConfigError> {
    let mut files = vec![path.to_owned()];
    files.extend(drop_ins(path)?);
    let mut config = Config::default();
    let mut said = Said::default();
    for file in &files {
        let text = read(file)?;
        merge(&mut config, &mut said, file, &text)?;
        // A drop-in for QEMU does not make a file of another hypervisor one for QEMU.
        if let Some(error) = said.other_hypervisor.take().filter(|_| !said.qemu) {
            return Err(error);
        }
    }
    let replaced = installation::complete(&mut config.hypervisor, said.image.take(), installed);
    let mut warnings = said.warnings;
    if !replaced.is_empty() {
        let place = Place::Files { first: path.to_owned() };
        let key = String::from("hypervisor.qemu");
        let reason = Reason::Replaced(replaced);
        warnings.insert(0, Warning { place, key, reason });
    }
    let weakens = weakened(&config);
    if !weakens.is_empty() {
        let place = Place::Files { first: path.to_owned() };
        let key = String::from("confinement");
        let reason = Reason::Weakens(weakens);
        warnings.push(Warning { place, key, reason });
    }
    for (key, how) in tracing(&config) {
        let place = Place::Files { first: path.to_owned() };
        let (key, reason) = (key.to_owned(), Reason::Differs(how));
        warnings.push(Warning { place, key, reason });
    }
    complete(&config, &warnings, path)?;
    if let Some(reason) = conflict(&config) {
        let path = path.to_owned();
        return Err(ConfigError::Conflict { path, reason });
    }
    Ok(Loaded {
        config,
        warnings,
        files,
    })
}

/// Which keys of a configuration exclude each other, and why.
pub(crate) fn conflict(config: &Config) -> Option<String> {
    let needs = [
        ("agent.kata.kernel_modules", config.agent.kernel_modules.is_empty()),
        (
            "runtime.sandbox_bind_mounts",
            config.runtime.sandbox_bind_mounts.is_empty(),
        ),
    ];
    let unshared = config.hypervisor.shared_fs == SharedFs::None;
    let key = needs.into_iter().find(|(_, unset)| unshared && !unset);
    key.map(|(key, _)| format!("{key} needs the shared directory, and hypervisor.qemu.shared_fs is \"none\""))
}

/// What is said of an agent that is to be traced without its shim.
pub(crate) const AGENT_ALONE: &str =
    "without runtime.enable_tracing the agent is not traced either: its spans belong to the shim's";

/// What the keys of tracing do otherwise than they say.
fn tracing(config: &Config) -> impl Iterator<Item = (&'static str, &'static str)> {
    let runtime = &config.runtime;
    let keys = [
        (
            runtime.enable_tracing
                && !runtime.jaeger_endpoint.is_empty()
                && !runtime.jaeger_endpoint.ends_with(OTLP_PATH),
            "runtime.jaeger_endpoint",
            "spans are not sent there, because it does not end in /v1/traces: only OTLP is spoken, which Jaeger takes at \
             http://HOST:4318/v1/traces. They are sent to OTEL_EXPORTER_OTLP_TRACES_ENDPOINT or OTEL_EXPORTER_OTLP_ENDPOINT of \
             containerd's environment, or to http://localhost:4318/v1/traces",
        ),
        (
            config.agent.enable_tracing && !runtime.enable_tracing,
            "runtime.enable_tracing",
            AGENT_ALONE,
        ),
    ];
    keys.into_iter()
        .filter(|(differs, ..)| *differs)
        .map(|(_, key, how)| (key, how))
}

/// What a configuration takes away of what stands between guest and host.
fn weakened(config: &Config) -> Vec<(&'static str, &'static str)> {
    let keys = [
        (
            !config.hypervisor.rootless,
            "hypervisor.qemu.rootless = false",
            "QEMU is root and sees the host's files",
        ),
        (
            config.hypervisor.seccompsandbox.is_none(),
            "hypervisor.qemu.seccompsandbox = \"\"",
            "QEMU has no seccomp filter",
        ),
        (
            config.runtime.disable_guest_seccomp,
            "runtime.disable_guest_seccomp = true",
            "the containers' seccomp profiles are not applied",
        ),
    ];
    keys.into_iter()
        .filter_map(|(weak, key, what)| weak.then_some((key, what)))
        .collect()
}

/// Refuses a configuration without what has no default, because nothing would be right everywhere.
fn complete(config: &Config, warnings: &[Warning], path: &Path) -> Result<(), ConfigError> {
    let hypervisor = &config.hypervisor;
    for (key, why, value) in [
        ("hypervisor.qemu.kernel", "the VM needs a kernel", &hypervisor.kernel),
        (
            "hypervisor.qemu.initrd",
            "the VM boots from an initrd, not from an image",
            &hypervisor.initrd,
        ),
    ] {
        if value.as_os_str().is_empty() {
            let meant = |warning: &&Warning| match warning.reason {
                Reason::Unknown { nearest: Some(nearest) } => key.ends_with(nearest),
                Reason::Unknown { nearest: None }
                | Reason::Unsupported(_)
                | Reason::Differs(_)
                | Reason::Replaced(_)
                | Reason::Weakens(_) => false,
            };
            let misspelt = warnings.iter().find(meant).cloned().map(Box::new);
            return Err(ConfigError::Missing {
                path: path.to_owned(),
                key,
                why,
                misspelt,
            });
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let failed = |source| ConfigError::Read {
        path: path.to_owned(),
        source,
    };
    if !path.metadata().map_err(failed)?.is_file() {
        return Err(ConfigError::NotAFile { path: path.to_owned() });
    }
    let mut text = String::new();
    File::open(path)
        .map_err(failed)?
        .take(MAX_FILE_SIZE + 1)
        .read_to_string(&mut text)
        .map_err(failed)?;
    if text.len() as u64 > MAX_FILE_SIZE {
        return Err(ConfigError::TooLarge { path: path.to_owned() });
    }
    Ok(text)
}

fn drop_ins(path: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    // Beside the file itself, not beside a link to it: as in Kata.
    let file = path.canonicalize().map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    let directory = file.parent().unwrap_or_else(|| Path::new("/")).join("config.d");
    let failed = |source| ConfigError::Read {
        path: directory.clone(),
        source,
    };
    let entries = match directory.read_dir() {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let file = entry.map_err(failed)?.path();
        if file.extension().is_some_and(|extension| extension == "toml") {
            files.push(file);
        }
        if files.len() > MAX_DROP_INS {
            return Err(ConfigError::TooManyDropIns { path: directory });
        }
    }
    files.sort();
    Ok(files)
}

/// What the files say beside what holds.
#[derive(Default)]
struct Said {
    warnings: Vec<Warning>,
    /// The guest's image, by the last file that names one.
    image: Option<PathBuf>,
    /// Whether a key of QEMU's is set.
    qemu: bool,
    /// The first table of another hypervisor, as the error that it is if no key of QEMU's is set.
    other_hypervisor: Option<ConfigError>,
}

/// Puts what one file says on top of what is known.
fn merge(config: &mut Config, said: &mut Said, path: &Path, text: &str) -> Result<(), ConfigError> {
    let document = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
        path: path.to_owned(),
        line: line_at(text, error.span().map_or(0, |span| span.start)),
        message: error.message().to_owned(),
    })?;
    let source = Source { path, text };
    let mut found = Vec::new();
    source.collect(document.get_ref(), &mut found)?;
    // In the order of the file, so that the first error and the warnings are where a reader expects them.
    found.sort_by_key(|entry| entry.offset);
    for entry in found {
        source.apply(config, said, &entry)?;
    }
    Ok(())
}

struct Source<'a> {
    path: &'a Path,
    text: &'a str,
}

/// A key of the file, with the table that it is in; `None` if that is not a table of ours.
struct Entry<'a> {
    table: Option<Table>,
    key: String,
    offset: usize,
    value: &'a Spanned<DeValue<'a>>,
}

impl<'a> Source<'a> {
    /// Finds our tables, and leaves everything else as entries of no table.
    fn collect(&self, document: &'a DeTable<'a>, found: &mut Vec<Entry<'a>>) -> Result<(), ConfigError> {
        for (name, value) in document {
            let offset = name.span().start;
            match (name.get_ref().as_ref(), value.get_ref()) {
                ("hypervisor" | "agent", DeValue::Table(kinds)) => {
                    for (kind, value) in kinds {
                        let full = format!("{}.{}", name.get_ref(), kind.get_ref());
                        self.collect_table(full, kind.span().start, value, found)?;
                    }
                }
                (name, _) => self.collect_table(name.to_owned(), offset, value, found)?,
            }
        }
        Ok(())
    }

    fn collect_table(
        &self,
        name: String,
        offset: usize,
        value: &'a Spanned<DeValue<'a>>,
        found: &mut Vec<Entry<'a>>,
    ) -> Result<(), ConfigError> {
        let Some(table) = Table::ALL.into_iter().find(|table| table.name() == name) else {
            found.push(Entry {
                table: None,
                key: name,
                offset,
                value,
            });
            return Ok(());
        };
        let Some(keys) = value.get_ref().as_table() else {
            return Err(self.refuse(name, offset, value, String::from("a table")));
        };
        for (key, value) in keys {
            let full = format!("{name}.{}", key.get_ref());
            if Table::ALL.into_iter().any(|table| table.name() == full) {
                self.collect_table(full, key.span().start, value, found)?;
                continue;
            }
            found.push(Entry {
                table: Some(table),
                key: key.get_ref().to_string(),
                offset: key.span().start,
                value,
            });
        }
        Ok(())
    }

    fn apply(&self, config: &mut Config, said: &mut Said, entry: &Entry<'_>) -> Result<(), ConfigError> {
        let warnings = &mut said.warnings;
        let line = line_at(self.text, entry.offset);
        let Some(table) = entry.table else {
            let warning = unsupported::table(self.path, line, &entry.key, entry.value.get_ref());
            let unsupported = matches!(&warning, Some(warning) if matches!(warning.reason, Reason::Unsupported(_)));
            if unsupported && entry.key.starts_with("hypervisor.") && said.other_hypervisor.is_none() {
                said.other_hypervisor = Some(ConfigError::OtherHypervisor {
                    path: self.path.to_owned(),
                    line,
                    table: entry.key.clone(),
                });
            }
            warnings.extend(warning);
            return Ok(());
        };
        said.qemu |= table.name().starts_with("hypervisor.qemu");
        if (table, entry.key.as_str()) == unsupported::IMAGE
            && let Some(image) = entry.value.get_ref().as_str()
        {
            said.image = (!image.is_empty()).then(|| PathBuf::from(image));
            return Ok(());
        }
        let Some(setting) = settings::find(table, &entry.key) else {
            if let Some(allowed) = unsupported::refused(table, &entry.key, entry.value.get_ref()) {
                let key = format!("{}.{}", table.name(), entry.key);
                return Err(self.refuse(key, entry.offset, entry.value, allowed));
            }
            warnings.extend(unsupported::key(
                self.path,
                line,
                table,
                &entry.key,
                entry.value.get_ref(),
            ));
            return Ok(());
        };
        let value = entry.value.get_ref();
        match (setting.set)(config, Raw::File(value)) {
            Ok(()) => Ok(()),
            // An empty string is Kata's way to leave a key unset; where it means something it was taken.
            Err(_) if value.as_str().is_some_and(str::is_empty) => Ok(()),
            Err(refusal) => Err(self.refuse(
                format!("{}.{}", table.name(), entry.key),
                entry.offset,
                entry.value,
                refusal.0,
            )),
        }
    }

    fn refuse(&self, key: String, offset: usize, value: &Spanned<DeValue<'_>>, allowed: String) -> ConfigError {
        let written = self.text.get(value.span()).unwrap_or_default();
        ConfigError::Value {
            path: self.path.to_owned(),
            line: line_at(self.text, offset),
            key,
            value: shortened(written),
            allowed,
        }
    }
}

/// At most 120 characters, on one line.
pub(crate) fn shortened(text: &str) -> String {
    const MOST: usize = 120;
    let line: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MOST)
        .collect();
    if text.chars().count() > MOST {
        format!("{line}…")
    } else {
        line
    }
}

fn line_at(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().get(..offset).unwrap_or(text.as_bytes());
    before.iter().filter(|byte| **byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuzz_configuration() {
        fuzz::run("configuration", |bytes| {
            let (mut config, mut said) = (Config::default(), Said::default());
            let text = String::from_utf8_lossy(bytes);
            let _ = merge(&mut config, &mut said, Path::new("/c.toml"), &text);
            for warning in &said.warnings {
                let _ = warning.to_string();
            }
        });
    }
}
