//! The errors of volumes and devices.

use std::path::PathBuf;

use crate::host::host_ns::HostNamespaceError;
use crate::host::path_error::PathError;

/// Why a volume or a device cannot be given to the guest.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what they are")]
pub enum VolumeError {
    /// A mount that cannot be what it says.
    #[error("mount on {}: {reason}", destination.display())]
    Mount {
        destination: PathBuf,
        /// The reason, as the message gives it.
        reason: String,
    },
    #[error("the direct-assigned volume {}: {} {reason}", volume.display(), file.display())]
    Direct {
        volume: PathBuf,
        file: PathBuf,
        reason: String,
    },
    #[error("device {}: {reason}", path.display())]
    Device { path: PathBuf, reason: String },
    /// What would have to be copied into the guest together.
    #[error(
        "{key}, and the files of all mounts are {bytes} bytes, of which {most} are copied into the guest: put some on a disk"
    )]
    Copies {
        /// The key for which they are copied.
        key: &'static str,
        bytes: usize,
        most: usize,
    },
    #[error("cannot use {from:?} as the rootfs: {reason}")]
    Rootfs {
        from: String,
        /// The reason, as the message gives it.
        reason: String,
    },
    /// The device or image is not there.
    #[error("cannot find {} for the guest", path.display())]
    Missing {
        path: PathBuf,
        #[source]
        source: Box<HostNamespaceError>,
    },
    /// Neither a block device nor a regular file.
    #[error("{} is neither a block device nor a regular file: it cannot be a disk of the guest", path.display())]
    NoDisk { path: PathBuf },
    /// A drive without a medium, a loop device without a file.
    #[error("{} is empty: it has no medium, or no file", path.display())]
    Empty { path: PathBuf },
    #[error(
        "{} is in use on the host (mounted, part of a volume group, or given to another sandbox): the guest cannot write to \
         it safely; free it, or ask for it read-only",
        path.display()
    )]
    InUse { path: PathBuf },
    /// An operation on a file of the host failed.
    #[error(transparent)]
    Io(#[from] PathError),
}
