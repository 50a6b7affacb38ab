//! Removes a cgroup and its descendants. A container may have made thousands of them, at a depth for which a path is too
//! short. They are walked by descriptors, one per level, and each cgroup is visited once.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;

/// One that is being walked, and those below it that are not walked yet.
struct Level {
    directory: OwnedFd,
    name: CString,
    below: Vec<CString>,
}

impl Level {
    fn open(parent: impl std::os::fd::AsFd, name: CString) -> rustix::io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = openat(parent, &name, flags, Mode::empty())?;
        let mut below = Vec::new();
        for entry in Dir::read_from(&directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if entry.file_type() == FileType::Directory && name != c"." && name != c".." {
                below.push(name.to_owned());
            }
        }
        Ok(Self { directory, name, below })
    }
}

/// What a walk does in each directory.
trait Visit {
    /// Before those below it.
    fn enter(&mut self, _directory: &OwnedFd) -> rustix::io::Result<()> {
        Ok(())
    }
    /// After those below it; not for the first.
    fn leave(&mut self, _parent: &OwnedFd, _name: &CStr) -> rustix::io::Result<()> {
        Ok(())
    }
}

/// One that goes meanwhile is no error, but the first.
fn walk(root: &Path, visit: &mut impl Visit) -> rustix::io::Result<()> {
    let name = CString::new(root.as_os_str().as_encoded_bytes()).map_err(|_| Errno::INVAL)?;
    let first = Level::open(CWD, name)?;
    visit.enter(&first.directory)?;
    let mut levels = vec![first];
    while let Some(level) = levels.last_mut() {
        if let Some(name) = level.below.pop() {
            let entered = Level::open(&level.directory, name).and_then(|next| {
                visit.enter(&next.directory)?;
                Ok(next)
            });
            match entered {
                Ok(next) => levels.push(next),
                Err(error) => unless_gone(Err(error))?,
            }
            continue;
        }
        let done = levels.pop();
        if let (Some(done), Some(parent)) = (done, levels.last()) {
            unless_gone(visit.leave(&parent.directory, &done.name))?;
        }
    }
    Ok(())
}

/// ENODEV is what a file of a cgroup that is gone says to whoever has opened it.
fn unless_gone(result: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match result {
        Err(Errno::NOENT | Errno::NODEV) => Ok(()),
        result => result,
    }
}

/// Calls `read` with every cgroup, the first first.
pub(super) fn each(root: &Path, read: impl FnMut(&OwnedFd) -> io::Result<()>) -> io::Result<()> {
    struct Reads<F>(F);
    impl<F: FnMut(&OwnedFd) -> io::Result<()>> Visit for Reads<F> {
        fn enter(&mut self, directory: &OwnedFd) -> rustix::io::Result<()> {
            (self.0)(directory).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
        }
    }
    Ok(walk(root, &mut Reads(read))?)
}

/// Removes it and all below it. Nobody is in them any more. Blocks.
pub(super) fn remove(root: &Path) -> io::Result<()> {
    struct Removes;
    impl Visit for Removes {
        fn leave(&mut self, parent: &OwnedFd, name: &CStr) -> rustix::io::Result<()> {
            unlinkat(parent, name, AtFlags::REMOVEDIR)
        }
    }
    match walk(root, &mut Removes) {
        Err(Errno::NOENT) => Ok(()),
        walked => {
            walked?;
            Ok(unless_gone(unlinkat(CWD, root, AtFlags::REMOVEDIR))?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_tree_is_walked_parents_first_and_removed_children_first() {
        let root = tempfile::tempdir().unwrap();
        let top = root.path().join("top");
        fs::create_dir_all(top.join("a/b")).unwrap();
        let mut inodes = Vec::new();
        each(&top, |directory| {
            inodes.push(rustix::fs::fstat(directory)?.st_ino);
            Ok(())
        })
        .unwrap();
        let inode = |path: &Path| rustix::fs::stat(path).unwrap().st_ino;
        assert_eq!(inodes, [inode(&top), inode(&top.join("a")), inode(&top.join("a/b"))]);
        remove(&top).unwrap();
        assert!(!top.exists());
        remove(&top).unwrap();
        assert!(each(&top, |_| Ok(())).is_err());
    }

    #[test]
    fn what_no_path_can_name_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let name = CString::new("d".repeat(200)).unwrap();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut at = openat(CWD, root.path(), flags, Mode::empty()).unwrap();
        for _ in 0..100 {
            rustix::fs::mkdirat(&at, &name, Mode::RWXU).unwrap();
            at = openat(&at, &name, flags, Mode::empty()).unwrap();
        }
        let top = root.path().join("d".repeat(200));
        let mut count = 0;
        each(&top, |_| {
            count += 1;
            Ok(())
        })
        .unwrap();
        assert_eq!(count, 100);
        remove(&top).unwrap();
        assert!(!top.exists());
    }

    #[test]
    fn a_file_in_the_way_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        let top = root.path().join("top");
        fs::create_dir(&top).unwrap();
        fs::write(top.join("file"), "").unwrap();
        assert!(remove(&top).is_err());
    }
}
