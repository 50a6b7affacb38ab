//! File systems of the guest that containers use: on disks that the host plugs in, in memory, of huge pages.
//!
//! ```text
//!  acquire: disk found ─► mounted (once) ─► container is a user        release: synced ─► unmounted ─► disk is free
//! ```
//! A storage has a name; containers that use the same name share it. It owns the mounts below
//! [`protocol::STORAGE_DIRECTORY`] and the list of their users. It knows nothing about processes: before a release, the
//! caller has ended them.

mod device_numbers;
mod disk;
mod entries;
mod error;
mod filesystem;
mod group;
mod grow;
mod huge_pages;
mod limits;
mod sys;

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use protocol::agent::{BlockDevice, Storage, StorageEntry};
use tokio::sync::Mutex as AsyncMutex;

pub(crate) use device_numbers::{Plugged, rewrite};
use disk::DiskNode;
pub(crate) use error::StorageError;
use huge_pages::{HugePages, Reserved};
pub(crate) use limits::rewrite_limits;

use crate::common::ids::ContainerId;

/// Most storages and devices of one container: more than disks can be plugged in.
const MOST: usize = 128;

/// All storages of the sandbox. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Storages {
    table: Arc<Mutex<Table>>,
    huge_pages: HugePages,
}

#[derive(Debug, Default)]
struct Table {
    storages: HashMap<String, Arc<AsyncMutex<Slot>>>,
    held: HashMap<ContainerId, Held>,
}

#[derive(Debug, Default)]
struct Held {
    storages: Vec<String>,
    disks: Vec<DiskNode>,
    /// Disks whose file system is unmounted, and which may still be in use.
    settling: Vec<DiskNode>,
    huge_pages: Vec<Reserved>,
    /// The disks of its storages.
    mounted_on: HashMap<String, Vec<DiskNode>>,
}

/// One storage. Locked while it is mounted or unmounted.
#[derive(Debug, Default)]
struct Slot {
    mounted: Option<Mounted>,
    users: BTreeSet<ContainerId>,
}

#[derive(Debug)]
struct Mounted {
    storage: Storage,
    disks: Vec<DiskNode>,
}

fn place(name: &str) -> PathBuf {
    Path::new(protocol::STORAGE_DIRECTORY).join(name)
}

fn check_name(name: &str) -> Result<(), StorageError> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    match (1..=64).contains(&name.len()) && name.bytes().all(plain) {
        true => Ok(()),
        false => Err(StorageError::Invalid(format!(
            "{:?} is not the name of a storage",
            name.chars().take(64).collect::<String>()
        ))),
    }
}

impl Storages {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Mounts what a container needs and is not mounted yet, and finds its disks. The answer is those of its disks that
    /// are devices of the host. Not to be given up half-way; each step is bounded.
    ///
    /// # Errors
    /// A disk does not appear, or something cannot be mounted; nothing is held then.
    pub(crate) async fn acquire(
        &self,
        container: &ContainerId,
        storages: &[Storage],
        devices: &[BlockDevice],
    ) -> Result<Vec<Plugged>, StorageError> {
        let acquired = self.acquire_all(container, storages, devices).await;
        if acquired.is_err()
            && let Err(error) = self.release(container).await
        {
            tracing::warn!(%container, error = base::chain(&error), "not all storages are released");
        }
        acquired
    }

    async fn acquire_all(
        &self,
        container: &ContainerId,
        storages: &[Storage],
        devices: &[BlockDevice],
    ) -> Result<Vec<Plugged>, StorageError> {
        if storages.len() > MOST || devices.len() > MOST {
            return Err(StorageError::Invalid(format!("more than {MOST} storages or devices")));
        }
        let mut plugged = Vec::new();
        for storage in storages {
            check_name(&storage.name)?;
            let disk = self.acquire_one(container, storage).await?;
            plugged.extend(disk.and_then(|disk| Plugged::of_storage(storage, &disk)));
        }
        for device in devices {
            let disk = disk::find(&device.serial).await?;
            self.hold(container, |held| held.disks.push(disk.clone()));
            plugged.push(Plugged::new(device, &disk));
        }
        Ok(plugged)
    }

    fn hold(&self, container: &ContainerId, change: impl FnOnce(&mut Held)) {
        change(self.table().held.entry(container.clone()).or_default());
    }

    /// The answer is the disk that it is on, if it is on one; the first, if it is on several.
    async fn acquire_one(&self, container: &ContainerId, storage: &Storage) -> Result<Option<DiskNode>, StorageError> {
        let mut disks = Vec::new();
        if storage.more_serials.len() > MOST {
            return Err(StorageError::Invalid(format!("more than {MOST} disks")));
        }
        let first = Some(&storage.serial).filter(|serial| !serial.is_empty());
        for serial in first.into_iter().chain(&storage.more_serials) {
            disks.push(disk::find(serial).await?);
        }
        if storage.huge_page_size > 0 {
            let (pages, size, bytes) = (self.huge_pages.clone(), storage.huge_page_size, storage.huge_bytes);
            // The kernel may have to move what is in their place.
            let reserved = blocking(move || pages.reserve(size, bytes)).await?;
            self.hold(container, |held| held.huge_pages.push(reserved));
        }
        let slot = Arc::clone(self.table().storages.entry(storage.name.clone()).or_default());
        let mut slot = slot.lock().await;
        let new = slot.mounted.is_none();
        match &slot.mounted {
            Some(mounted) if !same(&mounted.storage, storage) => {
                return Err(StorageError::Different {
                    name: storage.name.clone(),
                    mounted: mounted.storage.fstype.clone(),
                    wanted: storage.fstype.clone(),
                });
            }
            Some(_) => {}
            None => {
                let work = {
                    let (storage, disks) = (storage.clone(), disks.clone());
                    move || filesystem::mount(&storage, &disks, &place(&storage.name))
                };
                blocking(work).await?;
                slot.mounted = Some(Mounted {
                    storage: storage.clone(),
                    disks: disks.clone(),
                });
            }
        }
        if !storage.entries.is_empty() {
            let (storage, name) = (storage.clone(), storage.name.clone());
            let work = move || {
                let made = entries::make(&place(&storage.name), &storage.entries, new);
                made.map_err(|source| StorageError::Entries {
                    name: storage.name,
                    source,
                })
            };
            let made = blocking(work).await;
            if made.is_err() && new {
                // Half made it is of no use to the next one.
                match blocking(move || filesystem::unmount(&place(&name))).await {
                    Ok(()) => slot.mounted = None,
                    Err(error) => tracing::warn!(%error, "a storage without its first content stays mounted"),
                }
            }
            made?;
        }
        slot.users.insert(container.clone());
        self.hold(container, |held| {
            held.storages.push(storage.name.clone());
            held.mounted_on.insert(storage.name.clone(), disks.clone());
        });
        Ok(disks.into_iter().next())
    }

    /// Makes what is in a copy of the host's files what the host has now.
    ///
    /// # Errors
    /// None of this name is mounted, or it cannot be written to.
    pub(crate) async fn update(&self, name: &str, files: Vec<StorageEntry>) -> Result<(), StorageError> {
        let slot = self.slot(name)?;
        // Nobody mounts or unmounts it meanwhile.
        let slot = slot.lock().await;
        if slot.mounted.is_none() {
            return Err(StorageError::NotMounted(name.to_owned()));
        }
        let name = name.to_owned();
        blocking(move || {
            entries::update(&place(&name), &files).map_err(|source| StorageError::Entries { name, source })
        })
        .await
    }

    /// Lets go of everything that a container holds: what nobody else uses is written back and unmounted. May be called
    /// again after an error, and for a container that holds nothing.
    ///
    /// # Errors
    /// Something cannot be written back, or is still in use. The rest has been released.
    pub(crate) async fn release(&self, container: &ContainerId) -> Result<(), StorageError> {
        // What is released goes out of the table piece by piece: a release that is dropped half-way has forgotten nothing.
        let mut first = None;
        // The last one first: an overlay is on those before it.
        for name in self.holds(container, |held| held.storages.iter().rev().cloned().collect()) {
            match self.release_one(container, &name).await {
                Ok(()) => self.hold(container, |held| held.storages.retain(|kept| *kept != name)),
                Err(error) => drop(first.get_or_insert(error)),
            }
        }
        for disk in self.holds(container, |held| held.settling.clone()) {
            if self.is_on(container, &disk) {
                // A layer that another's root has as well: whoever unmounts the last file system on it waits.
                self.hold(container, |held| held.settling.retain(|kept| *kept != disk));
                continue;
            }
            let settles = disk.clone();
            match blocking(move || settles.settled()).await {
                Ok(()) => self.hold(container, |held| held.settling.retain(|kept| *kept != disk)),
                Err(error) => drop(first.get_or_insert(error)),
            }
        }
        for disk in self.holds(container, |held| held.disks.clone()) {
            let written = disk.clone();
            match blocking(move || written.write_back()).await {
                Ok(()) => self.hold(container, |held| held.disks.retain(|kept| *kept != disk)),
                Err(error) => drop(first.get_or_insert(error)),
            }
        }
        let huge_pages = {
            let mut table = self.table();
            let held = table.held.get_mut(container);
            held.map(|held| std::mem::take(&mut held.huge_pages))
                .unwrap_or_default()
        };
        if !huge_pages.is_empty() {
            let pages = self.huge_pages.clone();
            let given_back = blocking(move || {
                huge_pages.iter().for_each(|reserved| pages.give_back(reserved));
                Ok(())
            });
            if let Err(error) = given_back.await {
                first.get_or_insert(error);
            }
        }
        match first {
            None => {
                self.table().held.remove(container);
                Ok(())
            }
            Some(error) => Err(error),
        }
    }

    /// Whether a file system of another container is on the disk.
    fn is_on(&self, container: &ContainerId, disk: &DiskNode) -> bool {
        let table = self.table();
        let mut others = table.held.iter().filter(|(other, _)| *other != container);
        others.any(|(_, held)| {
            let mut mounted = held.storages.iter().filter_map(|name| held.mounted_on.get(name));
            mounted.any(|disks| disks.contains(disk))
        })
    }

    /// A part of what a container holds.
    fn holds<T>(&self, container: &ContainerId, part: impl FnOnce(&Held) -> Vec<T>) -> Vec<T> {
        self.table().held.get(container).map(part).unwrap_or_default()
    }

    /// How much has been written to the disks that a container holds: a number that changes as long as something is.
    pub(crate) fn written(&self, container: &ContainerId) -> u64 {
        let table = self.table();
        let Some(held) = table.held.get(container) else {
            return 0;
        };
        let mounted = held.storages.iter().filter_map(|name| {
            // One that is locked is the one that is being unmounted; it is known from when it was mounted.
            held.mounted_on.get(name)
        });
        let mounted = mounted.flatten();
        let disks = held.disks.iter().chain(&held.settling).chain(mounted);
        let left = held.storages.len() + held.disks.len() + held.settling.len();
        disks.map(DiskNode::written).fold(left as u64, u64::wrapping_add)
    }

    /// A disk whose file system was unmounted may be in use for a moment longer: it is held until it is not.
    async fn release_one(&self, container: &ContainerId, name: &str) -> Result<(), StorageError> {
        let Some(slot) = self.table().storages.get(name).map(Arc::clone) else {
            return Ok(());
        };
        let mut slot = slot.lock().await;
        if slot.users.iter().any(|user| user != container) {
            slot.users.remove(container);
            return Ok(());
        }
        if slot.mounted.as_ref().is_some_and(|mounted| !mounted.storage.keep) {
            let place = place(name);
            blocking(move || filesystem::unmount(&place)).await?;
            let disks = slot.mounted.take().map(|mounted| mounted.disks);
            self.hold(container, |held| held.settling.extend(disks.unwrap_or_default()));
        }
        slot.users.remove(container);
        Ok(())
    }
}

/// Whether two containers mean the same file system by a name. What concerns one container alone need not be equal.
fn same(one: &Storage, other: &Storage) -> bool {
    let disks = one.serial == other.serial && one.more_serials == other.more_serials;
    disks && one.fstype == other.fstype && one.keep == other.keep
}

/// Runs what may take long on a thread of its own.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, StorageError> {
    crate::common::blocking::run(work)
        .await
        .unwrap_or_else(|error| Err(StorageError::Thread(error)))
}

#[cfg(test)]
mod tests {
    use nix::sched::{CloneFlags, unshare};
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

    use super::*;

    #[test]
    fn a_name_is_one_plain_component() {
        check_name("disk-0f3a").unwrap();
        for name in ["", "a/b", "..", "A", &"x".repeat(65), "a\n"] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
    }

    /// Its own mounts, which end with the test: the threads of the runtime come from this one.
    fn in_namespace() {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let (private, recursive) = (MountPropagationFlags::PRIVATE, MountPropagationFlags::REC);
        mount_change("/", private | recursive).unwrap();
        mount("tmpfs", "/run", "tmpfs", MountFlags::empty(), None).unwrap();
    }

    fn tmpfs(name: &str) -> Storage {
        Storage {
            name: name.to_owned(),
            fstype: "tmpfs".to_owned(),
            ..Storage::default()
        }
    }

    #[tokio::test]
    async fn a_disk_that_is_in_use_after_the_unmount_is_waited_for_again_and_the_name_is_free() {
        in_namespace();
        let storages = Storages::default();
        let id = ContainerId::new("c").unwrap();
        storages.acquire(&id, &[tmpfs("disk-1")], &[]).await.unwrap();
        // As if it were on a disk that cannot be had for now.
        let path = Path::new("/run/disk").to_owned();
        let slot = storages.table().storages.get("disk-1").map(Arc::clone).unwrap();
        if let Some(mounted) = slot.lock().await.mounted.as_mut() {
            mounted.disks = vec![DiskNode {
                path: path.clone(),
                major: 0,
                minor: 0,
            }];
        }
        storages.release(&id).await.unwrap_err();
        assert!(slot.lock().await.mounted.is_none() && !place("disk-1").exists());
        // Another container is not given what is no longer mounted.
        let other = ContainerId::new("d").unwrap();
        storages.acquire(&other, &[tmpfs("disk-1")], &[]).await.unwrap();
        std::fs::write(place("disk-1").join("file"), "").unwrap();
        storages.release(&id).await.unwrap_err();
        std::fs::write(&path, "").unwrap();
        storages.release(&id).await.unwrap();
        assert!(place("disk-1").join("file").exists());
        storages.release(&other).await.unwrap();
        assert!(!place("disk-1").exists());
    }

    #[tokio::test]
    async fn a_storage_that_is_in_use_stays_until_it_is_not() {
        in_namespace();
        let storages = Storages::default();
        let id = ContainerId::new("c").unwrap();
        storages.acquire(&id, &[tmpfs("disk-1")], &[]).await.unwrap();
        let user = std::fs::File::create(place("disk-1").join("file")).unwrap();
        let error = storages.release(&id).await.unwrap_err();
        assert!(error.to_string().starts_with("cannot unmount"), "{error}");
        drop(user);
        storages.release(&id).await.unwrap();
        assert!(!place("disk-1").exists());
    }

    #[tokio::test]
    async fn what_holds_nothing_is_released_and_too_much_is_refused() {
        let storages = Storages::default();
        let id = ContainerId::new("c").unwrap();
        storages.release(&id).await.unwrap();
        let many = vec![Storage::default(); 129];
        let refused = storages.acquire(&id, &many, &[]).await.unwrap_err();
        assert!(matches!(refused, StorageError::Invalid(_)));
        let outside = Storage {
            name: "../../etc".to_owned(),
            ..Storage::default()
        };
        assert!(matches!(
            storages.acquire(&id, &[outside], &[]).await,
            Err(StorageError::Invalid(_))
        ));
    }
}
