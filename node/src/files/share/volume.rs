//! Volumes as mounts: exports them, makes them writable and read-only again, removes them. The registry decides which
//! exist.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{MutexGuard, PoisonError};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::attach::{attach, io_error, unmount_below};
use super::error::ShareError;
use super::mirror::Original;
use super::registry::{Access, Exported, Inside, Piece, Place, Registry, View, VolumeId, join};
use super::{Attachment, SharedTree, access};
use crate::host::host_ns::HostTree;
use crate::host::mountinfo;
use crate::host::openat_beneath;
use crate::host::path_error::PathError;
use crate::spec::guest_spec::BindSource;
use lifecycle::id::ContainerId;

/// What makes two paths the same file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
    mode: u32,
}

impl Identity {
    pub(super) fn of(file: &OwnedFd) -> rustix::io::Result<Self> {
        let stat = rustix::fs::fstat(file)?;
        Ok(Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            mode: FileType::from_raw_mode(stat.st_mode).as_raw_mode(),
        })
    }

    pub(super) fn is_directory(self) -> bool {
        FileType::from_raw_mode(self.mode) == FileType::Directory
    }
}

/// A source that is to be exported.
pub(super) struct Source<'a> {
    pub(super) bind: &'a BindSource,
    pub(super) host: &'a HostTree,
    pub(super) writable: bool,
    /// What the host mounts below it later is to appear.
    pub(super) follows: bool,
    pub(super) inside: Inside,
}

/// A volume's place below the shared directory.
pub(super) fn place_of(volume: VolumeId) -> PathBuf {
    Path::new(protocol::VOLUMES).join(volume.to_string())
}

impl SharedTree {
    /// A clone of what a bind's source was placed at, by its path in the guest; none if that is not in a volume. The guest may have changed it since: no link
    /// is followed.
    ///
    /// # Errors
    /// It is not there, or the container has been detached meanwhile.
    pub fn clone_placed(
        &self,
        attachment: &Attachment,
        source: &Path,
        recursive: bool,
    ) -> Result<Option<OwnedFd>, ShareError> {
        let Ok(place) = source.strip_prefix(protocol::SHARE_MOUNTPOINT) else {
            return Ok(None);
        };
        if !place.starts_with(protocol::VOLUMES) {
            return Ok(None);
        }
        let mut flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        if recursive {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        // A file server may take its time: nothing is held meanwhile.
        let cloned = openat_beneath::open(&self.root, place).and_then(|opened| {
            let asked = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
            let mode = statx(&opened, "", asked, StatxFlags::TYPE)?.stx_mode;
            if FileType::from_raw_mode(mode.into()).is_symlink() {
                return Err(Errno::LOOP.into());
            }
            Ok(open_tree(&opened, "", flags)?)
        });
        let failed = |source| ShareError::from(PathError::new("clone", self.root.join(place), source));
        let cloned = cloned.map_err(failed)?;
        let _held = self.attachments.hold(attachment)?;
        Ok(Some(cloned))
    }

    pub(super) fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All mounts of all volumes.
    pub(super) fn pieces(&self) -> Result<Vec<Piece>, ShareError> {
        let volumes = self.root.join(protocol::VOLUMES);
        let mounts =
            mountinfo::below(&volumes).map_err(|source| PathError::new("list the mounts of", &volumes, source))?;
        let piece = |line: mountinfo::MountLine| {
            let inside = line.mountpoint.strip_prefix(&volumes).ok()?;
            let mut names = inside.components();
            let volume = names.next()?.as_os_str().to_str()?.parse().ok()?;
            Some(Piece {
                volume,
                at: names.as_path().to_owned(),
                of: Place {
                    device: line.device,
                    path: line.root,
                },
                read_only: line.read_only,
            })
        };
        Ok(mounts.into_iter().filter_map(piece).collect())
    }

    /// What is at a path in a volume; none if nothing is, or a link leads there.
    pub(super) fn identity(&self, view: &View) -> Option<Identity> {
        let opened = openat_beneath::open(&self.root.join(place_of(view.volume)), &view.at).ok()?;
        Identity::of(&opened).ok()
    }

    /// Whether two paths in volumes are the same file, whose path the guest can be told.
    pub(super) fn are_the_same(&self, one: &View, other: &View) -> bool {
        let identity = self.identity(one).filter(|_| one.at.to_str().is_some());
        identity.is_some() && identity == self.identity(other)
    }

    /// Mounts a source as a volume that `container` uses.
    pub(super) fn export(
        &self,
        registry: &mut Registry,
        container: &ContainerId,
        source: &Source<'_>,
        directory: bool,
    ) -> Result<VolumeId, ShareError> {
        let exported = Exported {
            access: if source.writable {
                Access::Writable
            } else {
                Access::ReadOnly
            },
            receives: source.follows,
            recursive: source.bind.recursive,
            inside: source.inside.clone(),
            id_map: source.bind.id_map.clone(),
        };
        let volume = registry.add(container, exported);
        let name = place_of(volume);
        let target = self.root.join(&name);
        if directory {
            self.make_directory(&name, true)?;
        } else {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            rustix::fs::openat(&self.backing, &name, flags, Mode::from_raw_mode(0o600))
                .map(File::from)
                .map_err(|errno| io_error("create", &target, errno))?;
        }
        if directory && source.follows {
            let original = Original {
                host: &self.host,
                tree: source.host,
                recursive: source.bind.recursive,
                can_be_cloned_again: source.bind.recursive
                    && source.bind.id_map.is_none()
                    && source.bind.overlay.is_none(),
            };
            self.mirrors.attach(volume, &original, &target, !source.writable)?;
        } else {
            attach(&source.host.tree, &target, !source.writable)?;
        }
        Ok(volume)
    }

    /// Lets the guest write to a volume that was read-only so far, and to what the host lets be written to inside it.
    /// `read_only`: what it has read-only there by now.
    pub(super) fn make_writable(
        &self,
        registry: &mut Registry,
        volume: VolumeId,
        read_only: Vec<Place>,
    ) -> Result<(), ShareError> {
        if registry.writable(volume) {
            return Ok(());
        }
        registry.set_access(volume, Access::Changing);
        let place = place_of(volume);
        let mut inside = registry.inside(volume);
        inside.read_only.extend(read_only);
        self.mirrors.set_writable(volume, true, &mut inside)?;
        access::set(&self.root, &place, true, &inside.into_lifted())
            .map_err(|source| PathError::new("make writable", self.root.join(place), source))?;
        registry.set_access(volume, Access::Writable);
        Ok(())
    }

    /// Takes a container's volumes from it, and removes those that nobody uses any longer.
    pub(super) fn leave(&self, container: &ContainerId) -> Result<(), ShareError> {
        let mut registry = self.registry();
        let mut failed = None;
        for volume in registry.leave(container) {
            match self.remove_volume(volume) {
                Ok(()) => registry.removed(volume),
                Err(error) => drop(failed.get_or_insert(error)),
            }
        }
        for volume in registry.idle_writable() {
            self.make_read_only(&mut registry, volume);
        }
        failed.map_or(Ok(()), Err)
    }

    fn remove_volume(&self, volume: VolumeId) -> Result<(), ShareError> {
        let place = place_of(volume);
        self.mirrors.forget(volume)?;
        unmount_below(&self.root.join(&place))?;
        self.remove(&place)
    }

    /// Nobody writes to it any longer. It is tried again when the next container goes: a file of it may be open still.
    fn make_read_only(&self, registry: &mut Registry, volume: VolumeId) {
        registry.set_access(volume, Access::Changing);
        let place = place_of(volume);
        let mirrors = self.mirrors.set_writable(volume, false, &mut Inside::default());
        let set = || access::set(&self.root, &place, false, &[]);
        match mirrors.map(|()| set()) {
            Ok(Ok(())) => registry.set_access(volume, Access::ReadOnly),
            Ok(Err(error)) => tracing::debug!(volume, %error, "a volume stays writable, be it in part, for now"),
            Err(error) => tracing::warn!(volume, %error, "a volume stays writable for now"),
        }
    }

    pub(super) fn guest_path(view: &View) -> PathBuf {
        join(
            &Path::new(protocol::SHARE_MOUNTPOINT).join(place_of(view.volume)),
            &view.at,
        )
    }
}
