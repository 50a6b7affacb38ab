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

/// The link that the kubelet exchanges when the files of a volume change (its pkg/volume/util/atomic_writer.go), and the name by which it
/// does so.
const CURRENT: &[u8] = b"..data";
const NEXT: &str = "..data_tmp";

/// Makes what is below `root` what the host has: new files first, then the link to them, by which programs find them, and then what is
/// no longer there goes. What a container has made itself stays.
pub(super) fn update(root: &Path, entries: &[StorageEntry]) -> io::Result<()> {
    let (current, others): (Vec<_>, Vec<_>) = entries.iter().cloned().partition(|entry| entry.path == CURRENT);
    make(root, &others, true)?;
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::open(root, directory, Mode::empty())?;
    for entry in &current {
        // Of an update that was interrupted.
        match rustix::fs::unlinkat(&opened, NEXT, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        make_one(&opened, OsStr::new(NEXT), entry)?;
        rustix::fs::renameat(&opened, NEXT, &opened, OsStr::from_bytes(CURRENT))?;
    }
    let listed = |name: &OsStr| entries.iter().any(|entry| entry.path == name.as_bytes());
    for entry in std::fs::read_dir(root)? {
        let entry = entry?;
        let (name, path) = (entry.file_name(), entry.path());
        let old = name.as_bytes().starts_with(b"..");
        let stale =
            || std::fs::read_link(&path).is_ok_and(|target| target.as_os_str().as_bytes().starts_with(b"..data/"));
        if listed(&name) || !(old || stale()) {
            continue;
        }
        // It follows no link (std::fs::remove_dir_all).
        let removed = match entry.file_type()?.is_dir() {
            true => std::fs::remove_dir_all(&path),
            false => std::fs::remove_file(&path),
        };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
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
    fn an_update_exchanges_the_link_and_removes_what_the_host_has_no_more() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let version = |number: u32, key: &str| {
            let name = format!("..{number}");
            [
                entry(&name, 0o040_755, "", false),
                entry(&format!("{name}/{key}"), 0o100_644, &number.to_string(), false),
                entry("..data", 0o120_777, &name, false),
                entry(key, 0o120_777, &format!("..data/{key}"), false),
            ]
        };
        make(root, &version(1, "old"), true).unwrap();
        std::fs::write(root.join("own"), "a container's").unwrap();
        // An update that was interrupted has left this.
        std::os::unix::fs::symlink("..9", root.join(NEXT)).unwrap();
        let open = File::open(root.join("old")).unwrap();
        update(root, &version(2, "new")).unwrap();
        assert_eq!(std::fs::read_to_string(root.join("new")).unwrap(), "2");
        assert_eq!(io::read_to_string(open).unwrap(), "1");
        let mut left: Vec<_> = std::fs::read_dir(root)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["..2", "..data", "new", "own"]);
        // A container's link in place of the old directory is a link that goes.
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("file"), "").unwrap();
        std::os::unix::fs::symlink(outside.path(), root.join("..3")).unwrap();
        update(root, &version(2, "new")).unwrap();
        assert!(outside.path().join("file").exists() && !root.join("..3").exists());
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
