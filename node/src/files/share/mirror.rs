//! Follows the host's mounts and unmounts below a source after the start.
//!
//! A mount that is a slave of the host's would follow by itself (mount_namespaces(7)). But `umount(2)` fails with EBUSY
//! as long as a slave's copy is in use, and virtiofsd keeps every file open that the guest knows. So the guest would
//! decide what the host may unmount. Therefore a source that receives mounts has two copies. The *replica* is the slave.
//! It is outside the shared directory, and nobody opens files in it. The guest gets a private copy, and a thread makes it
//! follow the replica. The kernel reports changes of the list of mounts (proc_pid_mounts(5), poll).
//!
//! The guest may rename directories and create links in the source at any moment. So the kernel never resolves a whole
//! path below a source by name: each path is opened without following links, and the result is checked by its mount's
//! number.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;

use base::chain;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};
use rustix::pipe::{PipeFlags, pipe_with};

use super::attach::{attach, harden, io_error, unmount_below};
use super::error::ShareError;
use super::registry::{Inside, Place, VolumeId};
use crate::host::host_ns::{HostNamespace, HostTree};
use crate::host::mountinfo::{self, MountLine};
use crate::host::openat_beneath;
use crate::host::path_error::PathError;
use crate::host::sys::{self, SetAttr};

/// The list of mounts is not read more often than this, whatever the host does: on a node with thousands of mounts that
/// are made and unmade all the time it is long.
const PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// How often a source is cloned again that the host changes at that moment.
const CLONES: usize = 5;

/// The sources of one sandbox that follow the host.
#[derive(Debug)]
pub(super) struct Mirrors {
    /// Where the replicas are.
    directory: PathBuf,
    followed: Arc<Mutex<Vec<Mirror>>>,
    /// The thread, once there is one: it ends when this is closed.
    thread: Mutex<Option<OwnedFd>>,
}

/// A source with its replica, and the copy that follows it.
#[derive(Debug)]
struct Mirror {
    volume: VolumeId,
    /// A slave of the host's mount.
    replica: PathBuf,
    /// The number of the replica's own mount.
    replica_id: u64,
    /// The tree that the guest sees.
    copy: PathBuf,
    read_only: bool,
    /// What is mounted below the replica, by its place there, and its copy.
    copied: BTreeMap<PathBuf, Copied>,
}

/// The numbers of a mount below the replica and of its copy.
#[derive(Debug, Clone, Copy)]
struct Copied {
    original: u64,
    copy: u64,
}

/// A source on the host that is to be followed.
pub(super) struct Original<'a> {
    pub(super) host: &'a HostNamespace,
    pub(super) tree: &'a HostTree,
    /// Includes the mounts below it.
    pub(super) recursive: bool,
    /// Nothing was done to the clone, and it is of what is at its path.
    pub(super) can_be_cloned_again: bool,
}

impl Original<'_> {
    /// Whether the host has something mounted below the source that the replica lacks.
    fn has_more_than(&self, replica: &Path) -> Result<bool, ShareError> {
        let unlisted = |source| PathError::new("list the mounts of", &self.tree.path, source);
        let on_host = self.host.run(mountinfo::read).map_err(io::Error::other);
        let on_host = on_host.and_then(|read| read).map_err(unlisted)?;
        // Later than the host's: what comes in between is no difference.
        let copied = mountinfo::below(replica).map_err(unlisted)?;
        let Some(top) = copied.first() else { return Ok(false) };
        let mut copied = below(&copied, top.id, replica);
        let missing = below(&on_host, self.tree.mount, &self.tree.path)
            .into_iter()
            .find(|mounted| {
                let same = copied.iter().position(|copy| copy == mounted);
                same.map(|same| copied.swap_remove(same)).is_none()
            });
        if let Some(Place { path, .. }) = &missing {
            tracing::debug!(source = %self.tree.path.display(), mount = %path.display(), "it came while the source was cloned");
        }
        Ok(missing.is_some())
    }
}

/// What is mounted below a mount, seen from `path` down, that a clone would have: its place there, and its file system.
fn below(lines: &[MountLine], mount: u64, path: &Path) -> Vec<Place> {
    let mut above = BTreeSet::from([mount]);
    let mut found = Vec::new();
    // Not in the order in which they were made if one has been moved.
    loop {
        let before = above.len();
        for line in lines {
            let Ok(place) = line.mountpoint.strip_prefix(path) else {
                continue;
            };
            if !line.unbindable && above.contains(&line.parent) && above.insert(line.id) {
                found.push(Place {
                    device: line.device,
                    path: place.to_owned(),
                });
            }
        }
        if above.len() == before {
            return found;
        }
    }
}

impl Mirrors {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            followed: Arc::default(),
            thread: Mutex::default(),
        }
    }

    /// A directory in which nobody opens anything.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Attaches the tree at `target` as a volume, and keeps it like the host's mount if that ever passes a mount on.
    pub(super) fn attach(
        &self,
        volume: VolumeId,
        original: &Original<'_>,
        target: &Path,
        read_only: bool,
    ) -> Result<(), ShareError> {
        let recursive = original.recursive;
        let replica = self.replicate(volume, original)?;
        let mounts = mountinfo::below(&replica).map_err(|source| self.unlisted(source))?;
        let own = mounts.first().map(|line| line.id);
        let receives = mounts.iter().any(|line| line.receives);
        let clone =
            clone_tree(CWD, &replica, recursive && !receives).map_err(|errno| io_error("clone", &replica, errno))?;
        attach(&clone, target, read_only)?;
        let Some(replica_id) = own.filter(|_| receives) else {
            // Nothing will ever come from the host: the replica has no use.
            return remove_replica(replica);
        };
        self.add(Mirror {
            volume,
            replica,
            replica_id,
            copy: target.to_owned(),
            read_only,
            copied: BTreeMap::new(),
        })
    }

    /// What is mounted in a volume from now on can be written to or not. Adds what the host has mounted in it since.
    pub(super) fn set_writable(&self, volume: VolumeId, writable: bool, inside: &mut Inside) -> Result<(), ShareError> {
        let mut followed = self.lock();
        for mirror in followed.iter_mut().filter(|mirror| mirror.volume == volume) {
            mirror.read_only = !writable;
            let mounts = mountinfo::below(&mirror.replica).map_err(|source| self.unlisted(source))?;
            for line in mounts.into_iter().filter(|line| line.id != mirror.replica_id) {
                let read_only = line.read_only;
                inside.add(Place::of(line), read_only);
            }
        }
        Ok(())
    }

    fn unlisted(&self, source: io::Error) -> ShareError {
        PathError::new("list the mounts of", &self.directory, source).into()
    }

    fn add(&self, mut mirror: Mirror) -> Result<(), ShareError> {
        self.start_thread()
            .map_err(|source| PathError::new("watch the mounts of", &mirror.replica, source))?;
        // Read with the lock held: what comes later finds the mirror in the thread's hands.
        let mut followed = self.lock();
        mirror.follow(&mountinfo::read().map_err(|source| self.unlisted(source))?);
        followed.push(mirror);
        Ok(())
    }

    /// Mounts a clone of the source that has all that the host has mounted below it.
    ///
    /// A clone that is attached to nothing gets none of the host's mounts (fs/pnode.c, propagate_one). So what the host
    /// mounts between the clone and its attachment is missing, and the clone is made again.
    fn replicate(&self, volume: VolumeId, original: &Original<'_>) -> Result<PathBuf, ShareError> {
        let mut replica = self.place_replica(volume, &original.tree.tree)?;
        for _ in 0..CLONES {
            if !original.can_be_cloned_again || !original.has_more_than(&replica)? {
                break;
            }
            let path = &original.tree.path;
            let again = original.host.find_tree(path, true).map_err(io::Error::other);
            let again = again.map_err(|source| PathError::new("clone", path, source))?;
            if again.mount != original.tree.mount {
                // The host has mounted over the source: what was asked for is below.
                break;
            }
            remove_replica(replica)?;
            replica = self.place_replica(volume, &again.tree)?;
        }
        Ok(replica)
    }

    /// Mounts the tree as a slave of what it was cloned from.
    fn place_replica(&self, volume: VolumeId, tree: &OwnedFd) -> Result<PathBuf, ShareError> {
        let replica = self.directory.join(volume.to_string());
        let failed = |operation, source| ShareError::from(PathError::new(operation, &replica, source));
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&replica)
            .map_err(|source| failed("create", source))?;
        let slave = sys::mount_setattr(std::os::fd::AsFd::as_fd(tree), SetAttr::SlaveRecursive);
        slave.map_err(|source| failed("make a slave of", source))?;
        move_mount(tree, "", CWD, &replica, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(|errno| failed("mount on", errno.into()))?;
        Ok(replica)
    }

    /// Forgets a volume's sources and removes their replicas. May be called again, and for one that has none.
    pub(super) fn forget(&self, volume: VolumeId) -> Result<(), ShareError> {
        self.lock().retain(|mirror| mirror.volume != volume);
        let replica = self.directory.join(volume.to_string());
        match replica.exists() {
            true => remove_replica(replica),
            false => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Mirror>> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start_thread(&self) -> io::Result<()> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_none() {
            let (stopped, stop) = pipe_with(PipeFlags::CLOEXEC)?;
            let mountinfo = File::open("/proc/thread-self/mountinfo")?;
            let followed = Arc::downgrade(&self.followed);
            thread::Builder::new()
                .name("mirrors".to_owned())
                .spawn(move || run(&mountinfo, &stopped, &followed))?;
            *thread = Some(stop);
        }
        Ok(())
    }
}

fn remove_replica(replica: PathBuf) -> Result<(), ShareError> {
    unmount_below(&replica)?;
    // If something is mounted there still it must stay.
    fs::remove_dir(&replica).map_err(|source| ShareError::from(PathError::new("remove", replica, source)))
}

/// Follows until `stopped` has no writer any more.
fn run(mountinfo: &File, stopped: &OwnedFd, followed: &Weak<Mutex<Vec<Mirror>>>) {
    let stop = || PollFd::new(stopped, PollFlags::IN);
    loop {
        let mut waiting = [stop(), PollFd::new(mountinfo, PollFlags::PRI | PollFlags::ERR)];
        match poll(&mut waiting, None) {
            Err(Errno::INTR) => continue,
            Err(error) => {
                tracing::error!(%error, "what the host mounts from now on does not reach the containers");
                return;
            }
            Ok(_) => {}
        }
        let (true, Some(followed)) = (waiting[0].revents().is_empty(), followed.upgrade()) else {
            return;
        };
        match mountinfo::read() {
            Ok(mounts) => {
                let mut followed = followed.lock().unwrap_or_else(PoisonError::into_inner);
                followed.iter_mut().for_each(|mirror| mirror.follow(&mounts));
            }
            Err(error) => tracing::warn!(%error, "cannot list the mounts"),
        }
        // A pause that the end interrupts; how it ended shows above.
        let _ = poll(&mut [stop()], Some(&PAUSE));
    }
}

impl Mirror {
    /// Makes the copy like the replica. What cannot be done is logged, and tried again when the list changes.
    fn follow(&mut self, mounts: &[MountLine]) {
        let originals: BTreeMap<PathBuf, u64> = mounts
            .iter()
            .filter(|line| line.id != self.replica_id)
            .filter_map(|line| Some((line.mountpoint.strip_prefix(&self.replica).ok()?.to_owned(), line.id)))
            .collect();
        let mut copied = std::mem::take(&mut self.copied);
        // What is below goes first.
        let gone: Vec<PathBuf> = copied
            .iter()
            .rev()
            .filter(|(place, copied)| originals.get(*place) != Some(&copied.original))
            .map(|(place, _)| place.clone())
            .collect();
        for place in gone {
            let done = copied
                .get(&place)
                .map_or(Ok(()), |copied| self.remove(mounts, copied.copy));
            match done {
                Ok(()) => drop(copied.remove(&place)),
                Err(error) => self.failed("unmount", &place, &error),
            }
        }
        // What is above comes first.
        for (place, original) in originals {
            if copied.contains_key(&place) {
                continue;
            }
            match self.add(&place, original) {
                Ok(copy) => drop(copied.insert(place, Copied { original, copy })),
                Err(error) => self.failed("mount", &place, &error),
            }
        }
        self.copied = copied;
    }

    fn failed(&self, operation: &str, place: &Path, error: &io::Error) {
        let (volume, place) = (self.volume, place.display());
        tracing::warn!(volume, %place, error = chain(error), "cannot {operation} what the host does");
    }

    /// Copies one mount. The answer is the copy's number.
    fn add(&self, place: &Path, original: u64) -> io::Result<u64> {
        let found = openat_beneath::open(&self.replica, place)?;
        if mount_id(&found)? != original {
            return Err(io::Error::other("it has been moved meanwhile"));
        }
        let tree = clone_tree(&found, Path::new(""), false)?;
        harden(&tree, self.read_only)?;
        // Before anybody sees the copy: what is open in the replica, even for this moment, makes the host's unmount EBUSY.
        drop(found);
        let target = openat_beneath::open(&self.copy, place)?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(&tree, "", &target, "", flags)?;
        mount_id(&tree)
    }

    /// Takes one copy away, wherever the guest has moved it to.
    fn remove(&self, mounts: &[MountLine], copy: u64) -> io::Result<()> {
        let Some(line) = mounts.iter().find(|line| line.id == copy) else {
            return Ok(());
        };
        let place = line.mountpoint.strip_prefix(&self.copy).map_err(io::Error::other)?;
        let found = openat_beneath::open(&self.copy, place)?;
        if mount_id(&found)? != copy {
            return Err(io::Error::other("it has been moved meanwhile"));
        }
        // The only way to unmount what a descriptor stands for.
        Ok(unmount(openat_beneath::name_of(&found), UnmountFlags::DETACH)?)
    }
}

pub(super) fn mount_id(file: &OwnedFd) -> io::Result<u64> {
    Ok(statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?.stx_mnt_id)
}

fn clone_tree(directory: impl std::os::fd::AsFd, path: &Path, recursive: bool) -> rustix::io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(directory, path, flags)
}

#[cfg(test)]
mod tests {
    use super::super::SharedTree;
    use super::super::tests::{attach_bind, bind, in_namespace, shared};
    use super::super::volume::{Source, place_of};
    use super::*;
    use lifecycle::id::ContainerId;
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
    use std::time::{Duration, Instant};

    fn tmpfs(path: &Path) {
        mount("tmpfs", path, "tmpfs", MountFlags::empty(), None).unwrap();
    }

    /// A source on the host that passes mounts on, with a directory `sub`.
    fn shared_source(tree: &SharedTree, directory: &Path) -> PathBuf {
        let source = directory.join("source");
        fs::create_dir(&source).unwrap();
        let path = source.clone();
        tree.host
            .run(move || {
                tmpfs(&path);
                mount_change(&path, MountPropagationFlags::SHARED).unwrap();
                fs::create_dir_all(path.join("a/sub")).unwrap();
            })
            .unwrap();
        source
    }

    fn on_host(tree: &SharedTree, path: PathBuf, job: impl FnOnce(&Path) + Send + 'static) {
        tree.host.run(move || job(&path)).unwrap();
    }

    /// Waits for the thread; nothing else tells that it is done.
    fn until(what: &str, condition: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !condition() {
            assert!(Instant::now() < deadline, "{what} does not come");
            thread::yield_now();
        }
    }

    #[test]
    fn what_the_host_mounts_later_comes_and_goes_even_if_it_is_in_use() {
        in_namespace(|tree, directory| {
            let id = ContainerId::new("c").unwrap();
            let source = shared_source(tree, directory);
            let copy = shared(tree, &attach_bind(tree, &id, &bind(&source, true)).unwrap());
            on_host(tree, source.join("a/sub"), |sub| {
                tmpfs(sub);
                fs::write(sub.join("file"), "later").unwrap();
                fs::create_dir(sub.join("deep")).unwrap();
                tmpfs(&sub.join("deep"));
                fs::write(sub.join("deep/file"), "deeper").unwrap();
            });
            until("the mount", || copy.join("a/sub/deep/file").exists());
            let error = fs::write(copy.join("a/sub/file"), "").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
            // As virtiofsd has it.
            let used = File::open(copy.join("a/sub/deep/file")).unwrap();
            on_host(tree, source.join("a/sub"), |sub| {
                unmount(sub.join("deep"), UnmountFlags::empty()).unwrap();
                unmount(sub, UnmountFlags::empty()).unwrap();
            });
            until("its end", || !copy.join("a/sub/file").exists());
            drop(used);
            tree.detach(&id).unwrap();
            tree.detach(&id).unwrap();
            assert!(!copy.exists());
        });
    }

    #[test]
    fn what_is_mounted_at_the_start_is_there_at_once_and_what_covers_the_source_later_covers_it() {
        in_namespace(|tree, directory| {
            let id = ContainerId::new("c").unwrap();
            let source = shared_source(tree, directory);
            on_host(tree, source.join("a/sub"), |sub| {
                tmpfs(sub);
                fs::write(sub.join("file"), "").unwrap();
            });
            let copy = shared(tree, &attach_bind(tree, &id, &bind(&source.join("a"), false)).unwrap());
            assert!(copy.join("sub/file").exists());
            on_host(tree, source.join("a"), |covered| {
                tmpfs(covered);
                fs::write(covered.join("over"), "").unwrap();
            });
            until("the cover", || copy.join("over").exists());
            on_host(tree, source.join("a"), |covered| {
                unmount(covered, UnmountFlags::empty()).unwrap()
            });
            until("its end", || copy.join("sub/file").exists());
            tree.detach(&id).unwrap();
        });
    }

    #[test]
    fn a_link_that_the_guest_makes_leads_nowhere() {
        in_namespace(|tree, directory| {
            let id = ContainerId::new("c").unwrap();
            let source = shared_source(tree, directory);
            let copy = shared(tree, &attach_bind(tree, &id, &bind(&source, false)).unwrap());
            let target = directory.join("target");
            fs::create_dir_all(target.join("sub")).unwrap();
            // In the source itself the mount's directory has been moved, and a link leads elsewhere from its place.
            let (link, seen) = (copy.join("a"), target.clone());
            on_host(tree, source.join("a/sub"), move |sub| {
                let parent = sub.parent().unwrap();
                fs::rename(parent, parent.with_extension("moved")).unwrap();
                std::os::unix::fs::symlink(&seen, parent).unwrap();
                tmpfs(&parent.with_extension("moved").join("sub"));
            });
            until("the mount", || {
                mountinfo::below(&copy.join("a.moved/sub")).unwrap().len() == 1
            });
            assert!(link.is_symlink());
            assert!(mountinfo::below(&target).unwrap().is_empty());
            assert!(openat_beneath::open(&copy, Path::new("a/sub")).is_err());
            tree.detach(&id).unwrap();
        });
    }

    #[test]
    fn what_the_host_mounts_while_the_source_is_cloned_is_not_lost() {
        in_namespace(|tree, directory| {
            let id = ContainerId::new("c").unwrap();
            let source = shared_source(tree, directory);
            on_host(tree, source.join("a"), |above| {
                tmpfs(above);
                fs::create_dir(above.join("sub")).unwrap();
            });
            let found = tree.host.find_tree(&source, true).unwrap();
            // The clone exists, and is attached to nothing yet.
            on_host(tree, source.join("a/sub"), |sub| {
                tmpfs(sub);
                fs::write(sub.join("file"), "").unwrap();
            });
            let bind = bind(&source, false);
            let exported = Source {
                bind: &bind,
                host: &found,
                writable: true,
                follows: true,
                inside: Inside::default(),
            };
            let volume = tree.export(&mut tree.registry(), &id, &exported, true).unwrap();
            let copy = tree.root().join(place_of(volume));
            assert!(copy.join("a/sub/file").exists());
            on_host(tree, source.join("a/sub"), |sub| {
                unmount(sub, UnmountFlags::empty()).unwrap()
            });
            until("its end", || !copy.join("a/sub/file").exists());
            tree.detach(&id).unwrap();
        });
    }

    #[test]
    fn a_private_source_has_no_replica_and_takes_nothing() {
        in_namespace(|tree, directory| {
            let id = ContainerId::new("c").unwrap();
            let source = shared_source(tree, directory);
            let mut private = bind(&source, false);
            private.receives = false;
            attach_bind(tree, &id, &private).unwrap();
            // A directory on a mount that passes nothing on.
            let plain = directory.join("plain");
            fs::create_dir(&plain).unwrap();
            attach_bind(tree, &id, &bind(&plain, false)).unwrap();
            assert!(tree.mirrors.lock().is_empty());
            on_host(tree, source.join("a/sub"), tmpfs);
            let copies = mountinfo::below(&tree.root().join(protocol::VOLUMES)).unwrap();
            assert_eq!(copies.len(), 2);
            tree.detach(&id).unwrap();
        });
    }
}
