//! Reads from the bundle, for `start` and `delete`, which sandbox the container belongs to.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use lifecycle::id::{ContainerId, IdError, SandboxId};

/// The file of a bundle that has its server's address.
pub const ADDRESS: &str = "address";

/// The OCI type of a network namespace.
pub const NETWORK: &str = "network";

/// Largest config.json that is read, in bytes. containerd's own are a few ten thousand.
const CONFIG_MAX: u64 = 16 << 20;

/// The annotations by which the CRI implementations group containers: kind, then the sandbox's id.
const GROUPINGS: [(&str, &str); 2] = [
    ("io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"),
    ("io.kubernetes.cri-o.ContainerType", "io.kubernetes.cri-o.SandboxID"),
];

/// Why the bundle cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what they are")]
pub enum BundleError {
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot understand {}", path.display())]
    Json {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("annotation {annotation}")]
    Annotation {
        annotation: &'static str,
        #[source]
        source: IdError,
    },
    /// A container of a pod without the pod's id.
    #[error("the container belongs to a pod, but annotation {0} is missing")]
    NoSandbox(&'static str),
}

#[derive(Deserialize, Default)]
struct Config {
    #[serde(default)]
    annotations: Option<HashMap<String, String>>,
    #[serde(default)]
    linux: Option<Linux>,
}

#[derive(Deserialize)]
struct Linux {
    #[serde(default)]
    namespaces: Option<Vec<Namespace>>,
}

#[derive(Deserialize)]
struct Namespace {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    path: Option<PathBuf>,
}

/// Nothing is known of one that is described later.
fn read(bundle: &Path) -> Result<Config, BundleError> {
    let path = bundle.join("config.json");
    let mut text = Vec::new();
    let read = File::open(&path).and_then(|file| file.take(CONFIG_MAX).read_to_end(&mut text));
    match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound && is_awaited(bundle) => return Ok(Config::default()),
        read => read.map_err(|source| BundleError::Read {
            path: path.clone(),
            source,
        })?,
    };
    serde_json::from_slice(&text).map_err(|source| BundleError::Json { path, source })
}

/// The sandbox that the container of this bundle belongs to; its own where it is not part of a pod.
///
/// # Errors
/// config.json cannot be read, or its annotations are no ids.
pub fn sandbox_of(bundle: &Path, container: &ContainerId) -> Result<SandboxId, BundleError> {
    sandbox_from(&read(bundle)?.annotations.unwrap_or_default(), container)
}

/// The process of the host whose network namespace the container of this bundle is to have; none if it names none by a process, or is a pod's.
///
/// # Errors
/// config.json cannot be read.
pub fn network_of(bundle: &Path) -> Result<Option<u32>, BundleError> {
    let config = read(bundle)?;
    if config.annotations.is_some_and(|annotations| is_pods(&annotations)) {
        return Ok(None);
    }
    let namespaces = config.linux.and_then(|linux| linux.namespaces);
    let mut networks = namespaces.into_iter().flatten().filter(|one| one.kind == NETWORK);
    Ok(networks.find_map(|network| process_in(network.path.as_deref()?, NETWORK)))
}

/// Whether a container with these annotations belongs to a pod.
#[must_use]
pub fn is_pods(annotations: &HashMap<String, String>) -> bool {
    GROUPINGS.iter().any(|(kind, _)| annotations.contains_key(*kind))
}

/// The pid in the path of a process's namespace of this OCI type, `/proc/PID/ns/…`; none in a path of another form.
#[must_use]
pub fn process_in(namespace: &Path, kind: &str) -> Option<u32> {
    let (pid, file) = namespace.to_str()?.strip_prefix("/proc/")?.split_once("/ns/")?;
    let files = if kind == NETWORK { "net" } else { kind };
    pid.parse().ok().filter(|_| file == files)
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
    fn the_process_of_a_network_namespace_is_found() {
        let bundle = tempfile::tempdir().unwrap();
        let network = |path: &str| {
            let config = format!(
                r#"{{"linux": {{"namespaces": [{{"type": "mount"}}, {{"type": "network", "path": "{path}"}}]}}}}"#
            );
            std::fs::write(bundle.path().join("config.json"), config).unwrap();
            network_of(bundle.path()).unwrap()
        };
        assert_eq!(network("/proc/42/ns/net"), Some(42));
        for other in [
            "",
            "/var/run/netns/a",
            "/proc/self/ns/net",
            "/proc/42/ns/net/x",
            "/proc/42/fd/7",
        ] {
            assert_eq!(network(other), None, "{other}");
        }
        std::fs::write(bundle.path().join("config.json"), r#"{"linux": {"namespaces": null}}"#).unwrap();
        assert_eq!(network_of(bundle.path()).unwrap(), None);
    }

    #[test]
    fn a_sandbox_id_that_is_a_path_is_refused() {
        let kind = ("io.kubernetes.cri.container-type", "container");
        assert!(sandbox(&[kind, ("io.kubernetes.cri.sandbox-id", "../x")]).is_err());
        assert!(sandbox(&[kind]).unwrap_err().contains("sandbox-id"));
    }
}
