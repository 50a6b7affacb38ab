//! The createContainer hooks of a container, and its rootfs, which the guest gets once they have ended.

use std::path::{Path, PathBuf};

use containerd_shim_protos::types::mount::Mount as RootfsMount;
use node::guest_spec::GuestSpecError;
use node::hooks::HookState;
use node::hooks::container::{self, ContainerFiles, Shown, ShownMount, Users};
use node::host_ns::HostNamespace;
use node::share::{Attachment, PreparedRootfs, SharedTree};
use oci_spec::runtime::{Hook, LinuxNamespaceType, Mount, Spec};

use super::error::{HostError, blocking, other};

#[derive(Debug, Clone)]
pub(super) struct CreateContainerHooks {
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
    pub(super) fn of(
        spec: &Spec,
        attachment: &Attachment,
        root: &Path,
        rootfs: &[RootfsMount],
        shared: bool,
    ) -> Result<Option<Self>, GuestSpecError> {
        let users = container::users_of(spec, shared).map_err(|reason| GuestSpecError::Field {
            field: "hooks.createContainer",
            reason: reason.to_owned(),
        })?;
        let hooks = container::hooks_of(spec);
        Ok((!hooks.is_empty()).then(|| Self {
            hooks,
            attachment: attachment.clone(),
            root: root.to_owned(),
            rootfs: rootfs.to_vec(),
            mounts: Vec::new(),
            own_network: container::has_namespace(spec, LinuxNamespaceType::Network),
            users,
            shared: true,
        }))
    }

    /// What is known once the binds have their places: the specification for the guest; `pause`: the guest has a root of its own.
    pub(super) fn placed(&mut self, guest: &Spec, pause: bool) {
        self.mounts = guest.mounts().clone().unwrap_or_default();
        self.shared = !pause;
    }

    /// Runs them, and then gives the guest the rootfs. `pid` is the process that they are told of.
    pub(super) async fn run(
        self,
        host: &HostNamespace,
        tree: &SharedTree,
        state: &HookState,
        pid: u32,
    ) -> Result<(), HostError> {
        let (preparing, own) = (tree.clone(), self.clone());
        let (prepared, mounts) = blocking(move || own.prepare(&preparing)).await?;
        let files = ContainerFiles {
            root: self.root,
            rootfs: prepared.shown,
            mounts,
            network_of: self.own_network.then_some(pid),
            users: self.users,
        };
        container::run(host, self.hooks, files, state).await.map_err(other)?;
        if !self.shared {
            return Ok(());
        }
        let (tree, attachment, rootfs) = (tree.clone(), self.attachment, prepared.tree);
        blocking(move || tree.attach_prepared_rootfs(&attachment, &rootfs).map_err(other)).await
    }

    fn prepare(&self, tree: &SharedTree) -> Result<(PreparedRootfs, Vec<ShownMount>), HostError> {
        let prepared = tree.prepare_rootfs(&self.attachment, &self.rootfs, &self.root);
        let shown = |mount: &Mount| {
            let recursive = has(mount, "rbind");
            let source = mount.source().as_deref().unwrap_or(Path::new(""));
            let tree = tree.clone_placed(&self.attachment, source, recursive).map_err(other)?;
            Ok(ShownMount {
                destination: mount.destination().clone(),
                shown: tree.map_or_else(|| of_the_guest(mount, source), Shown::Tree),
            })
        };
        let mounts: Result<Vec<_>, HostError> = self.mounts.iter().map(shown).collect();
        Ok((prepared.map_err(other)?, mounts?))
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
