//! Why something cannot be shared with the guest.

use std::io;
use std::path::PathBuf;

use crate::host::host_ns::HostNamespaceError;
use crate::host::path_error::PathError;
use lifecycle::id::ContainerId;

/// Why something cannot be shared with the guest.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what they are")]
pub enum ShareError {
    #[error(transparent)]
    Io(#[from] PathError),
    /// The source of a bind mount cannot be had.
    #[error("cannot bind-mount {} on {}", bind.display(), destination.display())]
    Bind {
        bind: PathBuf,
        destination: PathBuf,
        #[source]
        source: Box<HostNamespaceError>,
    },
    /// The owners of a source's files cannot be mapped.
    #[error("cannot map the owners of {} on {} (uidMappings, gidMappings)", bind.display(), destination.display())]
    IdMap {
        bind: PathBuf,
        destination: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The source of a bind mount leads to where the host's kernel shows itself.
    #[error(
        "cannot bind-mount {} on {}: it leads into the host's /proc or /sys; a source below /proc or /sys by its own name is \
         the guest's", bind.display(), destination.display()
    )]
    Kernels { bind: PathBuf, destination: PathBuf },
    /// One of the mounts that containerd sent for the rootfs.
    #[error("cannot mount the rootfs: {kind} from {from:?} with options {options:?}")]
    Rootfs {
        kind: String,
        from: String,
        options: Vec<String>,
        #[source]
        source: io::Error,
    },
    /// Whoever asked for it has given up.
    #[error("container {0} has been detached meanwhile")]
    Detached(ContainerId),
    /// The directory that is the rootfs cannot be had.
    #[error("cannot use {} as the rootfs", root.display())]
    RootfsSource {
        root: PathBuf,
        #[source]
        source: Box<HostNamespaceError>,
    },
}
