//! createContainer hooks. runc runs them in the container's namespaces before it changes the root, so that they see the host's files and,
//! at `root.path`, the container's with its mounts. Here they run on the host, in a [`View`] that shows the same.
//!
//! The guest does not have the rootfs before they have ended: whoever controls it could otherwise lead a hook, by a link, to files of the host. For the same
//! reason nothing that a hook has started outlives it.

use std::io;

use oci_spec::runtime::{Hook, LinuxNamespaceType, Spec};

use super::view::View;
use super::{HookError, HookState, run_one};
use crate::host::host_ns::HostNamespace;

pub use super::users::Users;
pub use super::view::{ContainerFiles, Shown, ShownMount};

/// The createContainer hooks of a specification.
#[must_use]
pub fn hooks_of(spec: &Spec) -> Vec<Hook> {
    let hooks = spec.hooks().as_ref();
    hooks
        .and_then(|hooks| hooks.create_container().clone())
        .unwrap_or_default()
}

/// The user namespace that a specification's createContainer hooks have, if they have one of their own; `shared`: its root is a directory that the guest is given.
///
/// # Errors
/// Why they cannot be run.
pub fn users_of(spec: &Spec, shared: bool) -> Result<Option<Users>, &'static str> {
    if hooks_of(spec).is_empty() {
        return Ok(None);
    }
    if !shared {
        return Err(
            "they run on the host, which does not have the container's root: it is a disk of the guest's, or a copy. Make them \
             startContainer hooks of a file of the image",
        );
    }
    spec.linux().as_ref().map_or(Ok(None), Users::of)
}

/// Whether a specification asks for a namespace of a type, be it a new one or another one's.
#[must_use]
pub fn has_namespace(spec: &Spec, kind: LinuxNamespaceType) -> bool {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    namespaces.into_iter().flatten().any(|one| one.typ() == kind)
}

/// Runs createContainer hooks, one after the other, until one fails.
///
/// # Errors
/// A hook failed, or has changed what is mounted in the root: that would not reach the guest.
pub async fn run(
    host: &HostNamespace,
    hooks: Vec<Hook>,
    files: ContainerFiles,
    state: &HookState,
) -> Result<(), HookError> {
    let root = files.root.clone();
    let failed = |source| HookError::View {
        root: root.clone(),
        source,
    };
    let namespace = host.clone();
    let view = blocking(move || View::new(&namespace, files)).await.map_err(failed)?;
    for hook in hooks {
        let path = hook.path().clone();
        run_one(host, hook, state, Some(view.clone())).await?;
        let looked_at = view.clone();
        if let Some(on) = blocking(move || looked_at.changed()).await.map_err(failed)? {
            return Err(HookError::Mounted { path, on });
        }
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(io::Error::other(error)))
}
