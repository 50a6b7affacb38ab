//! Paths inside a container's root, and mounts that are handled by descriptor.
//!
//! The image may be hostile. A path of the specification is resolved with the root as a jail (RESOLVE_IN_ROOT,
//! openat2(2)). Missing directories are created one component at a time. A mount is moved onto the descriptor that was
//! found. So a symbolic link never leads outside, even if it is exchanged at any moment.

use std::{
    collections::VecDeque,
    ffi::{OsStr, OsString},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
    mount::{MoveMountFlags, OpenTreeFlags},
};

use super::{
    options::{Attributes, Options},
    sys,
};

/// Links that one path may lead through: the kernel's own limit (path_resolution(7)).
const MAX_LINKS: usize = 40;

#[derive(Debug, Clone, Copy)]
pub(super) struct Root<'a>(BorrowedFd<'a>);

impl<'a> Root<'a> {
    pub(super) fn new(root: BorrowedFd<'a>) -> Self {
        Self(root)
    }

    /// A path that exists, as the container would resolve it. The last component may be a symbolic link.
    pub(super) fn find(self, path: &Path) -> io::Result<OwnedFd> {
        self.open(path, OFlags::PATH)
    }

    fn open(self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        // The jail may report EAGAIN when something is renamed meanwhile; another attempt is then what it asks for.
        loop {
            let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
            match rustix::fs::openat2(self.0, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                Err(Errno::AGAIN) => {}
                other => return Ok(other?),
            }
        }
    }

    /// The directory, made with all that leads to it where it is missing.
    pub(super) fn directory(self, path: &Path) -> io::Result<OwnedFd> {
        self.walk(path, Missing::Directory)
    }

    /// The file, made empty with all that leads to it where it is missing.
    pub(super) fn file(self, path: &Path) -> io::Result<OwnedFd> {
        self.walk(path, Missing::File)
    }

    /// Goes name by name, makes what is missing, and reads links as the container would: one whose target is missing
    /// too leads to where the target is made, as with runc. No link is left to the kernel to follow, and `..` goes
    /// back the way that was come, so nothing leads above the root.
    fn walk(self, path: &Path, last: Missing) -> io::Result<OwnedFd> {
        let mut pending: VecDeque<OsString> = components(path).into();
        let mut way = vec![self.find(Path::new("/"))?];
        let mut links = 0;
        while let (Some(name), Some(here)) = (pending.pop_front(), way.last()) {
            if name == ".." {
                way.truncate(way.len().saturating_sub(1).max(1));
                continue;
            }
            let missing = if pending.is_empty() { last } else { Missing::Directory };
            let found = missing.open_or_make(here, &name)?;
            if FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode) != FileType::Symlink {
                way.push(found);
                continue;
            }
            links += 1;
            if links > MAX_LINKS {
                return Err(Errno::LOOP.into());
            }
            let target = rustix::fs::readlinkat(&found, "", Vec::new())?;
            let target = Path::new(OsStr::from_bytes(target.as_bytes()));
            if target.is_absolute() {
                way.truncate(1);
            }
            for component in target.components().rev() {
                match component {
                    Component::Normal(name) => pending.push_front(name.to_owned()),
                    Component::ParentDir => pending.push_front("..".into()),
                    Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
                }
            }
        }
        way.pop().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Whether a path's last component is a directory itself, no link to one; or nothing yet.
    pub(super) fn is_ordinary_directory(self, path: &Path) -> io::Result<bool> {
        let (parent, name) = self.parent(path)?;
        match rustix::fs::statat(&parent, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory),
            Err(Errno::NOENT) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// The directory that holds a path's last component, made where it is missing, and that component.
    pub(super) fn parent(self, path: &Path) -> io::Result<(OwnedFd, OsString)> {
        let mut names = components(path);
        let name = names.pop().ok_or(io::ErrorKind::InvalidInput)?;
        Ok((self.directory(&names.iter().collect::<PathBuf>())?, name))
    }
}

/// What a name stands for that is not there yet.
#[derive(Debug, Clone, Copy)]
enum Missing {
    Directory,
    File,
}

impl Missing {
    /// What the name stands for, a link for itself.
    fn open_or_make(self, parent: &OwnedFd, name: &OsStr) -> io::Result<OwnedFd> {
        let open = || {
            rustix::fs::openat(
                parent,
                name,
                OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            )
        };
        match open() {
            Err(Errno::NOENT) => {}
            other => return Ok(other?),
        }
        let made = match self {
            Self::Directory => rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755)),
            Self::File => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
                rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o644)).map(drop)
            }
        };
        match made {
            // Another container on the same files was faster.
            Ok(()) | Err(Errno::EXIST) => Ok(open()?),
            Err(error) => Err(error.into()),
        }
    }
}

/// A path's names from the root on, without `.` and with `..` taken back, as runc cleans a path.
pub(super) fn components(path: &Path) -> Vec<OsString> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name.to_owned()),
            Component::ParentDir => drop(names.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    names
}

pub(super) fn is_directory(fd: &OwnedFd) -> io::Result<bool> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode) == FileType::Directory)
}

/// A mount of its own of what a path names, attached nowhere yet.
pub(super) fn clone_path(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    Ok(rustix::mount::open_tree(CWD, path, clone_flags(recursive))?)
}

/// What is at a path below a directory of the guest's, with no link followed.
pub(super) fn beneath(directory: &Path, path: &Path) -> io::Result<OwnedFd> {
    let directory = rustix::fs::open(
        directory,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let open = |flags| {
        rustix::fs::openat2(
            &directory,
            path,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC | flags,
            Mode::empty(),
            resolve,
        )
    };
    // A directory may be a mount that the first look at it makes, and O_PATH alone does not look (the kernel's follow_automount).
    match open(OFlags::DIRECTORY) {
        Err(Errno::NOTDIR) => Ok(open(OFlags::empty())?),
        opened => Ok(opened?),
    }
}

/// A mount of its own of what a descriptor names, attached nowhere yet.
pub(super) fn clone_fd(fd: impl AsFd, recursive: bool) -> io::Result<OwnedFd> {
    Ok(rustix::mount::open_tree(
        fd,
        "",
        clone_flags(recursive) | OpenTreeFlags::AT_EMPTY_PATH,
    )?)
}

fn clone_flags(recursive: bool) -> OpenTreeFlags {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags | OpenTreeFlags::AT_RECURSIVE
    } else {
        flags
    }
}

/// Attaches a mount on what a descriptor names.
pub(super) fn attach(mount: &OwnedFd, target: impl AsFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(mount, "", target, "", flags)?)
}

/// Attaches a mount on a path, as the calling process sees it.
pub(super) fn attach_at(mount: &OwnedFd, path: &Path) -> io::Result<()> {
    Ok(rustix::mount::move_mount(
        mount,
        "",
        CWD,
        path,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?)
}

/// Changes attributes of a mount, and of all below it if asked to. Others, locked ones among them, stay as they are.
pub(super) fn change(mount: &OwnedFd, attributes: Attributes, recursive: bool) -> io::Result<()> {
    if attributes.is_empty() {
        return Ok(());
    }
    sys::mount_setattr(mount.as_fd(), c"", recursive, attributes.set, attributes.clear, 0)
}

/// Gives a mount what its options ask for. What is recursive comes last and so wins, as with runc.
pub(super) fn apply(mount: &OwnedFd, options: &Options) -> io::Result<()> {
    change(mount, options.here, false)?;
    change(mount, options.below, true)?;
    for (propagation, recursive) in &options.propagation {
        propagate(mount, *propagation, *recursive)?;
    }
    Ok(())
}

/// Sets the propagation type (`MS_*`) of a mount.
pub(super) fn propagate(mount: &OwnedFd, propagation: u64, recursive: bool) -> io::Result<()> {
    sys::mount_setattr(mount.as_fd(), c"", recursive, 0, 0, propagation)
}

/// The type of file system that a descriptor is on (`*_SUPER_MAGIC`, statfs(2)).
pub(super) fn magic(fd: impl AsFd) -> io::Result<i64> {
    Ok(rustix::fs::fstatfs(fd)?.f_type)
}

/// Makes a symbolic link, in the place of whatever file has its name.
pub(super) fn symlink(target: &str, parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match rustix::fs::symlinkat(target, parent, name) {
        Err(Errno::EXIST) => {
            if rustix::fs::readlinkat(parent, name, Vec::new()).is_ok_and(|old| old.as_bytes() == target.as_bytes()) {
                return Ok(());
            }
            rustix::fs::unlinkat(parent, name, AtFlags::empty())?;
            Ok(rustix::fs::symlinkat(target, parent, name)?)
        }
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn root(path: &Path) -> OwnedFd {
        rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap()
    }

    #[test]
    fn a_link_that_leads_outside_ends_inside() {
        let outer = tempfile::tempdir().unwrap();
        let inner = outer.path().join("root");
        std::fs::create_dir(&inner).unwrap();
        std::os::unix::fs::symlink("/../../escape", inner.join("absolute")).unwrap();
        std::os::unix::fs::symlink("../../..", inner.join("relative")).unwrap();
        let fd = root(&inner);
        Root::new(fd.as_fd())
            .directory(Path::new("relative/made/here"))
            .unwrap();
        assert!(inner.join("made/here").is_dir());
        Root::new(fd.as_fd()).directory(Path::new("/absolute/x")).unwrap();
        assert!(inner.join("escape/x").is_dir());
        assert!(!outer.path().join("escape").exists());
    }

    #[test]
    fn a_link_is_read_from_where_it_is_and_not_from_where_it_was_found() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("b/c")).unwrap();
        std::os::unix::fs::symlink("b/c", dir.path().join("a")).unwrap();
        std::os::unix::fs::symlink("../x", dir.path().join("b/c/link")).unwrap();
        let fd = root(dir.path());
        Root::new(fd.as_fd()).file(Path::new("/a/link")).unwrap();
        assert!(dir.path().join("b/x").is_file());
    }

    #[test]
    fn a_link_is_no_ordinary_directory_and_a_directory_behind_a_link_is() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        std::os::unix::fs::symlink("a", dir.path().join("link")).unwrap();
        let fd = root(dir.path());
        let ordinary = |path: &str| Root::new(fd.as_fd()).is_ordinary_directory(Path::new(path)).unwrap();
        assert!(ordinary("/a/b") && ordinary("/a/none") && ordinary("/link/b"));
        assert!(!ordinary("/link") && !ordinary("/file"));
    }

    #[test]
    fn links_in_a_circle_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("b", dir.path().join("a")).unwrap();
        std::os::unix::fs::symlink("a", dir.path().join("b")).unwrap();
        let fd = root(dir.path());
        let error = Root::new(fd.as_fd()).directory(Path::new("/a/x")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
    }

    #[test]
    fn a_missing_file_is_made_with_its_directories() {
        let dir = tempfile::tempdir().unwrap();
        let fd = root(dir.path());
        Root::new(fd.as_fd())
            .file(Path::new("etc/../run/./secrets/token"))
            .unwrap();
        assert!(dir.path().join("run/secrets/token").is_file());
    }

    proptest! {
        #[test]
        fn a_cleaned_path_never_goes_up(path: String) {
            prop_assert!(components(Path::new(&path)).iter().all(|name| name != ".." && name != "."));
        }
    }
}
