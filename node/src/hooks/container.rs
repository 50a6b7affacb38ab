//! createContainer hooks. runc runs them in the container's namespaces before it changes the root, so that they see the host's files and,
//! at `root.path`, the container's with its mounts. Here they run on the host, in a [`View`] that shows the same.
//!
//! The guest does not have the rootfs before they have ended: whoever controls it could otherwise lead a hook, by a link, to files of the host. For the same
//! reason nothing that a hook has started outlives it.

use std::io;
use std::path::{Path, PathBuf};

use containerd_shim_protos::types::mount::Mount as RootfsMount;
use oci_spec::runtime::{Hook, LinuxNamespaceType, Mount, Spec};

use super::users::Users;
use super::view::{ContainerFiles, Shown, ShownMount, View};
use super::{HookError, HookState, run_one};
use crate::files::share::{Attachment, PreparedRootfs, ShareError, SharedTree};
use crate::host::host_ns::HostNamespace;
use crate::spec::guest_spec::GuestSpecError;

/// Why createContainer hooks did not run, or the guest did not get the rootfs after them.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what they are")]
pub enum CreateContainerError {
    #[error(transparent)]
    Hook(#[from] HookError),
    #[error(transparent)]
    Share(#[from] ShareError),
    #[error("cannot give the createContainer hooks or the guest the rootfs")]
    Thread(#[from] tokio::task::JoinError),
}

/// The createContainer hooks of a container, and its rootfs, which the guest gets once they have ended.
#[derive(Debug, Clone)]
pub struct CreateContainerHooks {
    hooks: Vec<Hook>,
    attachment: Attachment,
    /// `root.path`, made absolute.
    root: PathBuf,
    rootfs: Vec<RootfsMount>,
    /// As the guest is to have them.
    mounts: Vec<Mount>,
    /// The container has a network namespace on the host.
    own_network: bool,
    users: Option<Users>,
    /// The guest is to have the rootfs.
    shared: bool,
}

impl CreateContainerHooks {
    /// Those of a specification, if it has any; `shared`: the guest gets the root from the host.
    ///
    /// # Errors
    /// They cannot be run.
    pub fn of(
        spec: &Spec,
        attachment: &Attachment,
        root: &Path,
        rootfs: &[RootfsMount],
        shared: bool,
    ) -> Result<Option<Self>, GuestSpecError> {
        let users = users_of(spec, shared).map_err(|reason| GuestSpecError::Field {
            field: "hooks.createContainer",
            reason: reason.to_owned(),
        })?;
        let hooks = hooks_of(spec);
        Ok((!hooks.is_empty()).then(|| Self {
            hooks,
            attachment: attachment.clone(),
            root: root.to_owned(),
            rootfs: rootfs.to_vec(),
            mounts: Vec::new(),
            own_network: has_namespace(spec, LinuxNamespaceType::Network),
            users,
            shared: true,
        }))
    }

    /// What is known once the binds have their places: the specification for the guest; `pause`: the guest has a root of its own.
    pub fn placed(&mut self, guest: &Spec, pause: bool) {
        self.mounts = guest.mounts().clone().unwrap_or_default();
        self.shared = !pause;
    }

    /// Runs them, and then gives the guest the rootfs. `pid` is the process that they are told of.
    ///
    /// # Errors
    /// A hook failed, or the rootfs cannot be had.
    pub async fn run(
        self,
        host: &HostNamespace,
        tree: &SharedTree,
        state: &HookState,
        pid: u32,
    ) -> Result<(), CreateContainerError> {
        let (preparing, own) = (tree.clone(), self.clone());
        let (prepared, mounts) = tokio::task::spawn_blocking(move || own.prepare(&preparing)).await??;
        let files = ContainerFiles {
            root: self.root,
            rootfs: prepared.shown,
            mounts,
            network_of: self.own_network.then_some(pid),
            users: self.users,
        };
        run(host, self.hooks, files, state).await?;
        if !self.shared {
            return Ok(());
        }
        let (tree, attachment, rootfs) = (tree.clone(), self.attachment, prepared.tree);
        Ok(tokio::task::spawn_blocking(move || tree.attach_prepared_rootfs(&attachment, &rootfs)).await??)
    }

    fn prepare(&self, tree: &SharedTree) -> Result<(PreparedRootfs, Vec<ShownMount>), ShareError> {
        let prepared = tree.prepare_rootfs(&self.attachment, &self.rootfs, &self.root);
        let shown = |mount: &Mount| {
            let recursive = has(mount, "rbind");
            let source = mount.source().as_deref().unwrap_or(Path::new(""));
            let tree = tree.clone_placed(&self.attachment, source, recursive)?;
            Ok(ShownMount {
                destination: mount.destination().clone(),
                shown: tree.map_or_else(|| of_the_guest(mount, source), Shown::Tree),
            })
        };
        let mounts: Result<Vec<_>, ShareError> = self.mounts.iter().map(shown).collect();
        Ok((prepared?, mounts?))
    }
}

fn has(mount: &Mount, name: &str) -> bool {
    mount.options().iter().flatten().any(|option| option == name)
}

/// What a mount is that the host does not have.
fn of_the_guest(mount: &Mount, source: &Path) -> Shown {
    let is_bind = mount.typ().as_deref() == Some("bind") || has(mount, "bind") || has(mount, "rbind");
    // By their names in the guest, which the host's kernel has, too.
    let kernels = ["/dev", "/proc", "/sys"]
        .iter()
        .any(|directory| source.starts_with(directory));
    let volumes = Path::new(protocol::STORAGE_DIRECTORY);
    if !is_bind || source.parent() == Some(volumes) || kernels && source.is_dir() {
        Shown::Directory
    } else if source.starts_with(volumes) {
        Shown::Either
    } else {
        // Devices, and sockets of the host that are relayed.
        Shown::File
    }
}

fn hooks_of(spec: &Spec) -> Vec<Hook> {
    let hooks = spec.hooks().as_ref();
    hooks
        .and_then(|hooks| hooks.create_container().clone())
        .unwrap_or_default()
}

/// The user namespace that a specification's createContainer hooks have, if they have one of their own; `shared`: its root is a directory that the guest is given. The error
/// is why they cannot be run.
fn users_of(spec: &Spec, shared: bool) -> Result<Option<Users>, &'static str> {
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
fn has_namespace(spec: &Spec, kind: LinuxNamespaceType) -> bool {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    namespaces.into_iter().flatten().any(|one| one.typ() == kind)
}

/// Runs createContainer hooks, one after the other, until one fails, or has changed what is mounted in the root: that would not reach
/// the guest.
async fn run(
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
