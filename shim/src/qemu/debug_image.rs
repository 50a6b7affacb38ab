//! Appends the archive of the debug console's programs to the guest's initrd. The kernel accepts two archives in one file
//! (Documentation/driver-api/early-userspace/buffer-format.rst). The module does not know their contents.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use node::path_error::PathError;

/// The archive of the programs; it lies beside the guest's image.
pub(crate) const PROGRAMS: &str = "debug-console.img";

/// The image, which is removed when it is dropped: QEMU has read it once the VM runs.
#[derive(Debug)]
pub(crate) struct DebugImage {
    /// The configuration that names it.
    pub(crate) config: config::Hypervisor,
}

impl DebugImage {
    /// Writes it into a directory.
    ///
    /// # Errors
    /// One of the archives is missing, or it cannot be written.
    pub(crate) fn make(config: &config::Hypervisor, directory: &Path) -> Result<Self, PathError> {
        let programs = config.initrd.with_file_name(PROGRAMS);
        let path = directory.join("initrd.img");
        let failed = |operation, path: &Path| {
            let path = path.to_owned();
            move |source: io::Error| PathError::new(operation, path, source)
        };
        let mut parts = Vec::new();
        for part in [&config.initrd, &programs] {
            parts.push(File::open(part).map_err(failed("open", part))?);
        }
        let mut config = config.clone();
        config.initrd.clone_from(&path);
        let image = Self { config };
        let mut file = File::create(&path).map_err(failed("create", &path))?;
        // Its directory is private, QEMU inherits it open, and its user may be another (`rootless`).
        file.set_permissions(Permissions::from_mode(0o644))
            .map_err(failed("give all the right to read", &path))?;
        for mut part in parts {
            io::copy(&mut part, &mut file).map_err(failed("write", &path))?;
        }
        Ok(image)
    }
}

impl Drop for DebugImage {
    fn drop(&mut self) {
        // What stays goes with the sandbox's directory.
        let _ = fs::remove_file(&self.config.initrd);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_is_both_archives_and_goes_away() {
        let (share, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(share.path().join("initrd.img"), "agent").unwrap();
        fs::write(share.path().join(PROGRAMS), "shell").unwrap();
        let config = config::Hypervisor {
            initrd: share.path().join("initrd.img"),
            ..Default::default()
        };
        let image = DebugImage::make(&config, run.path()).unwrap();
        let path = image.config.initrd.clone();
        assert_eq!(fs::read(&path).unwrap(), b"agentshell");
        drop(image);
        assert!(!path.exists());
        fs::remove_file(share.path().join(PROGRAMS)).unwrap();
        let error = DebugImage::make(&config, run.path()).unwrap_err();
        assert!(error.to_string().contains(PROGRAMS), "{error}");
        assert_eq!(fs::read_dir(run.path()).unwrap().count(), 0);
    }
}
