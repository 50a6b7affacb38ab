//! The directory that virtiofsd serves, and the mounts below it.
//!
//! It contains `<container>/rootfs`, the file of the kernel's modules, what the guest itself is to have (`sandbox_bind_mounts`), programs that are run in the guest, and the sandbox's volumes, which are the sources of bind mounts, each
//! once. It is a separate mount in the shim's mount namespace, with shared propagation, so that virtiofsd sees later mounts. That mount
//! is read-only, so that the guest cannot put a symbolic link at the path of the next mount. The directories are created
//! through a descriptor of the directory below that mount. All functions block.

mod access;
mod apart;
mod attach;
mod attachment;
mod bind;
mod error;
mod id_map;
mod mirror;
mod modules;
mod overlay;
mod programs;
mod registry;
mod rootfs;
mod sandbox_mounts;
mod volume;

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount_bind, mount_change, move_mount, open_tree,
};

use crate::host::host_ns::HostNamespace;
use crate::host::path_error::PathError;
use crate::host::sys::{self, SetAttr};
use crate::run_dir::RunDir;
use attach::io_error;
use attachment::Attachments;
use lifecycle::id::ContainerId;
use mirror::Mirrors;
use registry::Registry;

pub use attach::unmount_below;
pub use attachment::Attachment;
pub use bind::AttachedBinds;
pub use error::ShareError;
pub use registry::VolumeId;
pub use rootfs::PreparedRootfs;

/// The shared directory of one sandbox.
#[derive(Debug, Clone)]
pub struct SharedTree {
    root: PathBuf,
    host: HostNamespace,
    /// The directory below the read-only mount.
    backing: Arc<OwnedFd>,
    /// Sources below which the host may mount something later.
    mirrors: Arc<Mirrors>,
    attachments: Arc<Attachments>,
    registry: Arc<Mutex<Registry>>,
}

/// Makes the directory for a sandbox that is not there yet, in the caller's mount namespace. The answer is a clone of its mount for
/// [`SharedTree::adopt`]: the two are peers, and what is mounted in one is mounted in the other (mount_namespaces(7)).
///
/// # Errors
/// It cannot be made or mounted.
pub fn prepare(run_dir: &RunDir) -> Result<OwnedFd, ShareError> {
    let root = run_dir.shared();
    mount_shared(&root)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(rustix::fs::CWD, &root, flags).map_err(|errno| io_error("clone", &root, errno))
}

/// Makes it, mounts it on itself, and gives the directory below that mount.
fn mount_shared(root: &Path) -> Result<OwnedFd, ShareError> {
    let error = |operation, source: io::Error| ShareError::from(PathError::new(operation, root, source));
    fs::create_dir(root).map_err(|source| error("create", source))?;
    let backing = open_directory(root)?;
    mount_bind(root, root).map_err(|errno| error("mount", errno.into()))?;
    // Private first: what the host does with /run has no business here.
    mount_change(root, MountPropagationFlags::PRIVATE).map_err(|errno| error("make private", errno.into()))?;
    mount_change(root, MountPropagationFlags::SHARED).map_err(|errno| error("make shared", errno.into()))?;
    let mounted = open_directory(root)?;
    sys::mount_setattr(mounted.as_fd(), SetAttr::ReadOnly).map_err(|source| error("make read-only", source))?;
    sys::mount_setattr(mounted.as_fd(), SetAttr::InertRecursive).map_err(|source| error("make inert", source))?;
    let volumes = rustix::fs::mkdirat(&backing, protocol::VOLUMES, Mode::from_raw_mode(0o700));
    volumes.map_err(|errno| io_error("create", &root.join(protocol::VOLUMES), errno))?;
    Ok(backing)
}

fn open_directory(path: &Path) -> Result<OwnedFd, ShareError> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| io_error("open", path, errno))
}

impl SharedTree {
    /// Makes the directory a mount of its own with shared propagation. The caller is in the shim's mount namespace.
    ///
    /// # Errors
    /// The directory cannot be made or mounted.
    pub fn new(run_dir: &RunDir, host: HostNamespace) -> Result<Self, ShareError> {
        let backing = mount_shared(&run_dir.shared())?;
        Ok(Self::of(run_dir, host, backing))
    }

    /// The directory that [`prepare`] has made in another mount namespace: mounts it in the caller's, which is the shim's.
    ///
    /// # Errors
    /// It cannot be mounted.
    pub fn adopt(run_dir: &RunDir, host: HostNamespace, shared: &OwnedFd) -> Result<Self, ShareError> {
        let root = run_dir.shared();
        let backing = open_directory(&root)?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(shared, "", rustix::fs::CWD, &root, flags).map_err(|errno| io_error("mount", &root, errno))?;
        Ok(Self::of(run_dir, host, backing))
    }

    fn of(run_dir: &RunDir, host: HostNamespace, backing: OwnedFd) -> Self {
        Self {
            root: run_dir.shared(),
            host,
            backing: Arc::new(backing),
            mirrors: Arc::new(Mirrors::new(run_dir.received())),
            attachments: Arc::default(),
            registry: Arc::default(),
        }
    }

    /// The directory on the host: what virtiofsd is to serve.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Begins to attach what a container needs.
    #[must_use]
    pub fn begin(&self, container: &ContainerId) -> Attachment {
        self.attachments.begin(container)
    }

    /// Keeps a container from being detached as long as the answer is held.
    ///
    /// # Errors
    /// It has been detached since it was begun.
    pub fn still_wanted(&self, attachment: &Attachment) -> Result<impl Sized + '_, ShareError> {
        self.attachments.hold(attachment)
    }

    /// Makes a directory below the shared one. `new`: it must not exist.
    fn make_directory(&self, name: &Path, new: bool) -> Result<(), ShareError> {
        match rustix::fs::mkdirat(&self.backing, name, Mode::from_raw_mode(0o700)) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) if !new => Ok(()),
            Err(errno) => Err(io_error("create", &self.root.join(name), errno)),
        }
    }

    /// The covers that were attached with a container are about to be sent to the guest: from now on it may have made them.
    pub fn covers_sent(&self, container: &ContainerId) {
        self.registry().covers_sent(container);
    }

    /// Which covers of those that were sent with a container the guest has made, in their order. To be called only if it has answered.
    pub fn covers_made(&self, container: &ContainerId, made: &[bool]) {
        self.registry().covers_made(container, made);
    }

    /// Unmounts and removes everything of a container, and the volumes that nobody uses any longer: the answer, with those of
    /// calls that have failed. May be called again, and for a container that never was.
    ///
    /// # Errors
    /// Something is still mounted or cannot be removed.
    pub fn detach(&self, container: &ContainerId) -> Result<Vec<VolumeId>, ShareError> {
        let _alone = self.attachments.end(container);
        let left = self.leave(container);
        let own = Path::new(container.as_str());
        unmount_below(&self.root.join(own))?;
        self.remove(&own.join("rootfs"))?;
        self.remove(own)?;
        left?;
        Ok(self.registry().take_gone())
    }

    /// Removes one file or empty directory: never more, for if something were still mounted there, the host's files
    /// would go.
    fn remove(&self, name: &Path) -> Result<(), ShareError> {
        let removed = match rustix::fs::unlinkat(&self.backing, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTDIR) => rustix::fs::unlinkat(&self.backing, name, AtFlags::empty()),
            removed => removed,
        };
        match removed {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(io_error("remove", &self.root.join(name), errno)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::mountinfo;
    use crate::spec::guest_spec::{BindSource, PlacedBind};
    use lifecycle::id::{Namespace, SandboxId};
    use std::thread;

    /// Runs the test in a mount namespace that ends with its thread; the host's is where the handle's thread is.
    pub(super) fn in_namespace(test: impl FnOnce(&SharedTree, &Path) + Send) {
        let directory = tempfile::tempdir().unwrap();
        let run_dir = RunDir::below(
            directory.path(),
            &Namespace::new("n").unwrap(),
            &SandboxId::new("pod").unwrap(),
        );
        run_dir.create().unwrap();
        thread::scope(|scope| {
            let enter = || {
                // HostNamespace::spawn leaves the mount namespace of the thread, which needs a file system view of
                // its own: unshare(CLONE_NEWNS) includes it. What the test takes for the host's is one of its own, too.
                sys::unshare_mount_namespace().unwrap();
                mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
                let tree = SharedTree::new(&run_dir, HostNamespace::spawn().unwrap()).unwrap();
                test(&tree, directory.path());
                unmount_below(tree.root()).unwrap();
            };
            scope.spawn(enter).join().unwrap();
        });
        run_dir.remove().unwrap();
    }

    pub(super) fn attach_bind(
        tree: &SharedTree,
        container: &ContainerId,
        bind: &BindSource,
    ) -> Result<PlacedBind, ShareError> {
        let attached = tree.attach_binds(&tree.begin(container), std::slice::from_ref(bind))?;
        Ok(attached.placed.into_iter().next().unwrap())
    }

    /// Where a source is on the host.
    pub(super) fn shared(tree: &SharedTree, placed: &PlacedBind) -> PathBuf {
        tree.root()
            .join(placed.source.strip_prefix(protocol::SHARE_MOUNTPOINT).unwrap())
    }

    pub(super) fn bind(source: &Path, read_only: bool) -> BindSource {
        BindSource {
            read_only,
            read_only_below: read_only,
            receives: true,
            ..BindSource::read_only(source, "/d")
        }
    }

    fn nothing_exported(tree: &SharedTree) -> bool {
        fs::read_dir(tree.root().join(protocol::VOLUMES)).unwrap().count() == 0
            && mountinfo::below(tree.root()).unwrap().len() == 1
    }

    #[test]
    fn no_link_leads_to_a_kernel_of_the_host_that_can_be_written_to() {
        in_namespace(|tree, directory| {
            let id = ContainerId::new("c").unwrap();
            for (number, target) in ["/proc", "/proc/sys/kernel", "/sys/kernel"].into_iter().enumerate() {
                let link = directory.join(number.to_string());
                std::os::unix::fs::symlink(target, &link).unwrap();
                let refused = attach_bind(tree, &id, &bind(&link, true)).unwrap_err().to_string();
                let expected = format!(
                    "cannot bind-mount {} on /d: it leads into the host's /proc or /sys",
                    link.display()
                );
                assert!(refused.starts_with(&expected), "{refused}");
            }
            // As /etc/mtab is on many a host.
            let link = directory.join("file");
            std::os::unix::fs::symlink("/proc/sys/kernel/hostname", &link).unwrap();
            let placed = attach_bind(tree, &id, &bind(&link, false)).unwrap();
            assert!(placed.options.read_only);
            let opened = fs::File::options().write(true).open(shared(tree, &placed));
            assert_eq!(opened.unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
            tree.detach(&id).unwrap();
        });
    }

    #[test]
    fn files_directories_and_links_are_attached_and_detached_twice() {
        in_namespace(|tree, directory| {
            let id = ContainerId::new("c").unwrap();
            let source = directory.join("source");
            fs::create_dir(&source).unwrap();
            fs::write(source.join("file"), "content").unwrap();
            std::os::unix::fs::symlink(&source, directory.join("link")).unwrap();
            let own = tree.root().join("c");
            tree.attach_rootfs(&tree.begin(&id), &[], &source).unwrap();
            let file = attach_bind(tree, &id, &bind(&source.join("file"), false)).unwrap();
            let link = attach_bind(tree, &id, &bind(&directory.join("link"), true)).unwrap();
            assert_eq!(fs::read_to_string(own.join("rootfs/file")).unwrap(), "content");
            assert_eq!(fs::read_to_string(shared(tree, &file)).unwrap(), "content");
            let error = fs::write(shared(tree, &link).join("new"), "").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
            fs::write(own.join("rootfs/new"), "").unwrap();
            assert_eq!(tree.detach(&id).unwrap(), [1, 2]);
            assert!(tree.detach(&id).unwrap().is_empty());
            assert!(!own.exists() && nothing_exported(tree));
            assert!(source.join("new").exists());
        });
    }

    /// What a createContainer hook is shown of a volume that another container changes.
    #[test]
    fn what_was_placed_is_cloned_and_no_link_that_has_taken_its_place_is_followed() {
        in_namespace(|tree, directory| {
            let (one, other) = (ContainerId::new("one").unwrap(), ContainerId::new("other").unwrap());
            let source = directory.join("source");
            fs::create_dir_all(source.join("sub")).unwrap();
            fs::write(source.join("sub/file"), "content").unwrap();
            attach_bind(tree, &other, &bind(&source, false)).unwrap();
            let attachment = tree.begin(&one);
            let attached = tree
                .attach_binds(&attachment, &[bind(&source.join("sub"), false)])
                .unwrap();
            let placed = &attached.placed[0].source;
            let cloned = tree.clone_placed(&attachment, placed, true).unwrap().unwrap();
            assert!(rustix::fs::statat(&cloned, "file", AtFlags::empty()).is_ok());
            fs::rename(source.join("sub"), source.join("moved")).unwrap();
            std::os::unix::fs::symlink("/", source.join("sub")).unwrap();
            let refused = base::chain(&tree.clone_placed(&attachment, placed, true).unwrap_err());
            assert!(refused.contains("symbolic links"), "{refused}");
            let storage = Path::new(protocol::STORAGE_DIRECTORY).join("memory");
            assert!(tree.clone_placed(&attachment, &storage, true).unwrap().is_none());
            tree.detach(&one).unwrap();
            assert!(tree.clone_placed(&attachment, placed, true).is_err());
            tree.detach(&other).unwrap();
        });
    }

    #[test]
    fn what_a_call_that_fails_has_removed_is_told_by_the_next() {
        in_namespace(|tree, directory| {
            let id = ContainerId::new("c").unwrap();
            let [first, second] = ["first", "second"].map(|name| directory.join(name));
            fs::create_dir(&first).unwrap();
            fs::create_dir(&second).unwrap();
            attach_bind(tree, &id, &bind(&first, false)).unwrap();
            attach_bind(tree, &id, &bind(&second, false)).unwrap();
            // The second cannot be removed: something is in the way below its mount.
            let way = Path::new(protocol::VOLUMES).join("2/way");
            tree.make_directory(&way, true).unwrap();
            tree.detach(&id).unwrap_err();
            tree.remove(&way).unwrap();
            assert_eq!(tree.detach(&id).unwrap(), [1, 2]);
        });
    }

    #[test]
    fn who_is_detached_while_sources_are_opened_attaches_nothing_more() {
        in_namespace(|tree, directory| {
            let id = ContainerId::new("c").unwrap();
            let source = directory.join("source");
            fs::create_dir(&source).unwrap();
            let given_up = tree.begin(&id);
            tree.detach(&id).unwrap();
            let attaches_nothing = || {
                let rootfs = tree.attach_rootfs(&given_up, &[], &source).map(drop);
                let bound = tree.attach_binds(&given_up, &[bind(&source, false)]).map(drop);
                [rootfs, bound]
                    .iter()
                    .all(|done| matches!(done, Err(ShareError::Detached(_))))
            };
            assert!(attaches_nothing() && !tree.root().join("c").exists() && nothing_exported(tree));
            let next = tree.begin(&id);
            assert!(attaches_nothing());
            tree.attach_rootfs(&next, &[], &source).unwrap();
            tree.detach(&id).unwrap();
        });
    }

    #[test]
    fn nothing_can_be_put_into_the_shared_directory_itself() {
        in_namespace(|tree, _| {
            let error = std::os::unix::fs::symlink("/", tree.root().join("c")).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
        });
    }

    #[test]
    fn a_missing_source_is_named_with_its_destination_and_leaves_nothing() {
        in_namespace(|tree, directory| {
            let id = ContainerId::new("c").unwrap();
            let missing = directory.join("missing");
            let error = attach_bind(tree, &id, &bind(&missing, false)).unwrap_err().to_string();
            assert!(error.contains("missing") && error.contains("/d"), "{error}");
            tree.detach(&id).unwrap();
            assert!(nothing_exported(tree));
        });
    }

    /// A tmpfs on the host with `a/b`, which passes nothing on.
    fn volume(tree: &SharedTree, directory: &Path) -> PathBuf {
        let volume = directory.join("volume");
        fs::create_dir(&volume).unwrap();
        let path = volume.clone();
        tree.host
            .run(move || {
                rustix::mount::mount("tmpfs", &path, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
                fs::create_dir_all(path.join("a/b")).unwrap();
            })
            .unwrap();
        volume
    }

    fn writable(path: &Path) -> bool {
        fs::write(path.join("new"), "").is_ok()
    }

    #[test]
    fn a_mapped_source_is_a_volume_of_its_own_whose_files_belong_to_others() {
        use std::os::unix::fs::MetadataExt;
        in_namespace(|tree, directory| {
            let source = volume(tree, directory);
            let [one, two, three] = ["c1", "c2", "c3"].map(|id| ContainerId::new(id).unwrap());
            let plain = attach_bind(tree, &one, &bind(&source, false)).unwrap();
            let mut mapped = bind(&source, false);
            mapped.id_map = Some(crate::host::owners::IdMap {
                users: "0 100000 10\n".to_owned(),
                groups: "0 200000 10\n".to_owned(),
                recursive: false,
            });
            let first = attach_bind(tree, &two, &mapped).unwrap();
            let second = attach_bind(tree, &three, &mapped).unwrap();
            assert_ne!(first.source, plain.source);
            assert_eq!(first.source, second.source, "the same mapping is the same volume");
            assert!(first.over.is_empty());
            let owner = |placed: &PlacedBind| {
                let found = fs::metadata(shared(tree, placed)).unwrap();
                (found.uid(), found.gid())
            };
            assert_eq!((owner(&plain), owner(&first)), ((0, 0), (100_000, 200_000)));
            mapped.id_map = Some(crate::host::owners::IdMap {
                users: "0 1 0\n".to_owned(),
                groups: "0 1 1\n".to_owned(),
                recursive: false,
            });
            let said = base::chain(&attach_bind(tree, &two, &mapped).unwrap_err());
            assert!(said.contains("/d") && said.contains("uidMappings"), "{said}");
            for id in [one, two, three] {
                tree.detach(&id).unwrap();
            }
            assert!(nothing_exported(tree));
        });
    }

    #[test]
    fn what_is_mounted_below_is_written_to_where_the_source_alone_is_read_only() {
        in_namespace(|tree, directory| {
            let source = volume(tree, directory);
            let below = source.join("a");
            let place = below.clone();
            let flags = rustix::mount::MountFlags::empty();
            tree.host
                .run(move || rustix::mount::mount("tmpfs", &place, "tmpfs", flags, None).unwrap())
                .unwrap();
            let id = ContainerId::new("c").unwrap();
            let mut top = bind(&source, true);
            (top.read_only_below, top.apart) = (false, true);
            let placed = attach_bind(tree, &id, &top).unwrap();
            let [over] = &placed.over[..] else {
                panic!("{:?}", placed.over)
            };
            assert_eq!(
                (over.at.as_path(), over.read_only, over.apart.is_some()),
                (Path::new("a"), false, true)
            );
            let part = PlacedBind {
                source: over.source.clone(),
                ..placed.clone()
            };
            assert!(writable(&shared(tree, &part)) && !writable(&shared(tree, &placed)));
            tree.detach(&id).unwrap();
            // The same recursively: nobody writes anywhere.
            top.read_only_below = true;
            top.apart = false;
            let placed = attach_bind(tree, &id, &top).unwrap();
            assert!(placed.over.is_empty() && !writable(&shared(tree, &placed).join("a")));
            tree.detach(&id).unwrap();
        });
    }

    #[test]
    fn another_mount_of_a_part_is_a_view_and_a_parent_has_its_child_over_it() {
        in_namespace(|tree, directory| {
            let source = volume(tree, directory);
            // As the kubelet does for a subPath.
            let part = directory.join("part");
            fs::create_dir(&part).unwrap();
            let (from, to) = (source.join("a"), part.clone());
            tree.host.run(move || mount_bind(&from, &to).unwrap()).unwrap();
            let [one, two, three] = ["c1", "c2", "c3"].map(|id| ContainerId::new(id).unwrap());
            let child = attach_bind(tree, &one, &bind(&part, false)).unwrap();
            let parent = attach_bind(tree, &two, &bind(&source, false)).unwrap();
            let over = crate::spec::guest_spec::Over {
                at: "a".into(),
                source: child.source.clone(),
                read_only: false,
                apart: None,
            };
            assert_eq!(parent.over, [over]);
            let inside = attach_bind(tree, &three, &bind(&source.join("a/b"), false)).unwrap();
            assert_eq!(inside.source, child.source.join("b"));
            assert!(tree.detach(&one).unwrap().is_empty());
            assert_eq!(tree.detach(&two).unwrap(), [2]);
            assert_eq!(tree.detach(&three).unwrap(), [1]);
            assert!(nothing_exported(tree));
        });
    }

    /// Mounts something, read-only, on a directory of the host.
    fn mount_read_only(tree: &SharedTree, place: &Path) {
        let place = place.to_owned();
        let mounted = move || {
            let flags = rustix::mount::MountFlags::empty();
            rustix::mount::mount("tmpfs", &place, "tmpfs", flags, None).unwrap();
            let remount = rustix::mount::MountFlags::BIND | rustix::mount::MountFlags::RDONLY;
            rustix::mount::mount_remount(&place, remount, "").unwrap();
        };
        tree.host.run(mounted).unwrap();
    }

    #[test]
    fn what_the_host_has_mounted_read_only_later_is_not_written_to_by_whoever_has_what_is_above() {
        in_namespace(|tree, directory| {
            let source = volume(tree, directory);
            let path = source.clone();
            tree.host
                .run(move || mount_change(&path, MountPropagationFlags::SHARED).unwrap())
                .unwrap();
            let [one, two, three] = ["c1", "c2", "c3"].map(|id| ContainerId::new(id).unwrap());
            attach_bind(tree, &one, &bind(&source, false)).unwrap();
            mount_read_only(tree, &source.join("a"));
            let mut private = bind(&source.join("a"), false);
            private.receives = false;
            let inner = attach_bind(tree, &two, &private).unwrap();
            assert!(inner.options.read_only);
            let inner = shared(tree, &inner);
            // The copy of the host's mount comes by a thread, and nothing else tells when.
            let copy = tree.root().join(protocol::VOLUMES).join("1/a");
            while mountinfo::below(&copy).unwrap().is_empty() {
                thread::yield_now();
            }
            let over = attach_bind(tree, &three, &bind(&source, false)).unwrap().over;
            assert!(over.iter().any(|over| over.at == Path::new("a")), "{over:?}");
            assert!(over.iter().all(|over| over.read_only), "{over:?}");
            assert!(!writable(&inner));
            for id in [one, two, three] {
                tree.detach(&id).unwrap();
            }
        });
    }

    #[test]
    fn what_was_mounted_before_a_bind_that_receives_is_in_an_rbind_that_comes_after_it() {
        in_namespace(|tree, directory| {
            let source = volume(tree, directory);
            let path = source.clone();
            tree.host
                .run(move || mount_change(&path, MountPropagationFlags::SHARED).unwrap())
                .unwrap();
            mount_read_only(tree, &source.join("a"));
            let [one, two] = ["c1", "c2"].map(|id| ContainerId::new(id).unwrap());
            let mut alone = bind(&source, false);
            alone.recursive = false;
            let alone = shared(tree, &attach_bind(tree, &one, &alone).unwrap());
            assert!(alone.join("a/b").exists());
            let whole = shared(tree, &attach_bind(tree, &two, &bind(&source, false)).unwrap());
            assert!(whole != alone && !whole.join("a/b").exists());
            tree.detach(&one).unwrap();
            tree.detach(&two).unwrap();
        });
    }

    #[test]
    fn what_is_open_for_writing_delays_read_only_and_the_next_writer_finds_all_writable() {
        in_namespace(|tree, directory| {
            let source = volume(tree, directory);
            let inner = source.join("a");
            let mounted = move || {
                let flags = rustix::mount::MountFlags::empty();
                rustix::mount::mount("tmpfs", &inner, "tmpfs", flags, None).unwrap();
            };
            tree.host.run(mounted).unwrap();
            let [reader, writer, other] = ["c1", "c2", "c3"].map(|id| ContainerId::new(id).unwrap());
            let whole = shared(tree, &attach_bind(tree, &reader, &bind(&source, true)).unwrap());
            for place in [whole.clone(), whole.join("a")] {
                attach_bind(tree, &writer, &bind(&source, false)).unwrap();
                assert!(writable(&whole) && writable(&whole.join("a")));
                let open = fs::File::create(place.join("open")).unwrap();
                tree.detach(&writer).unwrap();
                assert_eq!(
                    [&whole, &whole.join("a")].map(|at| writable(at)),
                    [&whole, &whole.join("a")].map(|at| *at == place)
                );
                attach_bind(tree, &writer, &bind(&source, false)).unwrap();
                assert!(writable(&whole) && writable(&whole.join("a")));
                tree.detach(&writer).unwrap();
                drop(open);
                tree.detach(&other).unwrap();
                assert!(!writable(&whole) && !writable(&whole.join("a")));
            }
            tree.detach(&reader).unwrap();
        });
    }

    #[test]
    fn a_directory_that_is_renamed_does_not_take_a_read_only_mount_into_what_is_writable() {
        in_namespace(|tree, directory| {
            let source = volume(tree, directory);
            mount_read_only(tree, &source.join("a/b"));
            let [one, two] = ["c1", "c2"].map(|id| ContainerId::new(id).unwrap());
            let whole = shared(tree, &attach_bind(tree, &one, &bind(&source, true)).unwrap());
            let path = source.clone();
            tree.host
                .run(move || fs::rename(path.join("a"), path.join("renamed")).unwrap())
                .unwrap();
            attach_bind(tree, &two, &bind(&source, false)).unwrap();
            assert!(writable(&whole) && !writable(&whole.join("renamed/b")));
            tree.detach(&two).unwrap();
            tree.detach(&one).unwrap();
        });
    }

    #[test]
    fn a_volume_is_writable_on_the_host_while_somebody_writes_and_what_is_read_only_in_it_stays_so() {
        in_namespace(|tree, directory| {
            let source = volume(tree, directory);
            mount_read_only(tree, &source.join("a/b"));
            let [one, two] = ["c1", "c2"].map(|id| ContainerId::new(id).unwrap());
            let whole = shared(tree, &attach_bind(tree, &one, &bind(&source, true)).unwrap());
            assert!(!writable(&whole) && !writable(&whole.join("a/b")));
            attach_bind(tree, &two, &bind(&source, false)).unwrap();
            assert!(writable(&whole) && !writable(&whole.join("a/b")));
            tree.detach(&two).unwrap();
            assert!(!writable(&whole));
            // A part of it is not a reason to let the guest write to the rest.
            let part = attach_bind(tree, &two, &bind(&source.join("a"), false)).unwrap();
            assert!(!writable(&whole) && writable(&shared(tree, &part)));
            tree.detach(&two).unwrap();
            tree.detach(&one).unwrap();
            assert!(nothing_exported(tree));
        });
    }
}
