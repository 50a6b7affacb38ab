//! Why something cannot be shared with the guest.

use std::io;
use std::path::PathBuf;

use crate::host::host_ns::HostNamespaceError;
use crate::host::path_error::PathError;
use lifecycle::id::ContainerId;

/// Why something cannot be shared with the guest.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// A file or mount operation failed.
    #[error(transparent)]
    Io(#[from] PathError),
    /// The source of a bind mount cannot be had.
    #[error("cannot bind-mount {} on {}", bind.display(), destination.display())]
    Bind {
        /// Path on the host.
        bind: PathBuf,
        /// Path in the container.
        destination: PathBuf,
        /// The error that caused it.
        #[source]
        source: Box<HostNamespaceError>,
    },
    /// The owners of a source's files cannot be mapped.
    #[error("cannot map the owners of {} on {} (uidMappings, gidMappings)", bind.display(), destination.display())]
    IdMap {
        /// Path on the host.
        bind: PathBuf,
        /// Path in the container.
        destination: PathBuf,
        /// The operating system's error.
        #[source]
        source: io::Error,
    },
    /// The source of a bind mount leads to where the host's kernel shows itself.
    #[error(
        "cannot bind-mount {} on {}: it leads into the host's /proc or /sys; a source below /proc or /sys by its own name is \
         the guest's", bind.display(), destination.display()
    )]
    Kernels {
        /// Path on the host.
        bind: PathBuf,
        /// Path in the container.
        destination: PathBuf,
    },
    /// One of the mounts that containerd sent for the rootfs.
    #[error("cannot mount the rootfs: {kind} from {from:?} with options {options:?}")]
    Rootfs {
        /// The mount's type.
        kind: String,
        /// The mount's source.
        from: String,
        /// The mount's options.
        options: Vec<String>,
        /// The operating system's error.
        #[source]
        source: io::Error,
    },
    /// Whoever asked for it has given up.
    #[error("container {0} has been detached meanwhile")]
    Detached(ContainerId),
    /// The directory that is the rootfs cannot be had.
    #[error("cannot use {} as the rootfs", root.display())]
    RootfsSource {
        /// The directory on the host.
        root: PathBuf,
        /// The error that caused it.
        #[source]
        source: Box<HostNamespaceError>,
    },
}
