//! Paths inside a container's root, and mounts that are handled by descriptor.
//!
//! The image is hostile: a path of the specification is resolved with the root as a jail (RESOLVE_IN_ROOT, openat2(2)),
//! what is missing is made one component at a time, and what is mounted is moved onto the descriptor that was found, so
//! that no symbolic link, exchanged at any moment, leads outside.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
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

/// The root directory of a container.
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
        let mut sofar = PathBuf::from("/");
        let mut current = self.find(&sofar)?;
        for name in components(path) {
            sofar.push(&name);
            let found = match self.find(&sofar) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    rustix::fs::mkdirat(&current, &name, Mode::from_raw_mode(0o755))?;
                    self.find(&sofar)
                }
                other => other,
            };
            current = found?;
        }
        Ok(current)
    }

    /// The file, made empty with all that leads to it where it is missing.
    pub(super) fn file(self, path: &Path) -> io::Result<OwnedFd> {
        let path = &Path::new("/").join(components(path).iter().collect::<PathBuf>());
        match self.find(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let (parent, name) = self.parent(path)?;
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
                rustix::fs::openat(&parent, &name, flags, Mode::from_raw_mode(0o644))?;
                self.find(path)
            }
            other => other,
        }
    }

    /// The directory that holds a path's last component, made where it is missing, and that component.
    pub(super) fn parent(self, path: &Path) -> io::Result<(OwnedFd, OsString)> {
        let mut names = components(path);
        let name = names.pop().ok_or(io::ErrorKind::InvalidInput)?;
        Ok((self.directory(&names.iter().collect::<PathBuf>())?, name))
    }
}

/// A path's names from the root on, without `.` and with `..` taken back, as runc cleans a path.
fn components(path: &Path) -> Vec<OsString> {
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

/// Whether a descriptor names a directory.
pub(super) fn is_directory(fd: &OwnedFd) -> io::Result<bool> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode) == FileType::Directory)
}

/// A mount of its own of what a path names, attached nowhere yet.
pub(super) fn clone_path(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    Ok(rustix::mount::open_tree(CWD, path, clone_flags(recursive))?)
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

/// Gives a mount what its options ask for.
pub(super) fn apply(mount: &OwnedFd, options: &Options) -> io::Result<()> {
    change(mount, options.below, true)?;
    change(mount, options.here, false)?;
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
        assert!(Root::new(fd.as_fd()).directory(Path::new("/absolute/x")).is_err());
        assert!(!outer.path().join("escape").exists());
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
