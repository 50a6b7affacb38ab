//! Kubernetes' `fsGroup`: a volume's files are given to a group of the containers (`PodSecurityContext`), with the modes
//! that the kubelet sets (pkg/volume/volume_linux.go): owner and group may read and write a file, whatever its mode was.

use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, chmodat, chownat, openat, statat};

use super::error::StorageError;

/// What every file gets, and what every directory gets: it passes the group on.
const FILE: u32 = 0o660;
const DIRECTORY: u32 = 0o2770;

/// Deepest tree that is walked.
const DEEPEST: usize = 512;

/// Gives everything below a directory to the group; nothing if `on_mismatch` and the directory has it already.
pub(super) fn give(root: &Path, group: u32, on_mismatch: bool) -> Result<(), StorageError> {
    let failed = |errno: rustix::io::Errno| StorageError::io("give to its group", root)(errno);
    let stat = statat(CWD, root, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
    if on_mismatch && stat.st_gid == group && stat.st_mode & DIRECTORY == DIRECTORY {
        return Ok(());
    }
    let directory = openat(
        CWD,
        root,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(failed)?;
    walk(&directory, group, 0).map_err(failed)?;
    change(&directory, c".", &stat, group).map_err(failed)
}

fn walk(directory: &impl std::os::fd::AsFd, group: u32, depth: usize) -> rustix::io::Result<()> {
    if depth > DEEPEST {
        return Err(rustix::io::Errno::LOOP);
    }
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            walk(&openat(directory, name, flags, Mode::empty())?, group, depth + 1)?;
        }
        change(directory, name, &stat, group)?;
    }
    Ok(())
}

fn change(
    directory: &impl std::os::fd::AsFd,
    name: &std::ffi::CStr,
    stat: &Stat,
    group: u32,
) -> rustix::io::Result<()> {
    chownat(
        directory,
        name,
        None,
        Some(Gid::from_raw(group)),
        AtFlags::SYMLINK_NOFOLLOW,
    )?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind == FileType::Symlink {
        return Ok(());
    }
    let more = if kind == FileType::Directory { DIRECTORY } else { FILE };
    let mode = (stat.st_mode & 0o7777) | more;
    chmodat(directory, name, Mode::from_raw_mode(mode), AtFlags::empty())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn files_are_given_to_the_group_and_directories_pass_it_on() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("volume");
        fs::create_dir_all(root.join("sub")).unwrap();
        fs::write(root.join("sub/file"), "x").unwrap();
        fs::write(directory.path().join("outside"), "x").unwrap();
        symlink(directory.path().join("outside"), root.join("link")).unwrap();
        fs::write(root.join("sub/secret"), "x").unwrap();
        fs::set_permissions(root.join("sub/file"), fs::Permissions::from_mode(0o640)).unwrap();
        fs::set_permissions(root.join("sub/secret"), fs::Permissions::from_mode(0o400)).unwrap();
        // To our own group, which everybody may do.
        let group = rustix::process::getgid().as_raw();
        give(&root, group, false).unwrap();
        let mode = |name: &str| fs::metadata(root.join(name)).unwrap().mode() & 0o7777;
        assert_eq!((mode("sub/file"), mode("sub/secret")), (0o660, 0o660));
        assert_eq!((mode("sub") & 0o2770, mode(".") & 0o2770), (0o2770, 0o2770));
        assert_eq!(fs::metadata(root.join("sub/file")).unwrap().gid(), group);
        // It has the group already: nothing is looked at.
        fs::set_permissions(root.join("sub/file"), fs::Permissions::from_mode(0o600)).unwrap();
        give(&root, group, true).unwrap();
        assert_eq!(mode("sub/file"), 0o600);
    }
}
