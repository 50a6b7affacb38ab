//! Volumes and roots of containers that the host shares. They are held while a container uses them, and released
//! afterwards. The host's changes of a volume are reported to the watchers in the guest.
//!
//! Each is a mount that the first lookup creates (submounts of virtio-fs). As long as it exists, the host's file system
//! is in use. So it is unmounted with its last user, and its name is looked up once more, so that the kernel notices that
//! the host does not share it any more. Reporting changes needs
//! `guest-kernel/patches/0200-fuse-tell-watchers-of-changes-on-the-host.patch`.

mod cover;
mod sys;

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use oci_spec::runtime::Spec;
use protocol::agent::{Cover, HostChange};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags, openat2, statx};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::ids::ContainerId;

/// How often a volume is opened that others unmount at the same time. The last time nobody else can.
const ATTEMPTS: usize = 3;

/// The volumes of the sandbox. Clones share them. All functions block.
#[derive(Debug, Clone, Default)]
pub(crate) struct Volumes(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    held: HashMap<u32, Volume>,
    /// Names that nobody uses any longer, and that the host has not been seen without.
    left: BTreeSet<PathBuf>,
}

#[derive(Debug)]
struct Volume {
    /// Its root, so that what is told reaches the very files that the containers have, whatever is mounted over them.
    root: Arc<OwnedFd>,
    users: BTreeSet<ContainerId>,
}

impl Volumes {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds what a specification binds. What cannot be opened is left to the launch, which says so.
    pub(crate) fn acquire(&self, container: &ContainerId, spec: &Spec) {
        self.look_for_what_is_gone();
        let sources = spec
            .mounts()
            .iter()
            .flatten()
            .filter_map(|mount| mount.source().as_deref());
        let volumes: BTreeSet<u32> = sources.filter_map(volume_of).collect();
        for volume in volumes {
            self.acquire_one(container, volume);
        }
    }

    fn acquire_one(&self, container: &ContainerId, volume: u32) {
        let place = place(volume);
        for attempt in 1..=ATTEMPTS {
            let mut table = self.table();
            if let Some(held) = table.held.get_mut(&volume) {
                held.users.insert(container.clone());
                return;
            }
            let root = if attempt == ATTEMPTS {
                hold(&place)
            } else {
                // The file server of the host may take its time, and nobody else is to wait for it.
                drop(table);
                let root = hold(&place);
                table = self.table();
                root
            };
            let Ok(root) = root else { return };
            if table.held.contains_key(&volume) || !is_mounted(&root, &place) {
                // Whoever was the last to use it has unmounted it meanwhile, or somebody else was faster.
                continue;
            }
            let new = Volume {
                root: Arc::new(root),
                users: BTreeSet::from([container.clone()]),
            };
            table.held.insert(volume, new);
            return;
        }
    }

    /// Shows a container that runs a volume in place of a part of one that it has for reading. The answer is whether it sees the volume. What cannot
    /// be done is logged: the container keeps what it has.
    pub(crate) fn cover(&self, container: &ContainerId, namespace: &OwnedFd, cover: &Cover) -> bool {
        let source = Path::new(&cover.source);
        let Some(volume) = volume_of(source) else { return false };
        let had = self.has(container, volume);
        self.acquire_one(container, volume);
        let covered = match cover::cover(namespace, Path::new(&cover.place), Path::new(&cover.shown), source) {
            Ok(covered) => {
                if !covered {
                    tracing::debug!(%container, place = cover.place, "something else is mounted there");
                }
                covered
            }
            Err(error) => {
                tracing::warn!(
                    %container, place = cover.place, %error,
                    "sockets and locks do not meet there: it is shown as it was before another container could write to it"
                );
                false
            }
        };
        if !covered && !had {
            self.release_one(container, volume);
        }
        covered
    }

    fn has(&self, container: &ContainerId, volume: u32) -> bool {
        let table = self.table();
        table
            .held
            .get(&volume)
            .is_some_and(|held| held.users.contains(container))
    }

    /// Lets go of one volume that a container uses.
    fn release_one(&self, container: &ContainerId, volume: u32) {
        let mut table = self.table();
        let Some(held) = table.held.get_mut(&volume) else {
            return;
        };
        held.users.remove(container);
        if held.users.is_empty() {
            table.held.remove(&volume);
            let place = place(volume);
            table.left.insert(place.clone());
            unmount_unused(&place);
        }
    }

    /// Lets go of what a container has used and nobody else uses. May be called again, and for one that has used nothing.
    pub(crate) fn release(&self, container: &ContainerId) {
        let mut unused = vec![Path::new(protocol::SHARE_MOUNTPOINT).join(container.as_str())];
        let mut table = self.table();
        table.held.retain(|volume, held| {
            if held.users.remove(container) && held.users.is_empty() {
                unused.push(place(*volume));
                return false;
            }
            true
        });
        table.left.extend(unused.iter().cloned());
        // With the lock held: who acquires it next finds it unmounted, and does not lose what it has mounted.
        unused[0].push("rootfs");
        unused.iter().for_each(|mount| unmount_unused(mount));
    }

    /// Looks once more for names that nobody uses: the kernel forgets what the host no longer has, which by itself it would
    /// do only for want of memory.
    fn look_for_what_is_gone(&self) {
        let left: Vec<PathBuf> = self.table().left.iter().cloned().collect();
        for path in left {
            if is_gone(&path) {
                self.table().left.remove(&path);
            }
        }
    }

    /// Tells one change. What is not there, or not any longer, has nobody who watches it.
    ///
    /// # Errors
    /// ENOTTY or ENOSYS: the kernel cannot.
    pub(crate) fn tell(&self, change: &HostChange) -> io::Result<()> {
        if change.mask == libc::IN_UNMOUNT {
            self.look_for_what_is_gone();
            return Ok(());
        }
        let source = self.table().held.get(&change.volume).map(|held| Arc::clone(&held.root));
        let Some(source) = source else {
            return Ok(());
        };
        let path = if change.directory.is_empty() {
            Path::new(".")
        } else {
            Path::new(OsStr::from_bytes(&change.directory))
        };
        let file = match beneath(&source, path, change.directory.is_empty()) {
            Ok(file) => file,
            Err(Errno::NOSYS) => return Err(Errno::NOSYS.into()),
            Err(_) => return Ok(()),
        };
        match sys::tell(&file, change.mask, change.cookie, &change.name) {
            Err(error) if unsupported(&error) => Err(error),
            Err(error) => {
                tracing::debug!(volume = change.volume, ?path, %error, "a change of the host's is not told");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }
}

/// Unmounts what nobody uses. To be called with the table's lock.
fn unmount_unused(mount: &Path) {
    match unmount(mount, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        // It is no mount, a file for one, or the container came to nothing.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
        Err(error) => tracing::warn!(mount = %mount.display(), %error, "what is not used stays mounted"),
    }
}

fn place(volume: u32) -> PathBuf {
    let volumes = Path::new(protocol::SHARE_MOUNTPOINT).join(protocol::VOLUMES);
    volumes.join(volume.to_string())
}

/// The volume that a path of the guest is in.
fn volume_of(path: &Path) -> Option<u32> {
    let volumes = path.strip_prefix(protocol::SHARE_MOUNTPOINT).ok()?;
    let inside = volumes.strip_prefix(protocol::VOLUMES).ok()?;
    inside.components().next()?.as_os_str().to_str()?.parse().ok()
}

/// Whether the host no longer has a name. It is asked, whatever the kernel believes.
fn is_gone(path: &Path) -> bool {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return true;
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    if let Ok(directory) = rustix::fs::open(directory, flags, Mode::empty()) {
        // A kernel without the patch believes it for as long as the cache mode says.
        let _ = sys::tell(&directory, libc::IN_DELETE, 0, name.as_bytes());
    }
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    matches!(statx(CWD, path, flags, StatxFlags::TYPE), Err(Errno::NOENT))
}

/// Whether the error means that this kernel is without the patch.
pub(crate) fn unsupported(error: &io::Error) -> bool {
    // virtiofsd answers an ioctl that it does not know with ENOSYS or ENOTTY.
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOTTY | Errno::NOSYS | Errno::OPNOTSUPP)
    )
}

/// Opens a mount's root as such: nothing is opened at the host.
fn hold(source: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    // A directory is a mount of its own that the first look at it mounts. O_PATH alone does not look (the kernel's
    // follow_automount), and what it gave would not be what the container has.
    match rustix::fs::open(source, flags | OFlags::DIRECTORY, Mode::empty()) {
        Err(Errno::NOTDIR) => rustix::fs::open(source, flags, Mode::empty()),
        held => held,
    }
}

/// Whether what is open is still what is mounted there. What is open keeps its mount's number from being given to another.
fn is_mounted(root: &OwnedFd, place: &Path) -> bool {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let there = statx(CWD, place, flags, StatxFlags::MNT_ID);
    let held = statx(root, "", flags | AtFlags::EMPTY_PATH, StatxFlags::MNT_ID);
    matches!((there, held), (Ok(there), Ok(held)) if there.stx_mnt_id == held.stx_mnt_id)
}

/// Opens a directory below a mount, or the mount's root, which can be a file.
fn beneath(source: &OwnedFd, path: &Path, root: bool) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    if root {
        // The same file once more, readable: "." does not exist in one that is no directory.
        let number = std::os::fd::AsRawFd::as_raw_fd(source);
        return rustix::fs::openat(CWD, format!("/proc/self/fd/{number}"), flags, Mode::empty());
    }
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    openat2(source, path, flags | OFlags::DIRECTORY, Mode::empty(), resolve)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

    #[test]
    fn what_others_have_unmounted_meanwhile_is_not_held() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let test = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
            let tmpfs = || mount("tmpfs", path, "tmpfs", MountFlags::empty(), None).unwrap();
            tmpfs();
            let held = hold(path).unwrap();
            assert!(is_mounted(&held, path));
            unmount(path, UnmountFlags::DETACH).unwrap();
            assert!(!is_mounted(&held, path));
            tmpfs();
            assert!(!is_mounted(&held, path));
            assert!(is_mounted(&hold(path).unwrap(), path));
        };
        std::thread::scope(|scope| scope.spawn(test).join().unwrap());
    }

    #[test]
    fn a_path_in_a_volume_leads_to_its_number_and_no_other_does() {
        let of = |path: &str| volume_of(Path::new(path));
        assert_eq!(of("/run/tatami/shared/.volumes/12"), Some(12));
        assert_eq!(of("/run/tatami/shared/.volumes/12/a/b"), Some(12));
        for other in [
            "/run/tatami/shared/.volumes",
            "/run/tatami/shared/c/rootfs",
            "/run/tatami/storage/12",
            "/12",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }
}
