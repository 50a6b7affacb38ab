//! Removes a directory and its contents, but never the contents of a mount in it.
//!
//! Mounts below a sandbox's directory are files of the host: a pod's volumes. They are unmounted before the directory is
//! removed. If a mount is left, or appears at the same moment, the removal must fail and not delete the volume.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, ResolveFlags, openat2, unlinkat};
use rustix::io::Errno;

/// Removes the directory. It may be gone, and so may what is in it.
///
/// # Errors
/// Something cannot be removed, or something is mounted there (EXDEV, or EBUSY for a file). The rest may be gone by then.
pub(crate) fn directory(path: &Path) -> io::Result<()> {
    // The path itself is the caller's: links on the way to it are followed.
    let top = match rustix::fs::open(path, flags(), Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        top => top?,
    };
    clear(&top)?;
    gone(unlinkat(CWD, path, AtFlags::REMOVEDIR))
}

fn flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

fn clear(directory: &OwnedFd) -> io::Result<()> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        match unlinkat(directory, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => {
                let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
                match openat2(directory, name, flags(), Mode::empty(), resolve) {
                    Err(Errno::NOENT) => continue,
                    below => clear(&below?)?,
                }
                gone(unlinkat(directory, name, AtFlags::REMOVEDIR))?;
            }
            unlinked => gone(unlinked)?,
        }
    }
    Ok(())
}

fn gone(removed: rustix::io::Result<()>) -> io::Result<()> {
    match removed {
        Err(Errno::NOENT) => Ok(()),
        removed => Ok(removed?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount};
    use std::fs;

    #[test]
    fn all_that_is_in_a_directory_goes_and_what_a_link_leads_to_stays() {
        let place = tempfile::tempdir().unwrap();
        let (gone, kept) = (place.path().join("gone"), place.path().join("kept"));
        fs::create_dir_all(gone.join("a/b/c")).unwrap();
        fs::create_dir(&kept).unwrap();
        fs::write(gone.join("a/b/file"), "x").unwrap();
        fs::write(kept.join("file"), "x").unwrap();
        std::os::unix::fs::symlink(&kept, gone.join("a/link")).unwrap();
        directory(&gone).unwrap();
        assert!(!gone.exists() && kept.join("file").exists());
        directory(&gone).unwrap();
    }

    #[test]
    fn what_is_mounted_in_it_is_not_touched_and_is_an_error() {
        let work = || {
            crate::host::sys::unshare_mount_namespace().unwrap();
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
            let place = tempfile::tempdir().unwrap();
            let (volume, run) = (place.path().join("volume"), place.path().join("run"));
            fs::create_dir(&volume).unwrap();
            fs::write(volume.join("precious"), "x").unwrap();
            fs::create_dir_all(run.join("shared/c/mounts/0")).unwrap();
            mount_bind(&volume, run.join("shared/c/mounts/0")).unwrap();
            let error = directory(&run).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EXDEV));
            assert!(volume.join("precious").exists());
            unmount(run.join("shared/c/mounts/0"), UnmountFlags::DETACH).unwrap();
            directory(&run).unwrap();
            assert!(!run.exists());
        };
        // A thread of its own has a mount namespace that ends with it.
        std::thread::spawn(work).join().unwrap();
    }
}
