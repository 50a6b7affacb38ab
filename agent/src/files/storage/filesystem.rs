//! Mounts one file system of the guest, and unmounts it so that all data is on its disk. Blocks.

use std::fs;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use protocol::agent::Storage;
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount, unmount as unmount_at,
};

use super::disk::DiskNode;
use super::error::StorageError;
use super::group;
use crate::guest::modules;

/// Mounts it at `place`, which is made. On several disks are file systems that take further ones as `device` (erofs).
pub(super) fn mount(storage: &Storage, disks: &[DiskNode], place: &Path) -> Result<(), StorageError> {
    let (attributes, parameters) = split(&storage.options);
    let source = disks
        .first()
        .map_or_else(|| storage.fstype.clone(), |disk| disk.path.display().to_string());
    let refused = |reason: String| StorageError::Mount {
        fstype: storage.fstype.clone(),
        source_name: source.clone(),
        options: storage.options.clone(),
        reason,
    };
    let context = fsopen(storage.fstype.as_str(), FsOpenFlags::FSOPEN_CLOEXEC).map_err(|errno| {
        refused(match errno {
            Errno::NODEV => format!("the guest's kernel has no such file system; it has {}", available()),
            other => other.to_string(),
        })
    })?;
    let explain = |errno: Errno| refused(complaint(&context).unwrap_or_else(|| reason(errno)));
    fsconfig_set_string(&context, "source", source.as_str()).map_err(explain)?;
    for parameter in parameters {
        match parameter.split_once('=') {
            Some((key, value)) => fsconfig_set_string(&context, key, value),
            None => fsconfig_set_flag(&context, parameter),
        }
        .map_err(explain)?;
    }
    for disk in disks.iter().skip(1) {
        fsconfig_set_string(&context, "device", &disk.path).map_err(explain)?;
    }
    fsconfig_create(&context).map_err(explain)?;
    let tree = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(explain)?;
    fs::create_dir_all(place).map_err(StorageError::io("create", place))?;
    let attached = move_mount(&tree, "", CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH);
    attached.map_err(StorageError::io("mount on", place))?;
    drop(tree);
    if let Some(group) = storage.group
        && let Err(error) = group::give(place, group, storage.group_on_mismatch)
    {
        // As it was: nobody has used it.
        let _ = unmount_at(place, UnmountFlags::NOFOLLOW);
        return Err(error);
    }
    Ok(())
}

/// Writes everything back and unmounts it. Its disk may be in use for a moment longer ([`DiskNode::settled`]).
pub(super) fn unmount(place: &Path) -> Result<(), StorageError> {
    let directory = File::open(place).map_err(StorageError::io("open", place))?;
    rustix::fs::syncfs(&directory).map_err(StorageError::io("write back", place))?;
    drop(directory);
    unmount_at(place, UnmountFlags::NOFOLLOW).map_err(StorageError::io("unmount", place))?;
    if let Err(error) = fs::remove_dir(place) {
        // The next one of this name is mounted on it.
        tracing::warn!(%error, place = %place.display(), "an unmounted storage's directory stays");
    }
    Ok(())
}

/// What an option says about the mount, and what about the file system (mount(8), "Filesystem-independent mount options").
fn split(options: &[String]) -> (MountAttrFlags, Vec<&str>) {
    let mut attributes = MountAttrFlags::empty();
    let mut parameters = Vec::new();
    for option in options.iter().flat_map(|option| option.split(',')) {
        match option {
            "nosuid" => attributes |= MountAttrFlags::MOUNT_ATTR_NOSUID,
            "nodev" => attributes |= MountAttrFlags::MOUNT_ATTR_NODEV,
            "noexec" => attributes |= MountAttrFlags::MOUNT_ATTR_NOEXEC,
            "noatime" => attributes |= MountAttrFlags::MOUNT_ATTR_NOATIME,
            "nodiratime" => attributes |= MountAttrFlags::MOUNT_ATTR_NODIRATIME,
            "strictatime" => attributes |= MountAttrFlags::MOUNT_ATTR_STRICTATIME,
            // What holds anyway.
            "" | "defaults" | "rw" | "suid" | "dev" | "exec" | "relatime" | "async" | "auto" | "nofail" | "_netdev" => {
            }
            other => parameters.push(other),
        }
    }
    (attributes, parameters)
}

/// What the file system has to say (fsopen's message buffer).
fn complaint(context: &OwnedFd) -> Option<String> {
    let mut text = vec![0; 1024];
    let length = rustix::io::read(context, &mut text).ok()?;
    let text = String::from_utf8_lossy(&text[..length]);
    text.strip_prefix("e ").map(|text| text.trim_end().to_owned())
}

fn reason(errno: Errno) -> String {
    match errno {
        Errno::INVAL => "the disk does not hold this file system, or an option is wrong".to_owned(),
        Errno::ROFS | Errno::ACCESS => "the disk is read-only and the file system is not mounted so".to_owned(),
        other => other.to_string(),
    }
}

/// The file systems that this kernel can mount from a disk, and those that it has as modules.
fn available() -> String {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    listed(&known, &modules::file_systems())
}

fn listed(known: &str, modules: &[String]) -> String {
    let on_disks = known.lines().filter_map(|line| line.strip_prefix('\t'));
    let mut names: Vec<&str> = on_disks.filter(|name| !name.starts_with("fuse")).collect();
    let loaded: Vec<&str> = known
        .lines()
        .filter_map(|line| line.split_whitespace().last())
        .collect();
    let more = modules.iter().map(String::as_str);
    names.extend(more.filter(|name| !loaded.contains(name)));
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_has_as_a_module_is_listed_whether_or_not_it_is_loaded() {
        let known = "nodev\tproc\n\text4\n\tfuseblk\n\txfs\nnodev\tnfs\n";
        let modules = ["xfs", "vfat", "nfs"].map(str::to_owned);
        assert_eq!(listed(known, &modules), "ext4, xfs, vfat");
    }

    #[test]
    fn options_of_the_mount_and_of_the_file_system_are_told_apart() {
        let options = ["ro,noatime", "nosuid", "discard", "data=ordered", "rw"].map(str::to_owned);
        let (attributes, parameters) = split(&options);
        assert_eq!(
            attributes,
            MountAttrFlags::MOUNT_ATTR_NOATIME | MountAttrFlags::MOUNT_ATTR_NOSUID
        );
        assert_eq!(parameters, ["ro", "discard", "data=ordered"]);
    }
}
