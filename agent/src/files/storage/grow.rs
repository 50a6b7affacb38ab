//! The usage of a storage, and its growth while containers use it. The host has already enlarged the disk, and the file
//! system follows. The kernel does this itself (an ioctl); the guest needs no program for it.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use protocol::agent::StorageStatsResponse;

use super::disk::DiskNode;
use super::{Slot, StorageError, Storages, blocking, place, sys};
use crate::common::timeouts::scaled;
use crate::guest::uevents::Uevents;

/// How long the guest's kernel may take to see that a disk has grown.
const GROWS: Duration = Duration::from_secs(30);

/// Bytes of a sector in /sys/block, whatever the disk's own are (Documentation/ABI/stable/sysfs-block).
const SECTOR: u64 = 512;

impl Storages {
    /// How full a storage is.
    ///
    /// # Errors
    /// None of this name is mounted.
    pub(crate) async fn stats(&self, name: &str) -> Result<StorageStatsResponse, StorageError> {
        let slot = self.slot(name)?;
        let slot = slot.lock().await;
        mounted(&slot, name)?;
        usage(name).await
    }

    /// Makes a storage's file system as large as its disk, once that has `bytes` bytes or more.
    ///
    /// # Errors
    /// None of this name is mounted, its disk does not grow, or its file system cannot.
    pub(crate) async fn grow(&self, name: &str, bytes: u64) -> Result<StorageStatsResponse, StorageError> {
        let slot = self.slot(name)?;
        let slot = slot.lock().await;
        let (disk, fstype) = mounted(&slot, name)?;
        let fails = |reason: String| StorageError::Grow {
            name: name.to_owned(),
            reason,
        };
        let disk = disk.ok_or_else(|| fails("it is on no disk".to_owned()))?;
        let size = grown(&disk, bytes).await?;
        let root = place(name);
        let grow = move || {
            grow_mounted(&root, &fstype, size).map_err(|reason| StorageError::Grow {
                name: root.display().to_string(),
                reason,
            })
        };
        blocking(grow).await?;
        usage(name).await
    }

    pub(super) fn slot(&self, name: &str) -> Result<Arc<tokio::sync::Mutex<Slot>>, StorageError> {
        let slot = self.table().storages.get(name).map(Arc::clone);
        slot.ok_or_else(|| StorageError::NotMounted(name.to_owned()))
    }
}

fn mounted(slot: &Slot, name: &str) -> Result<(Option<DiskNode>, String), StorageError> {
    match &slot.mounted {
        Some(mounted) => Ok((mounted.disks.first().cloned(), mounted.storage.fstype.clone())),
        None => Err(StorageError::NotMounted(name.to_owned())),
    }
}

async fn usage(name: &str) -> Result<StorageStatsResponse, StorageError> {
    let root = place(name);
    // A disk of the network may hang.
    let asked = blocking(move || rustix::fs::statvfs(&root).map_err(StorageError::io("ask for the use of", &root)));
    let figures = asked.await?;
    let bytes = |blocks: u64| blocks.saturating_mul(figures.f_frsize);
    Ok(StorageStatsResponse {
        total_bytes: bytes(figures.f_blocks),
        available_bytes: bytes(figures.f_bavail),
        used_bytes: bytes(figures.f_blocks.saturating_sub(figures.f_bfree)),
        total_inodes: figures.f_files,
        available_inodes: figures.f_favail,
        used_inodes: figures.f_files.saturating_sub(figures.f_ffree),
        ..StorageStatsResponse::default()
    })
}

/// Waits until a disk has so many bytes. The answer is how many it has.
async fn grown(disk: &DiskNode, bytes: u64) -> Result<u64, StorageError> {
    // Before the first look, so that nothing is missed between the two.
    let events = Uevents::listen().map_err(StorageError::Events)?;
    let grown = async {
        loop {
            let size = size(disk)?;
            if size >= bytes {
                return Ok(size);
            }
            events.next().await.map_err(StorageError::Events)?;
        }
    };
    let waited = tokio::time::timeout(scaled(GROWS), grown).await;
    waited.unwrap_or_else(|_| {
        Err(StorageError::Grow {
            name: disk.path.display().to_string(),
            reason: format!(
                "the disk has not grown to {bytes} bytes within {} s",
                scaled(GROWS).as_secs_f64()
            ),
        })
    })
}

fn size(disk: &DiskNode) -> Result<u64, StorageError> {
    let path = format!("/sys/dev/block/{}:{}/size", disk.major, disk.minor);
    let text = fs::read_to_string(&path).map_err(StorageError::io("read", &path))?;
    let sectors: u64 = text.trim().parse().unwrap_or(0);
    Ok(sectors.saturating_mul(SECTOR))
}

fn grow_mounted(root: &Path, fstype: &str, bytes: u64) -> Result<(), String> {
    let file = File::open(root).map_err(|error| error.to_string())?;
    let block = rustix::fs::statvfs(root).map_err(|error| error.to_string())?.f_bsize;
    let blocks = bytes.checked_div(block).unwrap_or(0);
    let asked = match fstype {
        "ext2" | "ext3" | "ext4" => sys::grow_ext4(&file, blocks),
        "xfs" => sys::grow_xfs(&file, blocks),
        other => return Err(format!("{other} cannot grow while it is mounted; ext4 and xfs can")),
    };
    asked.map_err(|errno| match errno {
        Errno::EROFS => "it is mounted read-only".to_owned(),
        Errno::EOPNOTSUPP => format!("this {fstype} was made without what it needs to grow while it is mounted"),
        other => other.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_not_mounted_has_no_figures_and_does_not_grow() {
        let storages = Storages::default();
        assert!(matches!(
            storages.stats("disk-0").await,
            Err(StorageError::NotMounted(_))
        ));
        assert!(matches!(
            storages.grow("disk-0", 1).await,
            Err(StorageError::NotMounted(_))
        ));
    }

    #[test]
    fn a_file_system_that_cannot_grow_is_named_with_those_that_can() {
        let refused = grow_mounted(Path::new("/proc"), "erofs", 1 << 20).unwrap_err();
        assert!(refused.contains("erofs") && refused.contains("xfs"), "{refused}");
    }
}
