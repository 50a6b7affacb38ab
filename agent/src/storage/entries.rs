//! The initial contents of a storage in memory: a copy of the host's volume that it replaces.
//!
//! Containers may already use the storage and create links in it. So no link is followed, and existing entries are not
//! changed.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use protocol::agent::StorageEntry;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, RawMode, ResolveFlags, Uid};
use rustix::io::Errno;

/// Makes what is missing below `root`: everything if the storage is `new`, otherwise what is required.
pub(super) fn make(root: &Path, entries: &[StorageEntry], new: bool) -> io::Result<()> {
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, directory, Mode::empty())?;
    for entry in entries.iter().filter(|entry| new || entry.required) {
        let path = Path::new(OsStr::from_bytes(&entry.path));
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let parent = if parent.as_os_str().is_empty() {
            Path::new(".")
        } else {
            parent
        };
        let parent = rustix::fs::openat2(&root, parent, directory, Mode::empty(), resolve)?;
        make_one(&parent, name, entry)?;
    }
    Ok(())
}

fn make_one(parent: &OwnedFd, name: &OsStr, entry: &StorageEntry) -> io::Result<()> {
    let mode = Mode::from_raw_mode(RawMode::from(entry.mode) & 0o7777);
    let kind = FileType::from_raw_mode(entry.mode);
    let made = match kind {
        FileType::Directory => rustix::fs::mkdirat(parent, name, mode),
        FileType::Symlink => rustix::fs::symlinkat(OsStr::from_bytes(&entry.content), parent, name),
        FileType::RegularFile => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            match rustix::fs::openat(parent, name, flags, mode) {
                Ok(file) => {
                    File::from(file).write_all(&entry.content)?;
                    Ok(())
                }
                Err(error) => Err(error),
            }
        }
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    };
    match made {
        Ok(()) => {}
        Err(Errno::EXIST) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    // A change of owner takes the set-id bits off; a symbolic link has no mode of its own.
    if kind != FileType::Symlink {
        rustix::fs::chmodat(parent, name, mode, AtFlags::empty())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn entry(path: &str, mode: u32, content: &str, required: bool) -> StorageEntry {
        StorageEntry {
            path: path.into(),
            mode,
            content: content.into(),
            required,
            ..StorageEntry::default()
        }
    }

    #[test]
    fn a_new_storage_gets_everything_and_another_one_what_is_required_and_missing() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let entries = [
            entry("a", 0o042_770, "", true),
            entry("a/file", 0o100_640, "content", false),
            entry("link", 0o120_777, "a", false),
        ];
        make(root, &entries, true).unwrap();
        assert_eq!(std::fs::read_to_string(root.join("link/file")).unwrap(), "content");
        assert_eq!(
            std::fs::metadata(root.join("a")).unwrap().permissions().mode() & 0o7777,
            0o2770
        );
        std::fs::remove_dir_all(root.join("a")).unwrap();
        make(root, &entries, false).unwrap();
        assert!(root.join("a").is_dir() && !root.join("a/file").exists());
        // A container's link in the place of a directory leads nowhere.
        let outside = tempfile::tempdir().unwrap();
        std::fs::remove_dir(root.join("a")).unwrap();
        std::os::unix::fs::symlink(outside.path(), root.join("a")).unwrap();
        make(root, &[entry("a/b", 0o040_755, "", true)], false).unwrap_err();
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}
