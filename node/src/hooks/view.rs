//! What a createContainer hook sees: a mount namespace of the host's files, with the container's files at `root.path`.
//!
//! What the guest may have already, the sources of binds, is shown read-only and without its links. What the container has in the guest's memory or on a disk
//! is an empty read-only directory, so that a hook that writes there fails and its files are not lost in silence. Nothing of the container can be
//! executed here, and no device node or set-id bit has an effect. Knows nothing of hooks.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, mpsc};
use std::thread;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid, chownat, mkdirat, openat, readlink, readlinkat, statat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, mount, move_mount, open_tree};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::users::{Owner, Users};
use crate::host::host_ns::{self, HostNamespace};
use crate::host::mountinfo;
use crate::host::openat_beneath::{self, name_of};
use crate::host::sys::{self, SetAttr};

/// How many links a path may have, as in the kernel (path_resolution(7)).
const MAX_LINKS: u32 = 40;

/// What a createContainer hook is shown of its container.
#[derive(Debug)]
pub(super) struct ContainerFiles {
    /// Where the root is: `root.path`, made absolute.
    pub(super) root: PathBuf,
    /// The root: a tree of mounts that is attached nowhere.
    pub(super) rootfs: OwnedFd,
    /// The container's mounts, in their order.
    pub(super) mounts: Vec<ShownMount>,
    /// A process in the container's network namespace on the host; none if it has the host's.
    pub(super) network_of: Option<u32>,
    /// The container's user namespace, if it has one of its own.
    pub(super) users: Option<Users>,
}

/// A mount of the container, as its hooks see it.
#[derive(Debug)]
pub(super) struct ShownMount {
    /// Its place in the container.
    pub(super) destination: PathBuf,
    /// What is mounted there for the hooks.
    pub(super) shown: Shown,
}

/// What is shown of a mount.
#[derive(Debug)]
pub(super) enum Shown {
    /// What the host has: a tree of mounts that is attached nowhere.
    Tree(OwnedFd),
    /// A directory that the host does not have.
    Directory,
    /// A file that the host does not have.
    File,
    /// One or the other: its place is covered if it is there.
    Either,
}

/// A file of the container cannot be shown.
#[derive(Debug, thiserror::Error)]
#[error("on {}", destination.display())]
struct NotShown {
    destination: PathBuf,
    #[source]
    source: io::Error,
}

/// What of a mount a hook can change: its number, the one that it is on, its place, and whether it is read-only.
type Mounted = (u64, u64, PathBuf, bool);

/// A mount namespace on the host that shows a container's files.
#[derive(Debug, Clone)]
pub(super) struct View {
    /// Threads in it.
    space: HostNamespace,
    network_of: Option<u32>,
    /// The user namespace of the hooks, and its root on the host.
    users: Option<(Arc<OwnedFd>, Owner)>,
    root: PathBuf,
    /// The root's path as the list of mounts has it: without links.
    listed_as: PathBuf,
    mounts: Vec<Mounted>,
    /// The mounts that were made: as long as they are open, none of their numbers is another mount's.
    _held: Arc<Vec<OwnedFd>>,
}

impl View {
    /// Makes one. Blocks.
    pub(super) fn new(host: &HostNamespace, files: ContainerFiles) -> io::Result<Self> {
        let (network_of, root) = (files.network_of, files.root.clone());
        let users = files
            .users
            .as_ref()
            .map(|users| Ok::<_, io::Error>((Arc::new(users.namespace()?), users.root())));
        let users = users.transpose()?;
        let make = move || -> io::Result<_> {
            host_ns::leave().map_err(io::Error::other)?;
            let (listed_as, held) = show(files)?;
            let space = HostNamespace::start_thread().map_err(io::Error::other)?;
            Ok((space, mounts(&listed_as)?, listed_as, held))
        };
        let (space, mounts, listed_as, held) = host.run(make).map_err(io::Error::other)??;
        Ok(Self {
            space,
            network_of,
            users,
            root,
            listed_as,
            mounts,
            _held: Arc::new(held),
        })
    }

    /// Where a hook begins, as on runc.
    pub(super) fn directory(&self) -> &Path {
        &self.root
    }

    /// Who a hook is on the host, if not root.
    pub(super) fn owner(&self) -> Option<Owner> {
        self.users.as_ref().map(|(_, owner)| *owner)
    }

    /// Starts a process in it, which is killed when the answer's second part is dropped, or this process ends. Blocks.
    pub(super) fn spawn(&self, mut command: Command) -> io::Result<(Child, mpsc::Sender<()>)> {
        let (keep, until) = mpsc::channel();
        let (answer, answered) = mpsc::sync_channel(1);
        let view = self.clone();
        let start_and_stay = move || {
            if let Some((users, _)) = &view.users {
                sys::enter_user_namespace(&mut command, users.clone());
            }
            // After that: with its user a process loses this signal.
            sys::end_with_this_thread(&mut command);
            let _ = answer.send(view.enter_namespaces().and_then(|()| command.spawn()));
            // Until the other end is dropped: nothing is sent.
            let _ = until.recv();
        };
        let thread = thread::Builder::new().name("hook".to_owned());
        let started = self.space.run(move || thread.spawn(start_and_stay).map(drop));
        started.map_err(io::Error::other)??;
        let child = answered.recv().map_err(io::Error::other)??;
        Ok((child, keep))
    }

    /// Moves the calling thread to the container's network, and to UTS, IPC and, for its children, PID namespaces of
    /// nobody's: a hook that means the container's changes none of the host's, and whatever a hook starts ends with it (pid_namespaces(7)).
    fn enter_namespaces(&self) -> io::Result<()> {
        if let Some(process) = self.network_of {
            let network = File::open(format!("/proc/{process}/ns/net"))?;
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
        }
        sys::unshare_uts_ipc_and_pid_namespaces()
    }

    /// Where somebody has changed what is mounted in the root since it was made. Blocks.
    pub(super) fn changed(&self) -> io::Result<Option<PathBuf>> {
        let root = self.listed_as.clone();
        let now = self.space.run(move || mounts(&root)).map_err(io::Error::other)??;
        let differs = |one: &[Mounted], other: &[Mounted]| {
            let found = one.iter().find(|mounted| !other.contains(mounted));
            found.map(|(_, _, place, _)| place.clone())
        };
        Ok(differs(&now, &self.mounts).or_else(|| differs(&self.mounts, &now)))
    }
}

/// What is mounted on and below a root, of which itself is the first.
fn mounts(root: &Path) -> io::Result<Vec<Mounted>> {
    let lines = mountinfo::below(root)?.into_iter();
    let mounts: Vec<_> = lines
        .map(|line| (line.id, line.parent, line.mountpoint, line.read_only))
        .collect();
    match mounts.is_empty() {
        true => Err(io::Error::other("it is not in the list of mounts")),
        false => Ok(mounts),
    }
}

/// A container's root.
struct Root {
    tree: OwnedFd,
    /// Whose the files are that are made in it, if not root's.
    owner: Option<Owner>,
}

/// Mounts the root at its path, and on it what the container has mounted. The answer is the root's path without links, and the mounts.
fn show(files: ContainerFiles) -> io::Result<(PathBuf, Vec<OwnedFd>)> {
    sys::mount_setattr(files.rootfs.as_fd(), SetAttr::PrivateRecursive)?;
    sys::mount_setattr(files.rootfs.as_fd(), SetAttr::NotExecutedRecursive)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    attach(&files.rootfs, &rustix::fs::open(&files.root, flags, Mode::empty())?)?;
    let root = Root {
        tree: files.rootfs,
        owner: files.users.as_ref().map(Users::root),
    };
    let listed_as = readlink(name_of(&root.tree), Vec::new())?;
    let mut held = Vec::new();
    for ShownMount { destination, shown } in files.mounts {
        let made = match shown {
            Shown::Tree(tree) => show_source(&root, &destination, tree).map(Some),
            Shown::Directory => show_nothing(&root, &destination, Some(true)),
            Shown::File => show_nothing(&root, &destination, Some(false)),
            Shown::Either => show_nothing(&root, &destination, None),
        };
        held.extend(made.map_err(|source| io::Error::other(NotShown { destination, source }))?);
    }
    // Once all is in place. Sources are read-only already.
    for mount in &held {
        sys::mount_setattr(mount.as_fd(), SetAttr::ReadOnly)?;
    }
    held.push(root.tree);
    Ok((OsString::from_vec(listed_as.into_bytes()).into(), held))
}

/// Shows the source of a bind.
fn show_source(root: &Root, destination: &Path, tree: OwnedFd) -> io::Result<OwnedFd> {
    sys::mount_setattr(tree.as_fd(), SetAttr::PrivateRecursive)?;
    sys::mount_setattr(tree.as_fd(), SetAttr::NotExecutedRecursive)?;
    sys::mount_setattr(tree.as_fd(), SetAttr::WithoutLinksRecursive)?;
    match place(root, destination, Some(is_directory(&tree)?)) {
        Ok(under) => attach(&tree, &under)?,
        Err(error) if is_read_only(&error) => {}
        Err(error) => return Err(error),
    }
    Ok(tree)
}

/// A place below another source, which is read-only here, cannot be made: nor can a hook write there, and the guest makes it.
fn is_read_only(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::ROFS.raw_os_error())
}

/// Shows that there is nothing to be had: what is mounted there is the guest's.
fn show_nothing(root: &Root, destination: &Path, directory: Option<bool>) -> io::Result<Option<OwnedFd>> {
    let under = match place(root, destination, directory) {
        Err(error) if is_read_only(&error) => return Ok(None),
        Err(error) if directory.is_none() && error.kind() == io::ErrorKind::NotFound => return Ok(None),
        under => under?,
    };
    if is_directory(&under)? {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("tmpfs", name_of(&under), "tmpfs", flags, None)?;
        return place(root, destination, None).map(Some);
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let covered = open_tree(&under, "", flags)?;
    attach(&covered, &under)?;
    Ok(Some(covered))
}

fn attach(tree: &OwnedFd, place: &OwnedFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(tree, "", place, "", flags)?)
}

fn is_directory(file: &OwnedFd) -> io::Result<bool> {
    let stat = statat(file, "", AtFlags::EMPTY_PATH)?;
    Ok(FileType::from_raw_mode(stat.st_mode).is_dir())
}

/// The file or directory of a root, links followed within it, those of sources too; made if it is not there and it is known what it is, as the agent does in the guest. Whoever changes a source
/// meanwhile has another place of the root covered.
fn place(root: &Root, destination: &Path, directory: Option<bool>) -> io::Result<OwnedFd> {
    let mut rest: VecDeque<OsString> = names(destination).collect();
    let (mut at, mut links) = (PathBuf::new(), 0);
    while let Some(name) = rest.pop_front() {
        if name == ".." {
            at.pop();
            continue;
        }
        let above = open_at(&root.tree, &at)?;
        match statat(&above, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_symlink() => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::LOOP.into());
                }
                let target = readlinkat(&above, &name, Vec::new())?;
                let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                if target.is_absolute() {
                    at.clear();
                }
                for name in names(&target).rev() {
                    rest.push_front(name);
                }
                continue;
            }
            Ok(_) => {}
            Err(Errno::NOENT) if directory.is_none() => return Err(Errno::NOENT.into()),
            Err(Errno::NOENT) if directory == Some(true) || !rest.is_empty() => {
                mkdirat(&above, &name, Mode::from_raw_mode(0o755))?;
                give(&above, &name, root.owner)?;
            }
            Err(Errno::NOENT) => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                openat(&above, &name, flags, Mode::from_raw_mode(0o644))?;
                give(&above, &name, root.owner)?;
            }
            Err(errno) => return Err(errno.into()),
        }
        at.push(name);
    }
    open_at(&root.tree, &at)
}

/// Gives what was made in a directory to its owner.
fn give(directory: &OwnedFd, name: &OsStr, owner: Option<Owner>) -> io::Result<()> {
    let Some(Owner { uid, gid }) = owner else {
        return Ok(());
    };
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
    Ok(chownat(
        directory,
        name,
        Some(user),
        Some(group),
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}

/// The names in a path, `..` among them.
fn names(path: &Path) -> impl DoubleEndedIterator<Item = OsString> {
    let is_name = |part: &Component<'_>| matches!(part, Component::Normal(_) | Component::ParentDir);
    path.components()
        .filter(is_name)
        .map(|part| part.as_os_str().to_owned())
}

/// What is at a path without links; the directory itself if it is empty.
fn open_at(directory: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    if path.as_os_str().is_empty() {
        return directory.try_clone();
    }
    openat_beneath::open_in(directory, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    #[test]
    fn a_place_is_found_and_made_within_the_root() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path();
        fs::create_dir_all(path.join("usr/lib")).unwrap();
        symlink("usr/lib", path.join("lib")).unwrap();
        symlink("../run/resolve/conf", path.join("dangling")).unwrap();
        symlink("/", path.join("top")).unwrap();
        symlink("loop", path.join("loop")).unwrap();
        let opened = Root {
            tree: File::open(path).unwrap().into(),
            owner: Some(Owner { uid: 1000, gid: 2000 }),
        };
        for (destination, directory, found) in [
            ("/lib/of", true, "usr/lib/of"),
            ("/dangling", false, "run/resolve/conf"),
            ("/top/../../a/b", true, "a/b"),
            ("lib/file", false, "usr/lib/file"),
        ] {
            let path_to = Path::new(destination);
            assert!(place(&opened, path_to, None).is_err(), "{destination} is there");
            let place = place(&opened, path_to, Some(directory)).unwrap();
            let at = fs::read_link(name_of(&place)).unwrap();
            assert_eq!(at, path.canonicalize().unwrap().join(found), "{destination}");
            assert_eq!(is_directory(&place).unwrap(), directory);
            let made = fs::metadata(path.join(found)).unwrap();
            assert_eq!((made.uid(), made.gid()), (1000, 2000), "{destination}");
        }
        let looped = place(&opened, Path::new("/loop/x"), Some(true)).unwrap_err();
        assert_eq!(looped.raw_os_error(), Some(Errno::LOOP.raw_os_error()));
    }
}
