//! The disks of a sandbox: each is plugged in once, however many containers use it, and unplugged with its last user.
//!
//! ```text
//!  (absent) ── first user ──► plugged ── last user goes ──► (absent)
//!                                │ the guest does not release it
//!                                └──► leaving ── asked again, by the next user or the next release ──► (absent)
//! ```
//! A disk that is leaving is given to nobody: the guest may let go of it at any moment.
//!
//! The table's lock is held only for a lookup. A disk has its own lock while it is plugged in or unplugged, and another one while it is opened
//! or measured on the host, which may hang and must hold up no release. A user is recorded before the work begins, and the work is a separate
//! task. So the undoing of a cancelled creation knows what it has to release.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guest::vm::RunningVm;
use hypervisor::{Disk, HotplugError};
use node::volumes::VolumeError;
use node::volumes::disk::{DiskKey, HostDisk};

use crate::id::ContainerId;

#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// It cannot be opened on the host.
    #[error(transparent)]
    Open(#[from] VolumeError),
    #[error("cannot give {path} to the guest{advice}")]
    Plug {
        path: String,
        /// What to do about it: the end of the message, or empty.
        advice: &'static str,
        #[source]
        source: HotplugError,
    },
    /// Another container has it, and cannot write to it.
    #[error("{path} is given to another container of the sandbox read-only, and this one is to write to it")]
    ReadOnly { path: String },
    /// It was to be unplugged, and the guest has not let go of it yet.
    #[error("the guest has yet to give {path} back, which another container had: try again later")]
    Leaving {
        path: String,
        #[source]
        source: HotplugError,
    },
    #[error("cannot make {path} larger: {reason}")]
    Grow { path: String, reason: String },
    #[error("interrupted")]
    Interrupted,
}

#[derive(Debug, Default)]
pub(in crate::sandbox) struct Disks {
    table: Mutex<HashMap<DiskKey, Entry>>,
}

#[derive(Debug, Default)]
struct Entry {
    users: BTreeSet<ContainerId>,
    slot: Arc<Slot>,
}

/// The place of one disk. Whoever needs both locks takes `host` first.
#[derive(Debug, Default)]
struct Slot {
    /// Held while the disk is opened or measured on the host.
    host: tokio::sync::Mutex<()>,
    plugged: tokio::sync::Mutex<Option<Plugged>>,
}

#[derive(Debug, Clone)]
struct Plugged {
    serial: String,
    read_only: bool,
    /// The VMM was asked to unplug it, and the guest has not let go of it yet.
    leaving: bool,
}

/// A disk that a container needs.
struct Attachment {
    disks: Arc<Disks>,
    vm: Arc<dyn RunningVm>,
    container: ContainerId,
    disk: HostDisk,
    slot: Arc<Slot>,
}

impl Disks {
    fn table(&self) -> MutexGuard<'_, HashMap<DiskKey, Entry>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a disk to a container. The answer is the serial number by which the guest finds it.
    pub(in crate::sandbox) async fn attach(
        self: &Arc<Self>,
        vm: Arc<dyn RunningVm>,
        container: &ContainerId,
        disk: HostDisk,
    ) -> Result<String, DiskError> {
        let slot = {
            let mut table = self.table();
            let entry = table.entry(disk.key).or_default();
            entry.users.insert(container.clone());
            Arc::clone(&entry.slot)
        };
        let attachment = Attachment {
            disks: Arc::clone(self),
            vm,
            container: container.clone(),
            disk,
            slot,
        };
        let work = tokio::spawn(async move {
            let attached = attachment.attach().await;
            if matches!(attached, Err(DiskError::Open(_))) {
                // Nothing is to be released: the container may do without it.
                attachment.leave();
            }
            attachment.forget_unused().await;
            attached
        });
        work.await.unwrap_or(Err(DiskError::Interrupted))
    }

    /// Makes a disk larger, and has the guest told. Nothing if the sandbox has it no longer.
    pub(in crate::sandbox) async fn grow(
        &self,
        vm: &dyn RunningVm,
        disk: &HostDisk,
        bytes: u64,
    ) -> Result<Option<u64>, DiskError> {
        let slot = self.table().get(&disk.key).map(|entry| Arc::clone(&entry.slot));
        let Some(slot) = slot else { return Ok(None) };
        let path = disk.path.display().to_string();
        let fails = |reason: String| DiskError::Grow {
            path: path.clone(),
            reason,
        };
        // It is not made larger twice at a time.
        let _host = slot.host.lock().await;
        let in_use = |plugged: &Option<Plugged>| plugged.as_ref().is_some_and(|plugged| !plugged.leaving);
        match &*slot.plugged.lock().await {
            Some(plugged) if plugged.read_only => return Err(fails("it is given to the guest read-only".to_owned())),
            plugged if !in_use(plugged) => return Ok(None),
            _ => {}
        }
        // On a thread of its own: a network block device may hang.
        let measured = disk.clone();
        let bytes = tokio::task::spawn_blocking(move || target(&measured, bytes)).await;
        let bytes = bytes.map_err(|_| DiskError::Interrupted)?.map_err(fails)?;
        // Held meanwhile: it is not unplugged.
        let plugged = slot.plugged.lock().await;
        let Some(plugged) = plugged.as_ref().filter(|plugged| !plugged.leaving) else {
            return Ok(None);
        };
        let resized = vm.resize_disk(&plugged.serial, bytes).await;
        resized.map_err(|error| fails(base::chain(&error)))?;
        Ok(Some(bytes))
    }

    /// Takes all disks from a container, whose file systems the guest has unmounted; what nobody else uses is unplugged.
    /// Without a vm there is nothing to unplug. The answer is the disks that the guest has not let go of: they stay
    /// plugged in until somebody lets go of them or asks for them again, or the VM ends.
    pub(in crate::sandbox) async fn release(
        &self,
        vm: Option<Arc<dyn RunningVm>>,
        container: &ContainerId,
    ) -> Vec<(String, HotplugError)> {
        let held: Vec<_> = {
            let mut table = self.table();
            let used = table.iter_mut().filter_map(|(key, entry)| {
                // Those that were not let go of are tried again.
                (entry.users.remove(container) || entry.users.is_empty()).then(|| (*key, Arc::clone(&entry.slot)))
            });
            used.collect()
        };
        let mut kept = Vec::new();
        for (key, slot) in held {
            let mut place = slot.plugged.lock().await;
            if !self.is_unused(key, &slot) {
                continue;
            }
            if let (Some(vm), Some(plugged)) = (&vm, &mut *place)
                && let Err(error) = vm.detach_disk(&plugged.serial).await
            {
                plugged.leaving = true;
                kept.push((plugged.serial.clone(), error));
                continue;
            }
            *place = None;
            self.forget(key, &slot);
        }
        kept
    }

    fn is_unused(&self, key: DiskKey, slot: &Arc<Slot>) -> bool {
        let table = self.table();
        let entry = table.get(&key).filter(|entry| Arc::ptr_eq(&entry.slot, slot));
        entry.is_some_and(|entry| entry.users.is_empty())
    }

    /// Removes the place of a disk that is not plugged in, unless somebody has come meanwhile, who plugs it in there, or it is still being
    /// opened: whoever comes next waits for that.
    fn forget(&self, key: DiskKey, slot: &Arc<Slot>) {
        let mut table = self.table();
        let entry = table.get(&key).filter(|entry| Arc::ptr_eq(&entry.slot, slot));
        if entry.is_some_and(|entry| entry.users.is_empty()) && slot.host.try_lock().is_ok() {
            table.remove(&key);
        }
    }
}

impl Attachment {
    async fn attach(&self) -> Result<String, DiskError> {
        if let Some(serial) = self.find(&mut *self.slot.plugged.lock().await).await? {
            return Ok(serial);
        }
        let _host = self.slot.host.lock().await;
        // Others may have opened it meanwhile.
        if let Some(serial) = self.find(&mut *self.slot.plugged.lock().await).await? {
            return Ok(serial);
        }
        let disk = self.disk.clone();
        // On a thread of its own: a network block device may hang.
        let opened = tokio::task::spawn_blocking(move || disk.open()).await;
        let opened = opened.map_err(|_| DiskError::Interrupted)??;
        // Held meanwhile: whoever releases it waits, and unplugs it then.
        let mut place = self.slot.plugged.lock().await;
        if let Some(serial) = self.find(&mut place).await? {
            return Ok(serial);
        }
        let plugged = self.plug(opened).await?;
        Ok(place.insert(plugged).serial.clone())
    }

    /// The disk that is plugged in, if the container is still wanted and can have it. One that is leaving has to be gone first.
    async fn find(&self, place: &mut Option<Plugged>) -> Result<Option<String>, DiskError> {
        let is_wanted = {
            let table = self.disks.table();
            let entry = table
                .get(&self.disk.key)
                .filter(|entry| Arc::ptr_eq(&entry.slot, &self.slot));
            entry.is_some_and(|entry| entry.users.contains(&self.container))
        };
        if !is_wanted {
            return Err(DiskError::Interrupted);
        }
        let Some(plugged) = &*place else { return Ok(None) };
        let path = || self.disk.path.display().to_string();
        if plugged.leaving {
            let detached = self.vm.detach_disk(&plugged.serial).await;
            detached.map_err(|source| DiskError::Leaving { path: path(), source })?;
            *place = None;
            return Ok(None);
        }
        if plugged.read_only && !self.disk.read_only {
            return Err(DiskError::ReadOnly { path: path() });
        }
        Ok(Some(plugged.serial.clone()))
    }

    async fn plug(&self, opened: Disk) -> Result<Plugged, DiskError> {
        let read_only = opened.read_only;
        let attached = self.vm.attach_disk(opened).await;
        let serial = attached.map_err(|source| DiskError::Plug {
            path: self.disk.path.display().to_string(),
            advice: match &source {
                HotplugError::Full => {
                    " (a privileged container is given all devices of the host unless containerd's \
                     privileged_without_host_devices is set)"
                }
                _ => "",
            },
            source,
        })?;
        Ok(Plugged {
            serial,
            read_only,
            leaving: false,
        })
    }

    fn leave(&self) {
        let mut table = self.disks.table();
        let entry = table.get_mut(&self.disk.key);
        if let Some(entry) = entry.filter(|entry| Arc::ptr_eq(&entry.slot, &self.slot)) {
            entry.users.remove(&self.container);
        }
    }

    /// Its release left the place to whoever opened the disk.
    async fn forget_unused(&self) {
        let place = self.slot.plugged.lock().await;
        if place.is_none() {
            self.disks.forget(self.disk.key, &self.slot);
        }
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
