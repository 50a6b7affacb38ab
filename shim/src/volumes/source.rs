//! What the source of a bind mount is on the host.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{fstat, fstatfs};

use crate::host_ns::{HostNamespace, HostNamespaceError};

/// `TMPFS_MAGIC` and `HUGETLBFS_MAGIC` (linux/magic.h).
const TMPFS: u64 = 0x0102_1994;
const HUGETLBFS: u64 = 0x958_458f6;

/// What matters of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileSystem {
    /// In memory, with its size in bytes; 0 if it has no bound.
    Tmpfs { size: u64 },
    /// Of huge pages of so many bytes.
    HugePages { page: u64 },
    /// Any other.
    Other,
}

/// A directory or file of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) file_system: FileSystem,
    /// A mount is on it, and not only on something above it.
    pub(super) mount_point: bool,
    /// Permission bits, owner and group.
    pub(super) mode: u32,
    pub(super) owner: (u32, u32),
}

impl Source {
    /// Looks at it in the host's mount namespace.
    pub(super) fn examine(host: &HostNamespace, path: &Path) -> Result<Self, HostNamespaceError> {
        let file = host.open_tree(path, false)?;
        let device = |file: &dyn AsFd| fstat(file.as_fd()).map(|stat| stat.st_dev);
        let above = path.parent().map(|parent| host.open_tree(parent, false)).transpose()?;
        let open_error = |errno: rustix::io::Errno| HostNamespaceError::Open {
            path: path.to_owned(),
            source: errno.into(),
        };
        let above = above
            .as_ref()
            .map(|above| device(above))
            .transpose()
            .map_err(open_error)?;
        let stat = fstat(&file).map_err(open_error)?;
        let statfs = fstatfs(&file).map_err(open_error)?;
        let block = u64::try_from(statfs.f_bsize).unwrap_or_default();
        Ok(Self {
            file_system: match u64::try_from(statfs.f_type).unwrap_or_default() & 0xffff_ffff {
                TMPFS => FileSystem::Tmpfs {
                    size: statfs.f_blocks.saturating_mul(block),
                },
                HUGETLBFS => FileSystem::HugePages { page: block },
                _ => FileSystem::Other,
            },
            mount_point: above != Some(stat.st_dev),
            mode: stat.st_mode & 0o7777,
            owner: (stat.st_uid, stat.st_gid),
        })
    }
}
