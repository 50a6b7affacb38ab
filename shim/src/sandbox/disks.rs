//! The disks of a sandbox: each is plugged in once, however many containers use it, and unplugged with its last user.
//!
//! ```text
//!  (absent) ── first user ──► plugged ── last user goes ──► (absent)
//!                                │ the guest does not release it
//!                                └──────────────────────────► held, until the VM's end or the next release
//! ```
//! The table's lock is held only for a lookup. A disk has its own lock while it is plugged in or unplugged. A user is
//! recorded before the work begins, and the work is a separate task. So the undoing of a cancelled creation knows what it
//! has to release.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guest::vm::RunningVm;
use hypervisor::HotplugError;
use node::volumes::VolumeError;
use node::volumes::disk::{DiskKey, HostDisk};

use crate::id::ContainerId;

/// Why a container has no disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// It cannot be opened on the host.
    #[error(transparent)]
    Open(#[from] VolumeError),
    /// The VM does not take it.
    #[error("cannot give {path} to the guest{advice}")]
    Plug {
        /// The path on the host.
        path: String,
        /// What to do about it: the end of the message, or empty.
        advice: &'static str,
        /// The error that caused it.
        #[source]
        source: HotplugError,
    },
    /// Another container has it, and cannot write to it.
    #[error("{path} is given to another container of the sandbox read-only, and this one is to write to it")]
    ReadOnly {
        /// The path on the host.
        path: String,
    },
    /// It does not become larger.
    #[error("cannot make {path} larger: {reason}")]
    Grow {
        /// The path on the host.
        path: String,
        /// Why not, and what to do.
        reason: String,
    },
    /// The container is no longer wanted.
    #[error("interrupted")]
    Interrupted,
}

/// All disks of a sandbox.
#[derive(Debug, Default)]
pub(super) struct Disks {
    table: Mutex<HashMap<DiskKey, Entry>>,
}

#[derive(Debug, Default)]
struct Entry {
    users: BTreeSet<ContainerId>,
    disk: Arc<tokio::sync::Mutex<Option<Plugged>>>,
}

#[derive(Debug, Clone)]
struct Plugged {
    serial: String,
    read_only: bool,
}

impl Disks {
    fn table(&self) -> MutexGuard<'_, HashMap<DiskKey, Entry>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a disk to a container. The answer is the serial number by which the guest finds it.
    pub(super) async fn attach(
        self: &Arc<Self>,
        machine: Arc<dyn RunningVm>,
        container: &ContainerId,
        disk: HostDisk,
    ) -> Result<String, DiskError> {
        let slot = {
            let mut table = self.table();
            let entry = table.entry(disk.key).or_default();
            entry.users.insert(container.clone());
            Arc::clone(&entry.disk)
        };
        let (this, container) = (Arc::clone(self), container.clone());
        let work = tokio::spawn(async move {
            let mut slot = slot.lock().await;
            let wanted = this
                .table()
                .get(&disk.key)
                .is_some_and(|entry| entry.users.contains(&container));
            if !wanted {
                return Err(DiskError::Interrupted);
            }
            if let Some(plugged) = &*slot {
                return match plugged.read_only && !disk.read_only {
                    true => Err(DiskError::ReadOnly {
                        path: disk.path.display().to_string(),
                    }),
                    false => Ok(plugged.serial.clone()),
                };
            }
            let plugged = plug(machine.as_ref(), disk).await?;
            Ok(slot.insert(plugged).serial.clone())
        });
        work.await.unwrap_or(Err(DiskError::Interrupted))
    }

    /// Makes a disk larger, and has the guest told. Nothing if the sandbox has it no longer.
    pub(super) async fn grow(
        &self,
        machine: &dyn RunningVm,
        disk: &HostDisk,
        bytes: u64,
    ) -> Result<Option<u64>, DiskError> {
        let slot = self.table().get(&disk.key).map(|entry| Arc::clone(&entry.disk));
        let Some(slot) = slot else { return Ok(None) };
        // Held meanwhile: it is neither unplugged nor made larger twice at a time.
        let slot = slot.lock().await;
        let Some(plugged) = &*slot else { return Ok(None) };
        let path = disk.path.display().to_string();
        let fails = |reason: String| DiskError::Grow {
            path: path.clone(),
            reason,
        };
        if plugged.read_only {
            return Err(fails("it is given to the guest read-only".to_owned()));
        }
        // On a thread of its own: a network block device may hang.
        let measured = disk.clone();
        let bytes = tokio::task::spawn_blocking(move || target(&measured, bytes)).await;
        let bytes = bytes.map_err(|_| DiskError::Interrupted)?.map_err(fails)?;
        let resized = machine.resize_disk(&plugged.serial, bytes).await;
        resized.map_err(|error| fails(base::chain(&error)))?;
        Ok(Some(bytes))
    }

    /// Takes all disks from a container, whose file systems the guest has unmounted; what nobody else uses is unplugged.
    /// Without a machine there is nothing to unplug. The answer is the disks that the guest has not let go of: they stay
    /// plugged in until somebody lets go of them again or the VM ends.
    pub(super) async fn release(
        &self,
        machine: Option<Arc<dyn RunningVm>>,
        container: &ContainerId,
    ) -> Vec<(String, HotplugError)> {
        let held: Vec<_> = {
            let mut table = self.table();
            let used = table.iter_mut().filter_map(|(key, entry)| {
                // Those that were not let go of are tried again.
                (entry.users.remove(container) || entry.users.is_empty()).then(|| (*key, Arc::clone(&entry.disk)))
            });
            used.collect()
        };
        let mut kept = Vec::new();
        for (key, slot) in held {
            let mut slot = slot.lock().await;
            let unused = |disks: &Self| disks.table().get(&key).is_some_and(|entry| entry.users.is_empty());
            if !unused(self) {
                continue;
            }
            if let (Some(machine), Some(plugged)) = (&machine, &*slot)
                && let Err(error) = machine.detach_disk(&plugged.serial).await
            {
                kept.push((plugged.serial.clone(), error));
                continue;
            }
            *slot = None;
            // Somebody may have come meanwhile, who waits for the lock and plugs it in again.
            if unused(self) {
                self.table().remove(&key);
            }
        }
        kept
    }
}

/// How many bytes a disk is to have. A device of the host has them already, or does not get them here; an image gets them,
/// and never fewer than it has.
fn target(disk: &HostDisk, wanted: u64) -> Result<u64, String> {
    const SECTOR: u64 = 512;
    let now = disk.size().map_err(|error| base::chain(&error))?;
    let wanted = wanted
        .checked_next_multiple_of(SECTOR)
        .ok_or_else(|| format!("{wanted} bytes are more than a disk can have"))?;
    match disk.key {
        DiskKey::BlockDevice(_) if now < wanted => Err(format!(
            "it has {now} bytes on the host, and {wanted} are asked for: make the device itself larger first"
        )),
        DiskKey::BlockDevice(_) => Ok(now),
        DiskKey::File(..) if now > wanted => Err(format!(
            "it has {now} bytes, and {wanted} are asked for: a volume in use cannot be made smaller"
        )),
        DiskKey::File(..) => Ok(wanted),
    }
}

async fn plug(machine: &dyn RunningVm, disk: HostDisk) -> Result<Plugged, DiskError> {
    let path = disk.path.display().to_string();
    // On a thread of its own: a network block device may hang.
    let opened = tokio::task::spawn_blocking(move || disk.open()).await;
    let opened = opened.map_err(|_| DiskError::Interrupted)??;
    let read_only = opened.read_only;
    let serial = machine.attach_disk(opened).await.map_err(|source| DiskError::Plug {
        path,
        advice: match &source {
            HotplugError::Full => {
                " (a privileged container is given all devices of the host unless containerd's \
                 privileged_without_host_devices is set)"
            }
            _ => "",
        },
        source,
    })?;
    Ok(Plugged { serial, read_only })
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn an_image_grows_in_whole_sectors_and_never_becomes_smaller() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4096).unwrap();
        let handle = File::open(file.path()).unwrap().into();
        let disk = HostDisk::of(handle, file.path(), false).unwrap();
        assert_eq!(target(&disk, 4096), Ok(4096));
        assert_eq!(target(&disk, 5000), Ok(5120));
        let smaller = target(&disk, 512).unwrap_err();
        assert!(smaller.contains("has 4096 bytes"), "{smaller}");
        assert!(target(&disk, u64::MAX).is_err());
    }
}
