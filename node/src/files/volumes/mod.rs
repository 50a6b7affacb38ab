//! The roots, mounts and devices of a container that are not files of the host: disks that are plugged into the VM, and
//! file systems in the guest's memory.
//!
//! | on the host | in the guest |
//! |---|---|
//! | the rootfs is one file system on a block device or in a raw image | a disk, mounted there |
//! | the rootfs is an overlay of such file systems | a disk for each, and the overlay, mounted there |
//! | a mount for which there is a `mountInfo.json` (direct-assigned volume) | a disk, mounted there |
//! | a block device in `linux.devices` | a disk |
//! | a tmpfs that is `/dev/shm`, or an emptyDir or a part of one | a tmpfs, the same for all containers of the pod |
//! | an emptyDir, with `emptydir_mode = "block-plain"` | a disk in an image in it, mounted there |
//! | a hugetlbfs | a hugetlbfs with reserved pages |
//! | any other file or directory, with `shared_fs = "none"` | a tmpfs with a copy |
//!
//! It decides and looks things up; it neither plugs in nor mounts. The mounts that it handles become binds from
//! [`protocol::STORAGE_DIRECTORY`], which [`crate::spec::guest_spec`] does not change.

mod copied;
pub mod copies;
mod dev;
mod devices;
mod direct;
pub mod disk;
mod empty_disk;
mod entries;
mod error;
mod layers;
mod located;
mod memory;
mod name;
pub mod record;
mod rootfs;
mod source;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Component, Path, PathBuf};

use config::EmptyDirMode;
use containerd_shim_protos::types::mount::Mount as RootfsMount;
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, Mount, Spec};
use protocol::agent::{BlockDevice, Storage};

use self::disk::HostDisk;
pub use self::error::VolumeError;
use self::located::EmptyDirPlace;
pub use self::record::DirectVolume;
use self::source::{EmptyDir, FileSystem, Source};
use crate::host::host_ns::{HostNamespace, HostNamespaceError};

/// Where things are found on the host, and where emptyDirs are.
#[derive(Debug, Clone)]
struct Places {
    /// Kata's directory of direct-assigned volumes.
    direct: PathBuf,
    /// The kernel's list of block devices by number.
    block: PathBuf,
    /// The same for character devices.
    character: PathBuf,
    /// Device nodes.
    dev: PathBuf,
    /// Whether emptyDirs are on disks.
    empty_dirs: EmptyDirMode,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            direct: PathBuf::from(record::ROOT),
            block: PathBuf::from("/sys/dev/block"),
            character: PathBuf::from("/sys/dev/char"),
            dev: PathBuf::from("/dev"),
            empty_dirs: EmptyDirMode::SharedFs,
        }
    }
}

/// What one container's mounts, devices and rootfs need of the VM and the guest.
#[derive(Debug, Clone, Default)]
pub struct Volumes {
    /// Disks to be plugged in.
    pub disks: Vec<HostDisk>,
    /// File systems for the guest to mount, in this order, each with the indexes of the disks that it is on: none, one, or several.
    pub storages: Vec<(Storage, Vec<usize>)>,
    /// Devices of the container, each with the index of its disk.
    pub devices: Vec<(BlockDevice, usize)>,
    /// The container may use every device: those that it lists are what the host had at that moment, and it does without one that goes.
    pub(super) every_device: bool,
    /// The root in the guest, if it is on a disk.
    pub rootfs: Option<PathBuf>,
    /// What the host calls its character devices that are listed, by their numbers (`MAJOR:MINOR`).
    pub device_names: HashMap<String, String>,
    /// For statistics and resizing.
    pub direct: Vec<DirectVolume>,
    /// Sources below `/dev` that are files of the host.
    pub host_files: BTreeSet<PathBuf>,
    /// What was left out, and why. One sentence each.
    pub warnings: Vec<String>,
}

impl Volumes {
    /// Looks through a specification, which is changed where a mount or a device becomes something of the guest's. Blocks.
    ///
    /// # Errors
    /// Something cannot be had; it is named.
    pub fn plan(
        spec: &mut Spec,
        rootfs: &[RootfsMount],
        empty_dirs: EmptyDirMode,
        host: &HostNamespace,
    ) -> Result<Self, VolumeError> {
        let places = Places {
            empty_dirs,
            ..Places::default()
        };
        Self::plan_at(&places, spec, rootfs, host)
    }

    fn plan_at(
        places: &Places,
        spec: &mut Spec,
        rootfs: &[RootfsMount],
        host: &HostNamespace,
    ) -> Result<Self, VolumeError> {
        let mut volumes = Self::default();
        volumes.rootfs(rootfs, host)?;
        let huge_pages = memory::huge_page_limits(spec);
        let mut mounts = spec.mounts().clone().unwrap_or_default();
        for mount in &mut mounts {
            volumes.mount(places, mount, &huge_pages, host)?;
        }
        if spec.mounts().is_some() {
            spec.set_mounts(Some(mounts));
        }
        volumes.reserve_huge_pages(&huge_pages);
        volumes.devices(places, spec, host)?;
        Ok(volumes)
    }

    /// Refuses a root that is not on disks: for a guest with which nothing is shared.
    ///
    /// # Errors
    /// It is a directory of the host.
    pub fn refuse_shared_root(&self, root: &Path, mounts: &[RootfsMount]) -> Result<(), VolumeError> {
        if self.rootfs.is_some() {
            return Ok(());
        }
        let kinds: Vec<&str> = mounts.iter().map(|mount| mount.type_.as_str()).collect();
        let kind = if kinds.is_empty() {
            "a directory".to_owned()
        } else {
            kinds.join(" and ")
        };
        Err(VolumeError::Rootfs {
            from: root.display().to_string(),
            reason: format!(
                "hypervisor.qemu.shared_fs = \"none\", and it is {kind} of the host: use a snapshotter that has it on a block device or in an \
                 image (blockfile, devmapper, erofs), or set shared_fs = \"virtio-fs\""
            ),
        })
    }

    fn mount(
        &mut self,
        places: &Places,
        mount: &mut Mount,
        huge_pages: &memory::HugePageLimits,
        host: &HostNamespace,
    ) -> Result<(), VolumeError> {
        let Some(path) = bind_source(mount) else {
            return Ok(());
        };
        if path.starts_with(protocol::STORAGE_DIRECTORY) {
            return Err(VolumeError::Mount {
                destination: mount.destination().clone(),
                reason: format!("{} is a name of the guest's own", path.display()),
            });
        }
        if let Some(info) = direct::find(&places.direct, &path)? {
            let disk = HostDisk::locate(host, &info.device, info.read_only())?;
            let storage = info.storage(&disk);
            take(mount, &storage, Path::new(""));
            self.warnings.extend(info.warnings());
            self.direct.push(DirectVolume {
                path,
                storage: storage.name.clone(),
                disk: disk.clone(),
            });
            self.store_on(storage, disk);
            return Ok(());
        }
        // One that is not there may be there in the guest.
        if path.starts_with("/dev") && dev::is_hosts(host, &path).unwrap_or(false) {
            self.host_files.insert(path.clone());
        }
        // A source that is not there is an error of whoever shares it.
        let Ok(source) = Source::examine(host, &path) else {
            return Ok(());
        };
        if self.in_memory(mount, &path, source, huge_pages, host)? || places.empty_dirs == EmptyDirMode::SharedFs {
            return Ok(());
        }
        self.on_image(mount, &path, host)
    }

    /// Takes a mount of an emptyDir.
    fn on_image(&mut self, mount: &mut Mount, path: &Path, host: &HostNamespace) -> Result<(), VolumeError> {
        let missing = |error| VolumeError::Missing {
            path: path.to_owned(),
            source: Box::new(error),
        };
        let found = host.find_tree(path, false).map_err(missing)?;
        let Some(place) = EmptyDirPlace::find(host, &found).map_err(missing)? else {
            return Ok(());
        };
        let (storage, disk) = empty_disk::find(host, &place)?;
        take(mount, &storage, &place.part);
        self.store_on(storage, disk);
        Ok(())
    }

    /// Takes a mount of the host's memory. False if it is none.
    fn in_memory(
        &mut self,
        mount: &mut Mount,
        path: &Path,
        source: Source,
        huge_pages: &memory::HugePageLimits,
        host: &HostNamespace,
    ) -> Result<bool, VolumeError> {
        let failed = |error: HostNamespaceError| VolumeError::Missing {
            path: path.to_owned(),
            source: Box::new(error),
        };
        let found = match source.file_system {
            FileSystem::Tmpfs { .. } => EmptyDir::find(host, path).map_err(failed)?,
            FileSystem::HugePages { .. } | FileSystem::Other => None,
        };
        let Some(found) = found else {
            // A directory of a tmpfs that has other files as well (/run, /tmp) is not shared memory.
            let shared_memory = mount.destination() == Path::new(memory::SHM);
            if shared_memory && !source::is_mount(host, path).map_err(failed)? {
                return Ok(false);
            }
            let Some(storage) = memory::storage(path, mount.destination(), &source, false, huge_pages) else {
                return Ok(false);
            };
            take(mount, &storage, Path::new(""));
            self.storages.push((storage, Vec::new()));
            return Ok(true);
        };
        let source = Source::examine(host, &found.root).map_err(failed)?;
        let Some(mut storage) = memory::storage(&found.root, mount.destination(), &source, true, huge_pages) else {
            return Ok(false);
        };
        match entries::read(host, &found).map_err(failed)? {
            Some(entries) => storage.entries = entries,
            None => self.warnings.push(format!(
                "what the host has in {} is too much to be copied into the guest's memory",
                found.root.display()
            )),
        }
        take(mount, &storage, &found.part);
        self.storages.push((storage, Vec::new()));
        Ok(true)
    }

    /// Each limit of huge pages is a reservation in the guest, made once: with the first volume of that size, or without one
    /// for a program that maps them by itself (MAP_HUGETLB, shmget(2) with SHM_HUGETLB).
    fn reserve_huge_pages(&mut self, limits: &memory::HugePageLimits) {
        let mut reserved = BTreeSet::new();
        for (storage, _) in &mut self.storages {
            if storage.huge_page_size > 0 && !reserved.insert(storage.huge_page_size) {
                storage.huge_bytes = 0;
            }
        }
        let alone = limits
            .iter()
            .filter(|(size, bytes)| **bytes > 0 && !reserved.contains(*size));
        let alone: BTreeMap<u64, u64> = alone.map(|(size, bytes)| (*size, *bytes)).collect();
        self.storages.extend(
            alone
                .into_iter()
                .map(|(size, bytes)| (memory::huge_pages_alone(size, bytes), Vec::new())),
        );
    }

    fn store_on(&mut self, mut storage: Storage, disk: HostDisk) {
        if let disk::DiskKey::BlockDevice(number) = disk.key {
            storage.host_major = rustix::fs::major(number);
            storage.host_minor = rustix::fs::minor(number);
        }
        let index = self.add(disk);
        self.storages.push((storage, vec![index]));
    }

    /// Whether the container can be made without a disk, by its index.
    #[must_use]
    pub fn is_dispensable(&self, disk: usize) -> bool {
        self.every_device && !self.storages.iter().any(|(_, disks)| disks.contains(&disk))
    }

    /// The index of a disk, which is there once even if it is named twice. It is written to if anything writes to it.
    fn add(&mut self, disk: HostDisk) -> usize {
        if let Some(index) = self.disks.iter().position(|other| other.key == disk.key) {
            self.disks[index].read_only &= disk.read_only;
            return index;
        }
        self.disks.push(disk);
        self.disks.len() - 1
    }
}

/// The source of a bind mount; none if it is no bind mount, or its source is not an absolute path.
fn bind_source(mount: &Mount) -> Option<PathBuf> {
    mount
        .source()
        .clone()
        .filter(|source| is_bind(mount) && source.is_absolute())
}

/// Makes the sources of bind mounts absolute, as runc reads them: a relative one is below the bundle, and `..` is what the host's links make of it.
/// One that cannot be resolved stays as it is, for whoever needs it to say so. Blocks.
pub fn resolve_sources(spec: &mut Spec, bundle: &Path, host: &HostNamespace) {
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for mount in &mut mounts {
        let named = |source: &PathBuf| is_bind(mount) && !source.as_os_str().is_empty();
        let Some(source) = mount.source().clone().filter(named) else {
            continue;
        };
        let upwards = source.components().any(|part| part == Component::ParentDir);
        let mut path = bundle.join(&source);
        if upwards
            && let Ok(Ok(resolved)) = host.run({
                let path = path.clone();
                move || path.canonicalize()
            })
        {
            path = resolved;
        }
        mount.set_source(Some(path));
    }
    if spec.mounts().is_some() {
        spec.set_mounts(Some(mounts));
    }
}

fn is_bind(mount: &Mount) -> bool {
    let options = mount.options().as_deref().unwrap_or_default();
    mount.typ().as_deref() == Some("bind") || options.iter().any(|option| option == "bind" || option == "rbind")
}

/// Where a storage is in the guest.
fn guest_path(storage: &Storage) -> PathBuf {
    Path::new(protocol::STORAGE_DIRECTORY).join(&storage.name)
}

/// Makes a mount one of a part of a storage. Its options stay, but for those of the file system.
fn take(mount: &mut Mount, storage: &Storage, part: &Path) {
    let options = mount.options().clone().unwrap_or_default();
    let mut kept: Vec<String> = options.into_iter().filter(|option| !option.contains('=')).collect();
    if !kept.iter().any(|option| option == "bind" || option == "rbind") {
        kept.push("bind".to_owned());
    }
    mount.set_typ(Some("bind".to_owned()));
    // Joined with nothing it would end with a slash.
    let place = guest_path(storage);
    mount.set_source(Some(place.components().chain(part.components()).collect()));
    mount.set_options(Some(kept));
}

/// Whether the rules allow every device: what a privileged container has.
fn allows_everything(rules: &[LinuxDeviceCgroup]) -> bool {
    rules
        .iter()
        .any(|rule| rule.allow() && matches!(rule.typ(), None | Some(LinuxDeviceType::A)))
}

#[cfg(test)]
mod tests;
