//! The root of a container: opened in the guest's tree, attached, and finally made the root of its process.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use oci_spec::runtime::{Linux, Spec};
use rustix::{
    fs::{CWD, Mode},
    mount::{UnmountFlags, unmount},
    process::{chdir, fchdir, pivot_root},
};

use super::{
    fault::{Context, Fault, Result},
    options::{self, Attributes},
    sys, tree,
};

/// The directory that relative paths of the specification start from: that of its root.
pub(super) fn bundle(spec: &Spec) -> Result<PathBuf> {
    let path = path(spec)?;
    Ok(path.parent().unwrap_or(path).to_owned())
}

fn path(spec: &Spec) -> Result<&Path> {
    let root = spec
        .root()
        .as_ref()
        .ok_or_else(|| Fault::Refused("the specification has no root".to_owned()))?;
    Ok(root.path())
}

/// The root as a mount of its own that nothing is attached to yet.
pub(super) fn take(spec: &Spec) -> Result<OwnedFd> {
    let path = path(spec)?;
    let root = tree::clone_path(path, true).or_refuse(|| format!("cannot use the root {}", path.display()))?;
    tree::propagate(&root, libc::MS_SLAVE, true).or_fail(|| "cannot part the root from the guest's mounts")?;
    Ok(root)
}

/// Puts the root into the new mount namespace, on top of the guest's: from there a user namespace can reach it, too.
pub(super) fn place(root: &OwnedFd) -> Result<()> {
    sys::mount_setattr(CWD, c"/", true, 0, 0, libc::MS_SLAVE)
        .or_fail(|| "cannot part the container's mounts from the guest's")?;
    tree::attach_at(root, Path::new("/")).or_fail(|| "cannot attach the container's root")
}

/// Makes it the root and lets go of the guest's (pivot_root(2), "pivot_root(".", ".")").
pub(super) fn enter(root: &OwnedFd) -> Result<()> {
    fchdir(root)
        .and_then(|()| pivot_root(".", "."))
        .and_then(|()| unmount(".", UnmountFlags::DETACH))
        .and_then(|()| chdir("/"))
        .or_fail(|| "cannot change the root to the container's")
}

/// What comes last, as everything else writes to the root: its propagation and whether it can be written to.
pub(super) fn finish(spec: &Spec) -> Result<()> {
    if let Some(wanted) = spec
        .linux()
        .as_ref()
        .and_then(|linux: &Linux| linux.rootfs_propagation().as_deref())
        .filter(|wanted| !wanted.is_empty())
    {
        let (propagation, recursive) = options::propagation(wanted)
            .ok_or_else(|| Fault::Refused(format!("rootfsPropagation {wanted:?} is not known")))?;
        sys::mount_setattr(CWD, c"/", recursive, 0, 0, propagation)
            .or_refuse(|| format!("cannot set rootfsPropagation {wanted}"))?;
    }
    if spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false) {
        let read_only = Attributes {
            set: libc::MOUNT_ATTR_RDONLY,
            clear: 0,
        };
        sys::mount_setattr(CWD.as_fd(), c"/", false, read_only.set, read_only.clear, 0)
            .or_refuse(|| "cannot make the root read-only")?;
    }
    Ok(())
}

/// Makes the working directory where the image lacks it, as runc does.
pub(super) fn make_cwd(cwd: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    if cwd.is_dir() {
        return Ok(());
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(Mode::from_raw_mode(0o755).as_raw_mode())
        .create(cwd)
        .or_refuse(|| format!("cannot make the working directory {}", cwd.display()))
}
