//! The sandboxes of this host, from the files of their shims below the run directory. Reads files; asks no shim.
//!
//! The shim defines the format of `sandbox.json` (docs/architecture.md, "Files of a sandbox"). It is read leniently: a
//! missing field is empty, so that a sandbox that is only partly created or removed is shown as far as possible.

mod process;
mod shim;

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

pub(crate) use process::Process;
pub(crate) use shim::{Shim, ShimError};

/// Where all sandboxes have their directories.
pub(crate) const ROOT: &str = "/run/tatami";

/// Where, among them, the VMs are that no sandbox has yet.
pub(crate) const POOL: &str = "pool";

/// Largest `sandbox.json` that is read, in bytes.
const STATE_MAX: u64 = 1 << 20;

/// Most sandboxes that are read.
const MOST: usize = 4096;

/// What a shim has written down of its sandbox.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct State {
    pub(crate) namespace: String,
    pub(crate) id: String,
    pub(crate) shim: Option<Process>,
    /// QEMU and its helpers.
    pub(crate) vm: Vec<Process>,
    /// The sandbox's cgroup directories on the host.
    pub(crate) cgroups: Vec<PathBuf>,
    /// What connects the guest: `vhost` or `vhost-user`. None until it runs.
    pub(crate) vsock: Option<String>,
}

#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) name: String,
    pub(crate) directory: PathBuf,
    /// What is written in it, or why that cannot be read.
    pub(crate) state: Result<State, String>,
}

impl Found {
    /// The sandbox's id; the directory's name where it is not known.
    pub(crate) fn id(&self) -> &str {
        match &self.state {
            Ok(state) if !state.id.is_empty() => &state.id,
            _ => &self.name,
        }
    }

    /// The shim's process, if it is the one that was written down.
    pub(crate) fn shim(&self) -> Result<Process, String> {
        let state = self.state.as_ref().map_err(Clone::clone)?;
        let shim = state.shim.ok_or("sandbox.json names no shim")?;
        if shim.lives() {
            Ok(shim)
        } else {
            Err(format!("the shim (process {}) is dead", shim.pid))
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.join("shim.sock")
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum FindError {
    #[error("cannot read {}{}", path.display(), root_hint(source))]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("no sandbox {wanted:?}; there {known}")]
    None {
        wanted: String,
        /// What there is, as the end of the sentence.
        known: String,
    },
    #[error("{wanted:?} stands for several sandboxes: {known}")]
    Several { wanted: String, known: String },
}

fn root_hint(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::PermissionDenied {
        " (only root can)"
    } else {
        ""
    }
}

/// All of them, by name. None where there is no run directory.
pub(crate) fn all(root: &Path) -> Result<Vec<Found>, FindError> {
    let failed = |source| FindError::Read {
        path: root.to_owned(),
        source,
    };
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut found = Vec::new();
    for entry in entries.take(MOST) {
        let entry = entry.map_err(failed)?;
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) || entry.file_name() == POOL {
            continue;
        }
        let directory = entry.path();
        found.push(Found {
            name: entry.file_name().to_string_lossy().into_owned(),
            state: read_state(&directory),
            directory,
        });
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

fn read_state(directory: &Path) -> Result<State, String> {
    let path = directory.join("sandbox.json");
    let mut text = String::new();
    let read = File::open(&path).and_then(|file| file.take(STATE_MAX).read_to_string(&mut text));
    read.map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
    serde_json::from_str(&text).map_err(|error| format!("{} cannot be understood: {error}", path.display()))
}

/// The one that is meant: its id, or the only one whose id or directory begins so.
pub(crate) fn named(root: &Path, wanted: &str) -> Result<Found, FindError> {
    let mut found = all(root)?;
    let known = |found: &[Found]| found.iter().map(Found::id).collect::<Vec<_>>().join(", ");
    if let Some(exact) = found.iter().position(|one| one.id() == wanted || one.name == wanted) {
        return Ok(found.swap_remove(exact));
    }
    let begins = |one: &Found| !wanted.is_empty() && (one.id().starts_with(wanted) || one.name.starts_with(wanted));
    let (mut matching, others): (Vec<_>, Vec<_>) = found.into_iter().partition(begins);
    match matching.len() {
        1 => Ok(matching.swap_remove(0)),
        0 => Err(FindError::None {
            wanted: wanted.to_owned(),
            known: if others.is_empty() {
                "is none".to_owned()
            } else {
                format!("is {}", known(&others))
            },
        }),
        _ => Err(FindError::Several {
            wanted: wanted.to_owned(),
            known: known(&matching),
        }),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A sandbox's directory as a shim makes it.
    pub(crate) fn make(root: &Path, name: &str, state: &str) -> PathBuf {
        let directory = root.join(name);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("sandbox.json"), state).unwrap();
        directory
    }

    #[test]
    fn a_sandbox_is_found_by_its_id_or_a_beginning_that_only_it_has() {
        let root = tempfile::tempdir().unwrap();
        make(root.path(), "web-1-aa", r#"{"id":"web-1","namespace":"k8s.io"}"#);
        make(root.path(), "web-2-bb", r#"{"id":"web-2"}"#);
        make(root.path(), "web-cc", r#"{"id":"web"}"#);
        fs::write(root.path().join("web-1-aa.lock"), "").unwrap();
        let id = |wanted| named(root.path(), wanted).map(|found| found.id().to_owned());
        assert_eq!(id("web").unwrap(), "web");
        assert_eq!(id("web-1").unwrap(), "web-1");
        assert_eq!(id("web-2-b").unwrap(), "web-2");
        assert!(id("web-").unwrap_err().to_string().contains("web-1, web-2"));
        let unknown = id("db").unwrap_err().to_string();
        assert!(unknown.contains("web-1") && unknown.contains("web-2"), "{unknown}");
        assert!(id("").is_err());
        assert_eq!(all(root.path()).unwrap().len(), 3);
    }

    #[test]
    fn half_a_sandbox_is_shown_with_what_is_wrong_with_it() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("empty")).unwrap();
        make(root.path(), "rubbish", "{");
        make(
            root.path(),
            "dead",
            r#"{"id":"d","shim":{"pid":2147483646,"start_time":1}}"#,
        );
        let found = all(root.path()).unwrap();
        let error = |index: usize| found[index].shim().unwrap_err();
        assert!(error(0).contains("is dead"), "{}", error(0));
        assert!(error(1).contains("No such file"), "{}", error(1));
        assert!(error(2).contains("cannot be understood"), "{}", error(2));
        assert_eq!(found[2].id(), "rubbish");
    }

    #[test]
    fn without_a_run_directory_there_are_no_sandboxes() {
        assert!(all(Path::new("/nonexistent/tatami")).unwrap().is_empty());
        let error = named(Path::new("/nonexistent/tatami"), "x").unwrap_err().to_string();
        assert_eq!(error, "no sandbox \"x\"; there is none");
    }
}
