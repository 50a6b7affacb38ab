//! Mounts that a test makes on the host, and takes away at its end.

use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};

use crate::{Error, Result};

/// A tmpfs of the host.
#[derive(Debug)]
pub struct HostMount(Option<PathBuf>);

impl HostMount {
    /// Mounts one on a directory, which is made if it is not there.
    pub fn new(path: &Path, flags: MountFlags) -> Result<Self> {
        std::fs::create_dir_all(path)?;
        mount("tmpfs", path, "tmpfs", flags, None)
            .map_err(|errno| Error::io(format!("mounting {}", path.display()))(errno.into()))?;
        Ok(Self(Some(path.to_owned())))
    }

    /// Has it pass on what is mounted below it, as `/` does on a host with systemd.
    pub fn shared(self) -> Result<Self> {
        if let Some(path) = &self.0 {
            mount_change(path, MountPropagationFlags::SHARED)
                .map_err(|errno| Error::io(format!("sharing {}", path.display()))(errno.into()))?;
        }
        Ok(self)
    }

    /// Unmounts it as umount(8) does: that fails if it is in use.
    pub fn unmount(mut self) -> Result<()> {
        match self.0.take() {
            Some(path) => unmount(&path, UnmountFlags::empty())
                .map_err(|errno| Error::io(format!("unmounting {}", path.display()))(errno.into())),
            None => Ok(()),
        }
    }
}

impl Drop for HostMount {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // After a test that failed; what is left is found by its name.
            let _ = unmount(path, UnmountFlags::DETACH);
        }
    }
}
