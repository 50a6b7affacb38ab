//! The directory that virtiofsd serves, and what is mounted below it.
//!
//! `<container>/rootfs` and `<container>/mounts/<n>`. It is a mount of its own in the shim's mount namespace, with
//! shared propagation, so that virtiofsd sees what is mounted after it has started; and that mount is read-only, so
//! that the guest cannot put a symbolic link where the next mount goes. The directories are made by a descriptor of
//! the directory below that mount. All functions block.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use containerd_shim_protos::types::mount::Mount;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, UnmountFlags, mount_bind, mount_change, move_mount, unmount,
};

use crate::guest_spec::BindSource;
use crate::host_ns::{HostNamespace, HostNamespaceError};
use crate::id::ContainerId;
use crate::mountinfo;
use crate::overlay;
use crate::run_dir::RunDir;
use crate::sys::{self, SetAttr};

/// Why something cannot be shared with the guest.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// A file or mount operation failed.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The source of a bind mount cannot be had.
    #[error("cannot bind-mount {} on {}", bind.display(), destination.display())]
    Bind {
        /// Path on the host.
        bind: PathBuf,
        /// Path in the container.
        destination: PathBuf,
        /// Why.
        #[source]
        source: Box<HostNamespaceError>,
    },
    /// One of the mounts that containerd sent for the rootfs.
    #[error("cannot mount the rootfs: {kind} from {from:?} with options {options:?}")]
    Rootfs {
        /// Its type.
        kind: String,
        /// Its source.
        from: String,
        /// Its options.
        options: Vec<String>,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The directory that is the rootfs cannot be had.
    #[error("cannot use {} as the rootfs", root.display())]
    RootfsSource {
        /// The directory on the host.
        root: PathBuf,
        /// Why.
        #[source]
        source: Box<HostNamespaceError>,
    },
}

/// The shared directory of one sandbox.
#[derive(Debug, Clone)]
pub struct SharedTree {
    root: PathBuf,
    host: HostNamespace,
    /// The directory below the read-only mount.
    backing: Arc<OwnedFd>,
}

impl SharedTree {
    /// Makes the directory a mount of its own with shared propagation. The caller is in the shim's mount namespace.
    ///
    /// # Errors
    /// The directory cannot be made or mounted.
    pub fn new(run_dir: &RunDir, host: HostNamespace) -> Result<Self, ShareError> {
        let root = run_dir.shared();
        let error = |operation, source: io::Error| ShareError::Io {
            operation,
            path: root.clone(),
            source,
        };
        fs::create_dir(&root).map_err(|source| error("create", source))?;
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let backing = rustix::fs::open(&root, flags, Mode::empty()).map_err(|errno| error("open", errno.into()))?;
        mount_bind(&root, &root).map_err(|errno| error("mount", errno.into()))?;
        // Private first: what the host does with /run has no business here.
        mount_change(&root, MountPropagationFlags::PRIVATE).map_err(|errno| error("make private", errno.into()))?;
        mount_change(&root, MountPropagationFlags::SHARED).map_err(|errno| error("make shared", errno.into()))?;
        let mounted = rustix::fs::open(&root, flags, Mode::empty()).map_err(|errno| error("open", errno.into()))?;
        sys::mount_setattr(mounted.as_fd(), SetAttr::ReadOnly).map_err(|source| error("make read-only", source))?;
        Ok(Self {
            root,
            host,
            backing: Arc::new(backing),
        })
    }

    /// The directory on the host: what virtiofsd is to serve.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Mounts the rootfs; `bundle_rootfs` (root.path, made absolute) is taken where there are no mounts. The answer is
    /// the path in the guest.
    ///
    /// # Errors
    /// Nothing can be mounted. What was begun is undone by [`SharedTree::detach`].
    pub fn attach_rootfs(
        &self,
        container: &ContainerId,
        mounts: &[Mount],
        bundle_rootfs: &Path,
    ) -> Result<PathBuf, ShareError> {
        self.make_directory(container.as_str(), false)?;
        let name = format!("{container}/rootfs");
        self.make_directory(&name, true)?;
        let target = self.root.join(&name);
        if mounts.is_empty() {
            self.bind_rootfs(bundle_rootfs, &target, true, false)?;
        }
        for mount in mounts {
            self.mount_layer(mount, &target)?;
        }
        Ok(guest_rootfs(container))
    }

    fn mount_layer(&self, mount: &Mount, target: &Path) -> Result<(), ShareError> {
        let refused = |source| ShareError::Rootfs {
            kind: mount.type_.clone(),
            from: mount.source.clone(),
            options: mount.options.clone(),
            source,
        };
        if !mount.target.is_empty() {
            let why = format!("a mount on {:?} inside the rootfs is not supported", mount.target);
            return Err(refused(io::Error::new(io::ErrorKind::Unsupported, why)));
        }
        let has = |option: &str| mount.options.iter().any(|other| other == option);
        match mount.type_.as_str() {
            "overlay" => overlay::mount(&mount.options, target).map_err(refused),
            "bind" | "rbind" => {
                let recursive = mount.type_ == "rbind" || has("rbind");
                self.bind_rootfs(Path::new(&mount.source), target, recursive, has("ro"))
            }
            _ => {
                let why = "only overlay and bind are supported; a rootfs on a block device is not yet";
                Err(refused(io::Error::new(io::ErrorKind::Unsupported, why)))
            }
        }
    }

    fn bind_rootfs(&self, source: &Path, target: &Path, recursive: bool, ro: bool) -> Result<(), ShareError> {
        let tree = self
            .host
            .open_tree(source, recursive)
            .map_err(|error| ShareError::RootfsSource {
                root: source.to_owned(),
                source: Box::new(error),
            })?;
        attach(&tree, target, ro)
    }

    /// Mounts the source of one bind mount. The answer is the path in the guest, which the spec for the guest
    /// already has.
    ///
    /// A symbolic link is resolved by the host. With `read_only` the mount on the host is read-only, too, but not
    /// what is mounted below it, as with any `ro` bind mount (mount(8)).
    ///
    /// # Errors
    /// The source does not exist or cannot be mounted. What was begun is undone by [`SharedTree::detach`].
    pub fn attach_bind(&self, container: &ContainerId, bind: &BindSource) -> Result<PathBuf, ShareError> {
        let tree = self
            .host
            .open_tree(&bind.source, bind.recursive)
            .map_err(|error| ShareError::Bind {
                bind: bind.source.clone(),
                destination: bind.destination.clone(),
                source: Box::new(error),
            })?;
        self.make_directory(container.as_str(), false)?;
        self.make_directory(&format!("{container}/mounts"), false)?;
        let name = format!("{container}/mounts/{}", bind.number);
        let target = self.root.join(&name);
        let stat = rustix::fs::fstat(&tree).map_err(|errno| io_error("examine", &bind.source, errno))?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            self.make_directory(&name, true)?;
        } else {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            rustix::fs::openat(&self.backing, &name, flags, Mode::from_raw_mode(0o600))
                .map_err(|errno| io_error("create", &target, errno))?;
        }
        attach(&tree, &target, bind.read_only)?;
        Ok(guest_bind(container, bind.number))
    }

    /// Makes a directory below the shared one. `new`: it must not exist.
    fn make_directory(&self, name: &str, new: bool) -> Result<(), ShareError> {
        match rustix::fs::mkdirat(&self.backing, name, Mode::from_raw_mode(0o700)) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) if !new => Ok(()),
            Err(errno) => Err(io_error("create", &self.root.join(name), errno)),
        }
    }

    /// Unmounts and removes everything of a container. May be called again, and for a container that never was.
    ///
    /// # Errors
    /// Something is still mounted or cannot be removed.
    pub fn detach(&self, container: &ContainerId) -> Result<(), ShareError> {
        unmount_below(&self.root.join(container.as_str()))?;
        let mounts = format!("{container}/mounts");
        for entry in self.entries(&mounts)? {
            self.remove(&format!("{mounts}/{entry}"))?;
        }
        self.remove(&mounts)?;
        self.remove(&format!("{container}/rootfs"))?;
        self.remove(container.as_str())
    }

    /// The names in a directory below the shared one; none if it is not there.
    fn entries(&self, name: &str) -> Result<Vec<String>, ShareError> {
        let path = self.root.join(name);
        let entries = match fs::read_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries,
        };
        entries
            .and_then(|entries| {
                entries
                    .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                    .collect::<io::Result<_>>()
            })
            .map_err(|source| ShareError::Io {
                operation: "read",
                path,
                source,
            })
    }

    /// Removes one file or empty directory: never more, for if something were still mounted there, the host's files
    /// would go.
    fn remove(&self, name: &str) -> Result<(), ShareError> {
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

/// Attaches a cloned tree.
///
/// The clone of a shared mount is its peer: unmounting below it would unmount on the host as well. As a slave it still
/// gets what the host mounts there later, and gives nothing back (mount_namespaces(7)).
fn attach(tree: &OwnedFd, target: &Path, read_only: bool) -> Result<(), ShareError> {
    let error = |operation, source| ShareError::Io {
        operation,
        path: target.to_owned(),
        source,
    };
    sys::mount_setattr(tree.as_fd(), SetAttr::SlaveRecursive).map_err(|source| error("make a slave of", source))?;
    if read_only {
        sys::mount_setattr(tree.as_fd(), SetAttr::ReadOnly).map_err(|source| error("make read-only", source))?;
    }
    move_mount(
        tree,
        "",
        rustix::fs::CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .map_err(|errno| error("mount on", errno.into()))
}

/// Unmounts everything on and below `path` in the caller's mount namespace, the last mount first.
///
/// # Errors
/// The list of mounts cannot be read, or one of them cannot be unmounted.
pub fn unmount_below(path: &Path) -> Result<(), ShareError> {
    let mounts = mountinfo::below(path).map_err(|source| ShareError::Io {
        operation: "list the mounts of",
        path: path.to_owned(),
        source,
    })?;
    for mount in mounts.iter().rev() {
        let result = match unmount(mount, UnmountFlags::NOFOLLOW) {
            // Still open somewhere, in virtiofsd for example: take it away from here, it goes when it is closed.
            Err(Errno::BUSY) => unmount(mount, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW),
            result => result,
        };
        match result {
            // Not there any more: a mount above it took it along.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(errno) => return Err(io_error("unmount", mount, errno)),
        }
    }
    Ok(())
}

fn io_error(operation: &'static str, path: &Path, errno: Errno) -> ShareError {
    ShareError::Io {
        operation,
        path: path.to_owned(),
        source: errno.into(),
    }
}

/// A container's rootfs in the guest.
#[must_use]
pub fn guest_rootfs(container: &ContainerId) -> PathBuf {
    Path::new(protocol::SHARE_MOUNTPOINT)
        .join(container.as_str())
        .join("rootfs")
}

/// The `number`th source of a container's bind mounts in the guest.
#[must_use]
pub fn guest_bind(container: &ContainerId, number: usize) -> PathBuf {
    Path::new(protocol::SHARE_MOUNTPOINT)
        .join(container.as_str())
        .join("mounts")
        .join(number.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Namespace, SandboxId};
    use std::thread;

    /// Runs the test in a mount namespace that ends with its thread; the host's is where the handle's thread is.
    fn in_namespace(test: impl FnOnce(&SharedTree, &Path) + Send) {
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
                // its own: unshare(CLONE_NEWNS) includes it.
                let tree = SharedTree::new(&run_dir, HostNamespace::spawn().unwrap()).unwrap();
                test(&tree, directory.path());
                unmount_below(tree.root()).unwrap();
            };
            scope.spawn(enter).join().unwrap();
        });
        run_dir.remove().unwrap();
    }

    fn bind(source: &Path, read_only: bool, number: usize) -> BindSource {
        BindSource {
            number,
            source: source.to_owned(),
            destination: "/d".into(),
            read_only,
            recursive: true,
        }
    }

    #[test]
    fn files_directories_and_links_are_attached_and_detached_twice() {
        in_namespace(|tree, directory| {
            let id = ContainerId::new("c").unwrap();
            let source = directory.join("source");
            fs::create_dir(&source).unwrap();
            fs::write(source.join("file"), "content").unwrap();
            std::os::unix::fs::symlink(&source, directory.join("link")).unwrap();
            let shared = tree.root().join("c");
            tree.attach_rootfs(&id, &[], &source).unwrap();
            tree.attach_bind(&id, &bind(&source.join("file"), false, 0)).unwrap();
            let guest = tree.attach_bind(&id, &bind(&directory.join("link"), true, 1)).unwrap();
            assert_eq!(guest, Path::new("/run/tatami/shared/c/mounts/1"));
            assert_eq!(fs::read_to_string(shared.join("rootfs/file")).unwrap(), "content");
            assert_eq!(fs::read_to_string(shared.join("mounts/0")).unwrap(), "content");
            let error = fs::write(shared.join("mounts/1/new"), "").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
            fs::write(shared.join("rootfs/new"), "").unwrap();
            tree.detach(&id).unwrap();
            tree.detach(&id).unwrap();
            assert!(!shared.exists());
            assert!(source.join("new").exists());
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
            let error = tree
                .attach_bind(&id, &bind(&missing, false, 0))
                .unwrap_err()
                .to_string();
            assert!(error.contains("missing") && error.contains("/d"), "{error}");
            tree.detach(&id).unwrap();
            assert!(!tree.root().join("c").exists());
        });
    }

    #[test]
    fn an_overlay_of_more_layers_than_a_page_of_options_is_mounted() {
        in_namespace(|tree, directory| {
            // The layers are on a tmpfs of the server's namespace: an overlay cannot have an overlay's upper layer.
            let layers = directory.join("layers");
            fs::create_dir(&layers).unwrap();
            rustix::mount::mount("tmpfs", &layers, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
            let layer = |number: usize| layers.join(format!("snapshots-with-a-long-name/{number}/fs"));
            for number in 0..100 {
                fs::create_dir_all(layer(number)).unwrap();
                fs::write(layer(number).join(number.to_string()), "").unwrap();
            }
            let lower: Vec<String> = (0..100).map(|number| layer(number).display().to_string()).collect();
            let mut mount = Mount::new();
            mount.type_ = "overlay".to_owned();
            mount.options = vec!["ro".to_owned(), format!("lowerdir={}", lower.join(":"))];
            let id = ContainerId::new("c").unwrap();
            tree.attach_rootfs(&id, &[mount], Path::new("/nowhere")).unwrap();
            assert_eq!(fs::read_dir(tree.root().join("c/rootfs")).unwrap().count(), 100);
            tree.detach(&id).unwrap();
            unmount_below(&layers).unwrap();
        });
    }

    #[test]
    fn a_rootfs_on_a_block_device_is_refused_clearly() {
        in_namespace(|tree, _| {
            let mut mount = Mount::new();
            mount.type_ = "ext4".to_owned();
            let id = ContainerId::new("c").unwrap();
            let error = tree.attach_rootfs(&id, &[mount], Path::new("/nowhere")).unwrap_err();
            assert!(error.to_string().contains("ext4"));
            tree.detach(&id).unwrap();
        });
    }
}
