//! The sources of a container's bind mounts.

use std::collections::HashSet;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, FsWord, Mode, OFlags, StatVfsMountFlags};

use super::{Attachment, ShareError, SharedTree, attach, io_error};
use crate::guest_spec::{BindSource, HostOptions};
use crate::host_ns::HostTree;
use crate::mountinfo::{self, MountLine};
use crate::path_error::PathError;

/// File systems in which a kernel shows itself (statfs(2)): proc, sysfs, and what is mounted below the latter to change a
/// kernel by: debugfs, tracefs, securityfs, configfs, efivarfs, pstore.
const OF_A_KERNEL: [FsWord; 8] = [
    0x9fa0,
    0x6265_6572,
    0x6462_6720,
    0x7472_6163,
    0x7363_6673,
    0x6265_6570,
    0xde5e_81e4,
    0x6165_676c,
];

/// The host's mounts through which a later mount could arrive, by their numbers: each that is shared or a slave, and each
/// that such a one is mounted on, however far above.
#[derive(Debug, Default)]
pub struct Propagating(HashSet<u64>);

impl Propagating {
    fn of(mounts: &[MountLine]) -> Self {
        let mut found = HashSet::new();
        // Listed in the order in which they were made, so that a parent comes before its children, but for what was moved.
        for mount in mounts.iter().rev() {
            if mount.shared || mount.receives || found.contains(&mount.id) {
                found.extend([mount.id, mount.parent]);
            }
        }
        Self(found)
    }
}

impl SharedTree {
    /// Looks at the host's mounts, for any number of [`SharedTree::attach_bind`].
    ///
    /// # Errors
    /// They cannot be listed.
    pub fn propagating(&self) -> Result<Propagating, ShareError> {
        let listed = self.host.run(mountinfo::read).map_err(io::Error::other).flatten();
        let mounts = listed.map_err(|source| PathError::new("list the host's mounts of", "/", source))?;
        Ok(Propagating::of(&mounts))
    }

    /// Mounts the source of one bind mount, where the spec for the guest expects it. The answer is what the mount on the
    /// host does not allow, which holds in the guest as well.
    ///
    /// A symbolic link is resolved by the host. One that leads to a directory of the host's kernel is refused: `/proc` and
    /// `/sys` by their names are the guest's own ([`crate::guest_spec`]), and by another name they would be the host's. A single
    /// file of it, such as `/etc/mtab` leads to, is read-only whatever is asked for.
    ///
    /// With `read_only` the mount on the host is read-only, too, with all that
    /// is mounted below it: the guest's kernel knows one attribute for a mount and what it finds below (submounts of
    /// virtio-fs), and a guest that does not keep to it must not gain by that.
    ///
    /// # Errors
    /// The source does not exist, is the host's kernel's, or cannot be mounted. What was begun is undone by [`SharedTree::detach`].
    pub fn attach_bind(
        &self,
        attachment: &Attachment,
        bind: &BindSource,
        propagating: &Propagating,
    ) -> Result<HostOptions, ShareError> {
        let HostTree { tree, mount } =
            self.host
                .find_tree(&bind.source, bind.recursive)
                .map_err(|error| ShareError::Bind {
                    bind: bind.source.clone(),
                    destination: bind.destination.clone(),
                    source: Box::new(error),
                })?;
        let examine = |errno| io_error("examine", &bind.source, errno);
        let mut options = host_options(&tree).map_err(examine)?;
        let stat = rustix::fs::fstat(&tree).map_err(examine)?;
        let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let kernels = OF_A_KERNEL.contains(&rustix::fs::fstatfs(&tree).map_err(examine)?.f_type);
        if kernels && directory {
            return Err(ShareError::Kernels {
                bind: bind.source.clone(),
                destination: bind.destination.clone(),
            });
        }
        options.read_only |= kernels;
        let _held = self.attachments.hold(attachment)?;
        let container = &attachment.container;
        self.make_directory(container.as_str(), false)?;
        self.make_directory(&format!("{container}/mounts"), false)?;
        let name = format!("{container}/mounts/{}", bind.number);
        let target = self.root.join(&name);
        if directory {
            self.make_directory(&name, true)?;
            if bind.receives && propagating.0.contains(&mount) {
                self.mirrors.attach(container, bind, &tree, &target)?;
                return Ok(options);
            }
        } else {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            rustix::fs::openat(&self.backing, &name, flags, Mode::from_raw_mode(0o600))
                .map_err(|errno| io_error("create", &target, errno))?;
        }
        attach(&tree, &target, bind.read_only || kernels)?;
        Ok(options)
    }
}

fn host_options(tree: &OwnedFd) -> rustix::io::Result<HostOptions> {
    let flags = rustix::fs::fstatvfs(tree)?.f_flag;
    Ok(HostOptions {
        read_only: flags.contains(StatVfsMountFlags::RDONLY),
        nosuid: flags.contains(StatVfsMountFlags::NOSUID),
        nodev: flags.contains(StatVfsMountFlags::NODEV),
        noexec: flags.contains(StatVfsMountFlags::NOEXEC),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_that_passes_nothing_on_itself_may_have_one_below_that_does() {
        let line = |id, parent, shared, receives| MountLine {
            id,
            parent,
            mountpoint: "/".into(),
            receives,
            shared,
            kind: String::new(),
            super_options: String::new(),
        };
        let mounts = [
            line(1, 0, false, false),
            line(2, 1, false, false),
            line(3, 2, true, false),
            line(4, 1, false, false),
            line(5, 4, false, true),
            line(6, 1, false, false),
        ];
        let mut found: Vec<u64> = Propagating::of(&mounts).0.into_iter().collect();
        found.sort_unstable();
        assert_eq!(found, [0, 1, 2, 3, 4, 5]);
    }
}
