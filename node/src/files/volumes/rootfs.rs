//! A rootfs that is on disks: one file system on a block device or in a raw image, as containerd's devmapper, blockfile and erofs
//! snapshotters send it, or an overlay of several ([`super::layers`]).

use std::path::Path;

use containerd_shim_protos::types::mount::Mount;
use protocol::agent::Storage;

use super::disk::HostDisk;
use super::{VolumeError, Volumes, guest_path};
use crate::host::host_ns::HostNamespace;

/// File systems that the guest mounts from a disk. All others are mounted by the host and shared.
const OF_THE_GUEST: [&str; 6] = ["ext2", "ext3", "ext4", "xfs", "squashfs", "erofs"];
/// Those of them that nobody can write to.
const READ_ONLY: [&str; 2] = ["squashfs", "erofs"];
/// What the type of a mount begins with that containerd's mount manager (2.2) has prepared, or would prepare. (`mkfs/` is none of it: it
/// makes the file system, and without the manager there is none.)
const PREPARED: [&str; 2] = ["format/", "mkdir/"];
/// Options with this are for containerd's mount manager.
const MANAGERS: &str = "X-containerd.";

impl Volumes {
    /// Takes the rootfs if it is on disks.
    pub(super) fn rootfs(&mut self, mounts: &[Mount], host: &HostNamespace) -> Result<(), VolumeError> {
        if !mounts.iter().any(is_of_the_guest) {
            return Ok(());
        }
        self.rootfs = Some(match mounts {
            [mount] => guest_path(&self.on_disk(mount, host)?),
            layers => self.layers(layers, host)?,
        });
        Ok(())
    }

    /// A file system for the guest to mount, and its disks.
    pub(super) fn on_disk(&mut self, mount: &Mount, host: &HostNamespace) -> Result<Storage, VolumeError> {
        if !is_of_the_guest(mount) {
            return Err(refused(mount, "it is no file system that a guest mounts from a disk"));
        }
        if !mount.target.is_empty() {
            return Err(refused(mount, "a mount inside the rootfs is not supported"));
        }
        let kind = kind(mount);
        // As mount(8) takes them: several in one word.
        let options = || mount.options.iter().flat_map(|options| options.split(','));
        let read_only = READ_ONLY.contains(&kind) || options().any(|option| option == "ro");
        let locate = |path: &str| match Path::new(path) {
            path if path.is_absolute() => HostDisk::locate(host, path, read_only),
            _ => Err(refused(mount, &format!("{path:?} is no absolute path"))),
        };
        let disk = locate(&mount.source)?;
        let mut further = Vec::new();
        for path in options().filter_map(|option| option.strip_prefix("device=")) {
            further.push(locate(path)?);
        }
        let of_the_file_system = |option: &&str| {
            // The guest has the image as a disk: no loop device is needed.
            *option != "loop" && !option.starts_with("device=") && !is_managers(option)
        };
        let storage = Storage {
            name: disk.storage_name(),
            fstype: kind.to_owned(),
            options: options().filter(of_the_file_system).map(str::to_owned).collect(),
            ..Storage::default()
        };
        self.store_on(storage.clone(), disk);
        for disk in further {
            let index = self.add(disk);
            if let Some((_, disks)) = self.storages.last_mut() {
                disks.push(index);
            }
        }
        Ok(storage)
    }
}

/// The type of a mount, without what was to be prepared for it.
pub(super) fn kind(mount: &Mount) -> &str {
    let mut kind = mount.type_.as_str();
    while let Some(rest) = PREPARED.iter().find_map(|prefix| kind.strip_prefix(prefix)) {
        kind = rest;
    }
    kind
}

/// Whether an option is no concern of whoever mounts it.
pub(super) fn is_managers(option: &str) -> bool {
    option.starts_with(MANAGERS)
}

pub(super) fn refused(mount: &Mount, reason: &str) -> VolumeError {
    VolumeError::Rootfs {
        from: mount.source.clone(),
        reason: reason.to_owned(),
    }
}

fn is_of_the_guest(mount: &Mount) -> bool {
    OF_THE_GUEST.contains(&kind(mount))
}
