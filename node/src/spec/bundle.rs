//! Reads from the bundle, for `start` and `delete`, which sandbox the container belongs to.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use lifecycle::id::{ContainerId, IdError, SandboxId};

/// Largest config.json that is read, in bytes. containerd's own are a few ten thousand.
const CONFIG_MAX: u64 = 16 << 20;

/// The annotations by which the CRI implementations group containers: kind, then the sandbox's id.
const GROUPINGS: [(&str, &str); 2] = [
    ("io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"),
    ("io.kubernetes.cri-o.ContainerType", "io.kubernetes.cri-o.SandboxID"),
];

/// Why the bundle cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// config.json cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file of the bundle.
        path: PathBuf,
        /// The operating system's error.
        #[source]
        source: io::Error,
    },
    /// config.json is no JSON.
    #[error("cannot understand {}", path.display())]
    Json {
        /// The file of the bundle.
        path: PathBuf,
        /// The error that caused it.
        #[source]
        source: serde_json::Error,
    },
    /// The annotation holds no id.
    #[error("annotation {annotation}")]
    Annotation {
        /// The annotation's key.
        annotation: &'static str,
        /// The error that caused it.
        #[source]
        source: IdError,
    },
    /// A container of a pod without the pod's id.
    #[error("the container belongs to a pod, but annotation {0} is missing")]
    NoSandbox(&'static str),
}

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    annotations: Option<HashMap<String, String>>,
}

/// The sandbox that the container of this bundle belongs to; its own where it is not part of a pod.
///
/// # Errors
/// config.json cannot be read, or its annotations are no ids.
pub fn sandbox_of(bundle: &Path, container: &ContainerId) -> Result<SandboxId, BundleError> {
    let path = bundle.join("config.json");
    let mut text = Vec::new();
    let read = File::open(&path).and_then(|file| file.take(CONFIG_MAX).read_to_end(&mut text));
    match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound && is_awaited(bundle) => {
            return Ok(SandboxId::from(container));
        }
        read => read.map_err(|source| BundleError::Read {
            path: path.clone(),
            source,
        })?,
    };
    let config: Config = serde_json::from_slice(&text).map_err(|source| BundleError::Json { path, source })?;
    sandbox_from(&config.annotations.unwrap_or_default(), container)
}

/// Whether containerd made this bundle for a sandbox that it describes later, by CreateSandbox: without a specification, but
/// with the link to its working directory that each of its bundles has.
#[must_use]
pub fn is_awaited(bundle: &Path) -> bool {
    !bundle.join("config.json").exists() && bundle.join("work").is_symlink()
}

/// Whether a container with these annotations is the first of a pod, which only keeps the pod's namespaces.
#[must_use]
pub fn is_pod_sandbox(annotations: &HashMap<String, String>) -> bool {
    GROUPINGS
        .iter()
        .any(|(kind, _)| annotations.get(*kind).is_some_and(|kind| kind == "sandbox"))
}

fn sandbox_from(annotations: &HashMap<String, String>, container: &ContainerId) -> Result<SandboxId, BundleError> {
    for (kind, id) in GROUPINGS {
        if annotations.get(kind).is_some_and(|kind| kind == "container") {
            let sandbox = annotations.get(id).ok_or(BundleError::NoSandbox(id))?;
            return SandboxId::new(sandbox).map_err(|source| BundleError::Annotation { annotation: id, source });
        }
    }
    Ok(SandboxId::from(container))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(annotations: &[(&str, &str)]) -> Result<String, String> {
        let annotations = annotations
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        let container = ContainerId::new("me").unwrap();
        sandbox_from(&annotations, &container)
            .map(|id| id.to_string())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_container_without_a_pod_is_its_own_sandbox() {
        assert_eq!(sandbox(&[]), Ok("me".to_owned()));
    }

    #[test]
    fn a_bundle_without_a_specification_is_awaited_if_containerd_made_it() {
        let bundle = tempfile::tempdir().unwrap();
        let container = ContainerId::new("me").unwrap();
        let error = sandbox_of(bundle.path(), &container).unwrap_err();
        assert!(error.to_string().contains("config.json"));
        std::os::unix::fs::symlink("/work", bundle.path().join("work")).unwrap();
        assert_eq!(sandbox_of(bundle.path(), &container).unwrap().as_str(), "me");
        std::fs::write(bundle.path().join("config.json"), "{}").unwrap();
        assert!(!is_awaited(bundle.path()));
    }

    #[test]
    fn a_pods_first_container_is_the_sandbox() {
        let annotations = [
            ("io.kubernetes.cri.container-type", "sandbox"),
            ("io.kubernetes.cri.sandbox-id", "me"),
        ];
        assert_eq!(sandbox(&annotations), Ok("me".to_owned()));
    }

    #[test]
    fn a_container_of_a_pod_names_its_sandbox() {
        let annotations = [
            ("io.kubernetes.cri.container-type", "container"),
            ("io.kubernetes.cri.sandbox-id", "pod"),
        ];
        assert_eq!(sandbox(&annotations), Ok("pod".to_owned()));
        let annotations = [
            ("io.kubernetes.cri-o.ContainerType", "container"),
            ("io.kubernetes.cri-o.SandboxID", "p"),
        ];
        assert_eq!(sandbox(&annotations), Ok("p".to_owned()));
    }

    #[test]
    fn a_sandbox_id_that_is_a_path_is_refused() {
        let kind = ("io.kubernetes.cri.container-type", "container");
        assert!(sandbox(&[kind, ("io.kubernetes.cri.sandbox-id", "../x")]).is_err());
        assert!(sandbox(&[kind]).unwrap_err().contains("sandbox-id"));
    }
}
