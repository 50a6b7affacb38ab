//! A root file system for one container: an overlay on the Debian root, which stays as it is.

use std::{
    ffi::CString,
    fs,
    path::{Path, PathBuf},
};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::{Error, Result};

#[derive(Debug)]
pub(super) struct Root(PathBuf);

impl Root {
    /// Mounts one on `dir`/root.
    pub(super) fn new(debian: &Path, dir: &Path) -> Result<Self> {
        let part = |name: &str| -> Result<PathBuf> {
            let part = dir.join(name);
            fs::create_dir_all(&part).map_err(Error::io(format!("making {}", part.display())))?;
            Ok(part)
        };
        let (upper, work, root) = (part("upper")?, part("work")?, part("root")?);
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            debian.display(),
            upper.display(),
            work.display()
        );
        let options = CString::new(options).map_err(|error| Error::unexpected(error.to_string()))?;
        mount("overlay", &root, "overlay", MountFlags::empty(), &*options)
            .map_err(|errno| Error::io(format!("mounting an overlay on {}", root.display()))(errno.into()))?;
        Ok(Self(root))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        // Nothing is left to tell it to: what stays mounted is found by its name at the end.
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}
