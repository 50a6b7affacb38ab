//! emptyDirs on disks of the guest (`emptydir_mode = "block-plain"`): each has an image in its directory on the host, which the kubelet
//! removes with it.
//!
//! It makes the image and its file system by mke2fs(8) and debugfs(8), and plugs nothing in.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base::spawn::{Accounting, Finished, Program, RunError, Score};
use protocol::agent::{Storage, StorageEntry};
use rustix::fs::{CWD, MemfdFlags, RenameFlags, memfd_create, renameat_with};

use super::disk::HostDisk;
use super::error::VolumeError;
use super::located::EmptyDirPlace;
use crate::host::host_ns::HostNamespace;
use crate::host::openat_beneath;
use crate::host::path_error::PathError;

/// The image's name in the emptyDir: Kata's.
const IMAGE: &str = "disk.img";

/// Where the programs are if PATH does not say so.
const PROGRAMS: &str = "/usr/sbin:/sbin:/usr/bin:/bin";

/// Timeout for a program to make the file system on the host's disk.
const PROGRAM_TIMEOUT: Duration = Duration::from_secs(60);

/// The image of an emptyDir, made if there is none, and its file system for the guest. Blocks.
///
/// # Errors
/// It cannot be made or opened, or is no regular file.
pub(super) fn find(host: &HostNamespace, place: &EmptyDirPlace) -> Result<(Storage, HostDisk), VolumeError> {
    let (root, part) = (place.root.clone(), place.part.clone());
    let failed =
        |operation: &'static str, path: PathBuf| move |source: io::Error| PathError::new(operation, &path, source);
    let image = root.join(IMAGE);
    let found = host.run(move || -> Result<_, VolumeError> {
        if !root.join(IMAGE).symlink_metadata().is_ok_and(|found| found.is_file()) {
            make(&root).map_err(failed("make an image in", root.clone()))?;
        }
        // A link that a container has left there, when the directory was shared, is not followed.
        let handle = openat_beneath::open(&root, Path::new(IMAGE)).map_err(failed("open", root.join(IMAGE)))?;
        let entries = required(&root, &part).map_err(failed("read", root.join(&part)))?;
        Ok((handle, entries))
    });
    let (handle, entries) = found.map_err(|source| VolumeError::Missing {
        path: image.clone(),
        source: Box::new(source),
    })??;
    let disk = HostDisk::of(handle, &image, false)?;
    let storage = Storage {
        name: disk.storage_name(),
        fstype: "ext4".to_owned(),
        // The tables of inodes are not written before they are used: the image stays small.
        options: ["discard", "noinit_itable", "nodev", "nosuid"]
            .map(str::to_owned)
            .to_vec(),
        entries,
        ..Storage::default()
    };
    Ok((storage, disk))
}

/// The directories that lead to a part of the emptyDir, as the kubelet has made them (subPath).
fn required(root: &Path, part: &Path) -> io::Result<Vec<StorageEntry>> {
    let mut entries = Vec::new();
    let mut path = PathBuf::new();
    for component in part {
        path.push(component);
        let metadata = root.join(&path).symlink_metadata()?;
        if !metadata.is_dir() {
            return Err(io::Error::new(
                io::ErrorKind::NotADirectory,
                "a part of an emptyDir on a disk is a directory",
            ));
        }
        entries.push(StorageEntry {
            path: path.as_os_str().as_bytes().to_owned(),
            mode: metadata.mode(),
            uid: metadata.uid(),
            gid: metadata.gid(),
            required: true,
            ..StorageEntry::default()
        });
    }
    Ok(entries)
}

/// Makes the image: as large as the file system of the directory and empty, with the directory's owner and mode as those of its root.
/// It gets its name when it is complete; if another container's has it by then, that one stays.
fn make(root: &Path) -> io::Result<()> {
    let figures = rustix::fs::statvfs(root)?;
    let bytes = figures.f_blocks.saturating_mul(figures.f_frsize);
    let directory = fs::metadata(root)?;
    let unfinished = root.join(format!(".{IMAGE}.{}", unique()));
    let made = write(&unfinished, bytes, &directory);
    let named =
        made.and_then(
            |()| match renameat_with(CWD, &unfinished, CWD, root.join(IMAGE), RenameFlags::NOREPLACE) {
                Err(rustix::io::Errno::EXIST) | Ok(()) => Ok(()),
                Err(error) => Err(error.into()),
            },
        );
    // It is gone if it has its name.
    let _ = fs::remove_file(&unfinished);
    named
}

/// The id of the calling thread: no other thread of the host has it now.
fn unique() -> String {
    let thread = rustix::thread::gettid().as_raw_nonzero();
    format!("{thread}")
}

fn write(image: &Path, bytes: u64, directory: &fs::Metadata) -> io::Result<()> {
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(image)?;
    file.set_len(bytes)?;
    drop::<File>(file);
    let owner = format!(
        "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner={}:{}",
        directory.uid(),
        directory.gid()
    );
    let mke2fs = ["-q", "-F", "-t", "ext4", "-m", "0", "-E", &owner];
    run("mke2fs", &mke2fs, image, "")?;
    // mke2fs gives its root the mode 0755, and a directory for what fsck finds. <2> is the root.
    let commands = format!("set_inode_field <2> mode 0{:o}\nrmdir lost+found\n", directory.mode());
    let output = run("debugfs", &["-w", "-f", "-"], image, &commands)?;
    // It ends well, whatever becomes of a command; its first line is its version.
    match output.stderr.lines().nth(1) {
        None => Ok(()),
        Some(line) => Err(io::Error::other(format!("debugfs: {line}"))),
    }
}

/// Runs a program of e2fsprogs on an image.
fn run(program: &str, words: &[&str], image: &Path, input: &str) -> io::Result<Finished> {
    let mut commands = File::from(memfd_create("commands", MemfdFlags::CLOEXEC)?);
    commands.write_all(input.as_bytes())?;
    commands.rewind()?;
    let search = std::env::var("PATH").unwrap_or_default();
    // It serves one pod: it is not spared for that.
    let started = Program::new(program)
        .args(words)
        .args([image])
        .envs([("PATH", format!("{search}:{PROGRAMS}"))])
        .stdin(commands)
        .accounting(Accounting {
            score: Score::NotSpared,
            ..Accounting::default()
        });
    let finished = started.run(PROGRAM_TIMEOUT).map_err(|error| {
        let kind = match &error {
            RunError::Start(error) => error.kind(),
            RunError::TimedOut { .. } => io::ErrorKind::TimedOut,
        };
        io::Error::new(kind, format!("{program} (of e2fsprogs) {error}"))
    })?;
    match finished.status.success() {
        true => Ok(finished),
        false => Err(io::Error::other(format!("{program}: {}", finished.stderr))),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn place(root: &Path, part: &str) -> EmptyDirPlace {
        EmptyDirPlace {
            root: root.to_owned(),
            part: part.into(),
            identity: Vec::new(),
        }
    }

    fn host() -> HostNamespace {
        HostNamespace::start_thread().unwrap()
    }

    #[test]
    fn an_empty_dir_has_one_image_whose_root_is_as_the_directory() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        fs::set_permissions(root, fs::Permissions::from_mode(0o2777)).unwrap();
        fs::create_dir_all(root.join("a/b")).unwrap();
        let (first, disk) = find(&host(), &place(root, "a/b")).unwrap();
        let paths: Vec<_> = first.entries.iter().map(|entry| entry.path.clone()).collect();
        assert_eq!(paths, [b"a".to_vec(), b"a/b".to_vec()]);
        assert!(first.options.contains(&"discard".to_owned()));
        let (second, again) = find(&host(), &place(root, "")).unwrap();
        assert_eq!((second.name, again.key), (first.name, disk.key));
        let image = fs::metadata(root.join(IMAGE)).unwrap();
        // It is sparse.
        assert!(
            image.len() > 1 << 30 && image.blocks() * 512 < image.len() / 8,
            "{image:?}"
        );
        let shown = run("debugfs", &["-f", "-"], &root.join(IMAGE), "stat <2>\nls\n").unwrap();
        let shown = shown.stdout;
        assert!(shown.contains("Type: directory    Mode:  02777"), "{shown}");
        assert!(!shown.contains("lost+found"), "{shown}");
        let left: Vec<_> = fs::read_dir(root)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left.len(), 2, "{left:?}");
    }

    #[test]
    fn a_link_in_the_place_of_the_image_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let outside = tempfile::NamedTempFile::new().unwrap();
        symlink(outside.path(), directory.path().join(IMAGE)).unwrap();
        find(&host(), &place(directory.path(), "")).unwrap_err();
        assert_eq!(outside.as_file().metadata().unwrap().len(), 0);
    }
}
