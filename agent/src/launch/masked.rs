//! Paths that a container must not see, and paths that it must not change (OCI runtime specification, config-linux.md
//! "Masked Paths", "Readonly Paths"). Runs inside the container's root.

use std::{io, os::fd::OwnedFd, path::Path};

use oci_spec::runtime::Linux;
use rustix::{
    fs::{CWD, FileType, Mode, OFlags},
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen},
};

use super::{
    fault::{Context, Fault, Result},
    options::Attributes,
    tree,
};

/// Covers the masked paths and makes the read-only ones so. What does not exist needs neither.
pub(super) fn carry_out(linux: &Linux) -> Result<()> {
    for path in linux.readonly_paths().as_deref().unwrap_or_default() {
        when_there(make_read_only(Path::new(path))).or_refuse(|| format!("cannot make {path} read-only"))?;
    }
    let masked = linux.masked_paths().as_deref().unwrap_or_default();
    if masked.is_empty() {
        return Ok(());
    }
    let null = null_device()?;
    for path in masked {
        when_there(mask(Path::new(path), &null)).or_refuse(|| format!("cannot mask {path}"))?;
    }
    Ok(())
}

fn when_there(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(()),
        other => other,
    }
}

/// The container's /dev/null, which must be what it says: an image could have put something else there.
fn null_device() -> Result<OwnedFd> {
    let null = rustix::fs::open(
        "/dev/null",
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .or_refuse(|| "cannot open the container's /dev/null, which masks files")?;
    let stat = rustix::fs::fstat(&null).or_fail(|| "cannot examine /dev/null")?;
    let is_null = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)) == (1, 3);
    if is_null {
        Ok(null)
    } else {
        Err(Fault::Refused(
            "the container's /dev/null is not the null device".to_owned(),
        ))
    }
}

fn mask(path: &Path, null: &OwnedFd) -> io::Result<()> {
    let target = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let cover = if tree::is_directory(&target)? {
        empty_directory()?
    } else {
        tree::clone_fd(null, false)?
    };
    tree::attach(&cover, &target)
}

/// A directory that is empty and stays so.
fn empty_directory() -> io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "nr_blocks", "1")?;
    fsconfig_set_string(&context, "nr_inodes", "1")?;
    fsconfig_create(&context)?;
    Ok(fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_RDONLY,
    )?)
}

fn make_read_only(path: &Path) -> io::Result<()> {
    let target = rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let read_only = Attributes {
        set: libc::MOUNT_ATTR_RDONLY,
        clear: 0,
    };
    // Nobody would see what is mounted on the root itself.
    if path.canonicalize()? == Path::new("/") {
        return tree::change(&target, read_only, false);
    }
    let clone = tree::clone_fd(&target, true)?;
    tree::change(&clone, read_only, true)?;
    tree::attach(&clone, &target)
}
