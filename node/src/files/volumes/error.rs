//! The errors of volumes and devices.

use std::path::PathBuf;

use crate::host::host_ns::HostNamespaceError;
use crate::host::path_error::PathError;

/// Why a volume or a device cannot be given to the guest.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// A mount that cannot be what it says.
    #[error("mount on {}: {reason}", destination.display())]
    Mount {
        /// Where in the container.
        destination: PathBuf,
        /// The reason, as the message gives it.
        reason: String,
    },
    /// What describes a direct-assigned volume.
    #[error("the direct-assigned volume {}: {} {reason}", volume.display(), file.display())]
    Direct {
        /// The path of the direct-assigned volume.
        volume: PathBuf,
        /// The file that describes it.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A device of the specification.
    #[error("device {}: {reason}", path.display())]
    Device {
        /// Its path in the container.
        path: PathBuf,
        /// Why it cannot be had.
        reason: String,
    },
    /// What would have to be copied into the guest together.
    #[error(
        "{key}, and the files of all mounts are {bytes} bytes, of which {most} are copied into the guest: put some on a disk"
    )]
    Copies {
        /// The key for which they are copied.
        key: &'static str,
        /// How much they are.
        bytes: usize,
        /// The most that is copied.
        most: usize,
    },
    /// The rootfs.
    #[error("cannot use {from:?} as the rootfs: {reason}")]
    Rootfs {
        /// The rootfs's device or image.
        from: String,
        /// The reason, as the message gives it.
        reason: String,
    },
    /// The device or image is not there.
    #[error("cannot find {} for the guest", path.display())]
    Missing {
        /// The path on the host.
        path: PathBuf,
        /// The error that caused it.
        #[source]
        source: Box<HostNamespaceError>,
    },
    /// Neither a block device nor a regular file.
    #[error("{} is neither a block device nor a regular file: it cannot be a disk of the guest", path.display())]
    NoDisk {
        /// The path on the host.
        path: PathBuf,
    },
    /// A drive without a medium, a loop device without a file.
    #[error("{} is empty: it has no medium, or no file", path.display())]
    Empty {
        /// The path on the host.
        path: PathBuf,
    },
    /// Somebody on the host uses it.
    #[error(
        "{} is in use on the host (mounted, part of a volume group, or given to another sandbox): the guest cannot write to \
         it safely; free it, or ask for it read-only",
        path.display()
    )]
    InUse {
        /// The path on the host.
        path: PathBuf,
    },
    /// An operation on a file of the host failed.
    #[error(transparent)]
    Io(#[from] PathError),
}
