//! Finds out what the source of a bind mount is on the host.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{fstat, fstatfs};

use crate::host::host_ns::{HostNamespace, HostNamespaceError};
use crate::host::mountinfo;

/// `TMPFS_MAGIC` and `HUGETLBFS_MAGIC` (linux/magic.h).
const TMPFS: u64 = 0x0102_1994;
const HUGETLBFS: u64 = 0x958_458f6;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileSystem {
    /// In memory, with its size in bytes; 0 if it has no bound.
    Tmpfs {
        size: u64,
    },
    /// Of huge pages of so many bytes.
    HugePages {
        page: u64,
    },
    Other,
}

/// The directory in the path of every emptyDir (kubelet's plug-in name with its slash escaped).
pub(super) const EMPTY_DIR: &str = "kubernetes.io~empty-dir";

/// A part of an emptyDir in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EmptyDir {
    /// Where the kubelet has mounted it.
    pub(super) root: PathBuf,
    /// The part, without leading slash; empty for all of it.
    pub(super) part: PathBuf,
}

/// A directory or file of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) file_system: FileSystem,
    /// Permission bits, owner and group.
    pub(super) mode: u32,
    pub(super) owner: (u32, u32),
}

impl Source {
    /// Looks at it in the host's mount namespace.
    pub(super) fn examine(host: &HostNamespace, path: &Path) -> Result<Self, HostNamespaceError> {
        let file = host.open_tree(path, false)?;
        let open_error = |errno: rustix::io::Errno| HostNamespaceError::Open {
            path: path.to_owned(),
            source: errno.into(),
        };
        let stat = fstat(file.as_fd()).map_err(open_error)?;
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
            mode: stat.st_mode & 0o7777,
            owner: (stat.st_uid, stat.st_gid),
        })
    }
}

/// Whether something is mounted on a path, of which it shows all.
pub(super) fn is_mount(host: &HostNamespace, path: &Path) -> Result<bool, HostNamespaceError> {
    let source = host.find_tree(path, false)?;
    let mounts = mounts(host)?;
    let own = mounts.iter().find(|line| line.id == source.mount);
    Ok(own.is_some_and(|own| own.mountpoint == source.path && own.root == Path::new("/")))
}

fn mounts(host: &HostNamespace) -> Result<Vec<mountinfo::MountLine>, HostNamespaceError> {
    host.run(mountinfo::read).and_then(|mounts| {
        mounts.map_err(|source: io::Error| HostNamespaceError::Open {
            path: "/proc/self/mountinfo".into(),
            source,
        })
    })
}

impl EmptyDir {
    /// The emptyDir that a path of the host's is in, by whatever mount: for a subPath the kubelet makes one elsewhere. None if it
    /// is in none.
    pub(super) fn find(host: &HostNamespace, path: &Path) -> Result<Option<Self>, HostNamespaceError> {
        let source = host.find_tree(path, false)?;
        let mounts = mounts(host)?;
        let own = mounts.iter().find(|line| line.id == source.mount);
        Ok(own.and_then(|own| {
            let part = own.root.join(source.path.strip_prefix(&own.mountpoint).ok()?);
            let root = mounts.iter().find(|line| {
                let above = line.mountpoint.parent().and_then(Path::file_name);
                line.device == own.device && line.root == Path::new("/") && above == Some(EMPTY_DIR.as_ref())
            })?;
            Some(Self {
                root: root.mountpoint.clone(),
                part: part.components().skip(1).collect(),
            })
        }))
    }
}
