//! Directories and files of the host for the guest itself, and for no container (`sandbox_bind_mounts`).

use std::path::Path;

use config::SandboxBind;
use rustix::fs::{FileType, Mode, OFlags, fstat};

use super::attach::{attach, io_error};
use super::{ShareError, SharedTree};

impl SharedTree {
    /// Shares them, each under its own name below [`protocol::SANDBOX_MOUNTS`], with what is mounted below it now. They go with the shared
    /// directory.
    ///
    /// # Errors
    /// One of them is not there, or cannot be mounted.
    pub fn attach_sandbox_mounts(&self, binds: &[SandboxBind]) -> Result<(), ShareError> {
        if binds.is_empty() {
            return Ok(());
        }
        let directory = Path::new(protocol::SANDBOX_MOUNTS);
        self.make_directory(directory, true)?;
        for bind in binds {
            let failed = |source| ShareError::Bind {
                bind: bind.path.clone(),
                destination: protocol::GUEST_SANDBOX_MOUNTS.into(),
                source: Box::new(source),
            };
            let tree = self.host.open_tree(&bind.path, true).map_err(failed)?;
            let name = directory.join(bind.name());
            let target = self.root.join(&name);
            let stat = fstat(&tree).map_err(|errno| io_error("look at", &bind.path, errno))?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                self.make_directory(&name, true)?;
            } else {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                rustix::fs::openat(&self.backing, &name, flags, Mode::from_raw_mode(0o600))
                    .map_err(|errno| io_error("create", &target, errno))?;
            }
            attach(&tree, &target, !bind.writable)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io;
    use std::path::PathBuf;

    use super::super::tests::in_namespace;
    use super::*;

    #[test]
    fn each_has_its_name_and_only_what_is_asked_for_is_written_to() {
        in_namespace(|tree, directory| {
            for name in ["data", "writable"] {
                fs::create_dir(directory.join(name)).unwrap();
            }
            fs::write(directory.join("file"), "content").unwrap();
            let bind = |name: &str, writable| SandboxBind {
                path: directory.join(name),
                writable,
            };
            tree.attach_sandbox_mounts(&[bind("data", false), bind("writable", true), bind("file", false)])
                .unwrap();
            let shared = tree.root().join(protocol::SANDBOX_MOUNTS);
            assert_eq!(fs::read_to_string(shared.join("file")).unwrap(), "content");
            fs::write(shared.join("writable/new"), "").unwrap();
            assert!(directory.join("writable/new").exists());
            for path in ["data/new", "file", "beside"] {
                let refused = fs::write(shared.join(path), "").unwrap_err();
                assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem, "{path}");
            }
        });
    }

    #[test]
    fn none_are_not_there_and_one_that_is_missing_is_named() {
        in_namespace(|tree, directory| {
            tree.attach_sandbox_mounts(&[]).unwrap();
            assert!(!tree.root().join(protocol::SANDBOX_MOUNTS).exists());
            let missing: PathBuf = directory.join("missing");
            let bind = SandboxBind {
                path: missing.clone(),
                writable: false,
            };
            let said = tree.attach_sandbox_mounts(&[bind]).unwrap_err().to_string();
            assert!(said.contains(&missing.display().to_string()), "{said}");
        });
    }
}
