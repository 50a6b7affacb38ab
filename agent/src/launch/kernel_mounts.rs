//! File systems in which the guest's kernel shows itself, at the places where a node has them mounted.
//!
//! The guest mounts none of them at its start: each is mounted when a container binds something of it (`-v /sys/fs/bpf:/sys/fs/bpf`). All
//! containers of the pod find the same one there, as they would on a node.

use std::{io, path::Path};

use rustix::fs::{FlockOperation, flock};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use super::tree;

/// Place, type and magic number (statfs(2)) of each.
const KNOWN: [(&str, &str, i64); 10] = [
    ("/sys/fs/bpf", "bpf", 0xcafe_4a11),
    ("/sys/kernel/debug", "debugfs", 0x6462_6720),
    ("/sys/kernel/tracing", "tracefs", 0x7472_6163),
    ("/sys/kernel/security", "securityfs", 0x7363_6673),
    ("/sys/kernel/config", "configfs", 0x6265_6570),
    ("/sys/fs/fuse/connections", "fusectl", 0x6573_5543),
    ("/sys/fs/pstore", "pstore", 0x6165_676c),
    ("/proc/sys/fs/binfmt_misc", "binfmt_misc", 0x4249_4e4d),
    ("/dev/mqueue", "mqueue", 0x1980_0202),
    ("/dev/hugepages", "hugetlbfs", 0x9584_58f6),
];

/// Mounts in the calling process's mount namespace what a bind of `source` is to show: the file system that it is in, and, if it is
/// `recursive`, those below it as far as this kernel has them.
///
/// # Errors
/// The one that it is in cannot be mounted: this kernel does not have it.
pub(super) fn make(source: &Path, recursive: bool) -> io::Result<()> {
    for (place, kind, magic) in KNOWN {
        let place = Path::new(place);
        if source.starts_with(place) {
            mount(place, kind, magic).map_err(|why| {
                io::Error::new(
                    why.kind(),
                    format!("the guest's kernel has no {kind} for {}: {why}", place.display()),
                )
            })?;
        } else if recursive && source.starts_with("/sys") && place.starts_with(source) {
            // Not asked for by name: what is not to be had is not there.
            let _ = mount(place, kind, magic);
        }
    }
    Ok(())
}

fn mount(place: &Path, kind: &str, magic: i64) -> io::Result<()> {
    // Those below /sys and /proc have a directory if the kernel has the file system.
    if place.starts_with("/dev")
        && let Err(error) = std::fs::create_dir(place)
        && error.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(error);
    }
    // Of two containers that are made at once one mounts it, and the other one finds it.
    let parent = std::fs::File::open(place.parent().unwrap_or(place))?;
    flock(&parent, FlockOperation::LockExclusive)?;
    if tree::magic(std::fs::File::open(place)?)? == magic {
        return Ok(());
    }
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let mounted = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes())?;
    tree::attach_at(&mounted, place)
}

/// As systemd mounts them.
fn attributes() -> MountAttrFlags {
    MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_file_system_of_a_kernel_is_left_alone() {
        for source in ["/srv/data", "/sys", "/dev/null", "/sys/fs/bpfx"] {
            make(Path::new(source), false).unwrap();
        }
    }
}
