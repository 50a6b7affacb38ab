//! A block device or a raw image of the host that becomes a disk of the guest.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hypervisor::{Disk, DiskKind, Sectors};
use rustix::fs::FileType;

use super::error::VolumeError;
use super::name::name;
use crate::host::host_ns::HostNamespace;
use crate::host::path_error::PathError;

/// What makes two paths the same disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiskKey {
    /// A block device, by its device number.
    BlockDevice(u64),
    /// The file system that it is on, and its inode.
    File(u64, u64),
}

/// A disk that has been found and not been opened.
#[derive(Debug, Clone)]
pub struct HostDisk {
    /// What it is, whatever it is called.
    pub key: DiskKey,
    /// The path that messages name.
    pub path: PathBuf,
    /// The guest is not to write to it.
    pub read_only: bool,
    /// The file in the host's mount namespace.
    handle: Arc<OwnedFd>,
}

impl HostDisk {
    /// Finds it, with symbolic links followed.
    ///
    /// # Errors
    /// It is not there, or is no disk.
    pub fn locate(host: &HostNamespace, path: &Path, read_only: bool) -> Result<Self, VolumeError> {
        let handle = host.open_tree(path, false).map_err(|source| VolumeError::Missing {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        Self::of(handle, path, read_only)
    }

    /// The disk that a descriptor stands for (open(2), `O_PATH` is enough).
    ///
    /// # Errors
    /// It is no disk.
    pub fn of(handle: OwnedFd, path: &Path, read_only: bool) -> Result<Self, VolumeError> {
        let stat = rustix::fs::fstat(&handle).map_err(|errno| PathError::new("examine", path, errno))?;
        let key = match FileType::from_raw_mode(stat.st_mode) {
            FileType::BlockDevice => DiskKey::BlockDevice(stat.st_rdev),
            FileType::RegularFile => DiskKey::File(stat.st_dev, stat.st_ino),
            _ => return Err(VolumeError::NoDisk { path: path.to_owned() }),
        };
        Ok(Self {
            key,
            path: path.to_owned(),
            read_only,
            handle: Arc::new(handle),
        })
    }

    /// Its name among the storages of the guest.
    pub(super) fn storage_name(&self) -> String {
        let identity = match self.key {
            DiskKey::BlockDevice(number) => format!("b{number}"),
            DiskKey::File(device, inode) => format!("f{device}.{inode}"),
        };
        name("disk", identity.as_bytes())
    }

    /// How many bytes it has.
    ///
    /// # Errors
    /// It cannot be asked.
    pub fn size(&self) -> Result<u64, VolumeError> {
        let failed = |source| VolumeError::from(PathError::new("measure", &self.path, source));
        match self.key {
            DiskKey::File(..) => {
                let stat = rustix::fs::fstat(&self.handle).map_err(|errno| failed(errno.into()))?;
                Ok(u64::try_from(stat.st_size).unwrap_or(0))
            }
            DiskKey::BlockDevice(_) => {
                let (mut file, _) = self.open_as(false, 0).map_err(failed)?;
                file.seek(SeekFrom::End(0)).map_err(failed)
            }
        }
    }

    /// Opens it as QEMU is to have it: past the host's page cache where the file system can do that, and a block device that
    /// is written to for us alone, as mount(2) has it. Blocks.
    ///
    /// # Errors
    /// It cannot be opened, is in use, or is empty.
    pub fn open(&self) -> Result<Disk, VolumeError> {
        let block = matches!(self.key, DiskKey::BlockDevice(_));
        let exclusive = if block { libc::O_EXCL } else { 0 };
        let mut read_only = self.read_only;
        let mut opened = match read_only {
            true => self.open_as(false, 0),
            false => self.open_as(true, exclusive),
        };
        // A disk that cannot be written to is one in the guest as well.
        if let Err(error) = &opened
            && block
            && !read_only
            && matches!(error.raw_os_error(), Some(libc::EROFS | libc::EACCES | libc::EPERM))
        {
            read_only = true;
            opened = self.open_as(false, 0);
        }
        let (mut file, direct) = opened.map_err(|source| match source.raw_os_error() {
            Some(libc::EBUSY) => VolumeError::InUse {
                path: self.path.clone(),
            },
            Some(libc::ENOMEDIUM | libc::ENXIO) => VolumeError::Empty {
                path: self.path.clone(),
            },
            _ => VolumeError::from(PathError::new("open", &self.path, source)),
        })?;
        let size = file
            .seek(SeekFrom::End(0))
            .map_err(|source| PathError::new("measure", &self.path, source))?;
        if size == 0 {
            return Err(VolumeError::Empty {
                path: self.path.clone(),
            });
        }
        let sectors = match block {
            true => Some(sectors(&file).map_err(|errno| PathError::new("measure the sectors of", &self.path, errno))?),
            false => None,
        };
        Ok(Disk {
            file: file.into(),
            kind: if block { DiskKind::BlockDevice } else { DiskKind::File },
            read_only,
            direct,
            sectors,
        })
    }

    /// The file, and whether it is opened past the page cache.
    fn open_as(&self, write: bool, flags: i32) -> io::Result<(File, bool)> {
        // The path may mean another file by now, and is one of another mount namespace; the handle is the file itself.
        let path = format!("/proc/self/fd/{}", self.handle.as_raw_fd());
        let open = |flags: i32| {
            OpenOptions::new()
                .read(true)
                .write(write)
                .custom_flags(flags)
                .open(&path)
        };
        match open(flags | libc::O_DIRECT) {
            Ok(file) => Ok((file, true)),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok((open(flags)?, false)),
            Err(error) => Err(error),
        }
    }
}
/// A partition table and a file system are laid out in sectors: the guest must see those that the host sees.
fn sectors(device: &File) -> rustix::io::Result<Sectors> {
    Ok(Sectors {
        logical: rustix::fs::ioctl_blksszget(device)?,
        physical: rustix::fs::ioctl_blkpbszget(device)?,
    })
}
