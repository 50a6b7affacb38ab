//! A rootfs that is a file system on a block device or in a raw image, as containerd's devmapper and blockfile
//! snapshotters send it.

use std::path::Path;

use containerd_shim_protos::types::mount::Mount;
use protocol::agent::Storage;

use super::disk::HostDisk;
use super::{VolumeError, Volumes, guest_path};
use crate::host_ns::HostNamespace;

/// File systems that the guest mounts from a disk. All others are mounted by the host and shared.
const OF_THE_GUEST: [&str; 6] = ["ext2", "ext3", "ext4", "xfs", "squashfs", "erofs"];

impl Volumes {
    /// Takes the rootfs if it is on a disk.
    pub(super) fn rootfs(&mut self, mounts: &[Mount], host: &HostNamespace) -> Result<(), VolumeError> {
        let Some(mount) = mounts.iter().find(|mount| OF_THE_GUEST.contains(&mount.type_.as_str())) else {
            return Ok(());
        };
        let refused = |reason: &str| VolumeError::Rootfs {
            from: mount.source.clone(),
            reason: reason.to_owned(),
        };
        if mounts.len() > 1 {
            let reason = "it is one of several layers; a rootfs of which a part is on a block device is not supported";
            return Err(refused(reason));
        }
        if !mount.target.is_empty() {
            return Err(refused("a mount inside the rootfs is not supported"));
        }
        if !Path::new(&mount.source).is_absolute() {
            return Err(refused("it names no absolute path"));
        }
        let read_only = mount.options.iter().any(|option| option == "ro");
        let disk = HostDisk::locate(host, Path::new(&mount.source), read_only)?;
        let storage = Storage {
            name: disk.storage_name(),
            fstype: mount.type_.clone(),
            // The guest has the image as a disk: no loop device is needed.
            options: mount
                .options
                .iter()
                .filter(|option| *option != "loop")
                .cloned()
                .collect(),
            ..Storage::default()
        };
        self.rootfs = Some(guest_path(&storage));
        self.store_on(storage, disk);
        Ok(())
    }
}
