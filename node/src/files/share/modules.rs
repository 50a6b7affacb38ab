//! The file of the guest kernel's modules in the shared directory.

use std::io;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::attach::{attach, io_error};
use super::{ShareError, SharedTree};
use crate::host::host_ns::HostNamespaceError;

impl SharedTree {
    /// Gives the guest the modules of its kernel, read-only. The file stays the same one if another takes its name on the host, as
    /// in an upgrade. A kernel without such a file has no modules, and that is no error.
    ///
    /// # Errors
    /// There is such a file, and it cannot be mounted.
    pub fn attach_modules(&self, kernel: &Path) -> Result<(), ShareError> {
        let source = config::modules_beside(kernel);
        let tree = match self.host.open_tree(&source, false) {
            Ok(tree) => tree,
            Err(HostNamespaceError::Open { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => {
                return Err(ShareError::Bind {
                    bind: source,
                    destination: protocol::MODULES.into(),
                    source: Box::new(error),
                });
            }
        };
        let target = self.root.join(protocol::MODULES);
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        rustix::fs::openat(&self.backing, protocol::MODULES, flags, Mode::from_raw_mode(0o600))
            .map_err(|errno| io_error("create", &target, errno))?;
        attach(&tree, &target, true)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::tests::in_namespace;
    use super::*;

    #[test]
    fn the_guest_has_the_file_beside_its_kernel_and_cannot_write_to_it() {
        in_namespace(|tree, directory| {
            let kernel = directory.join("vmlinuz");
            fs::write(directory.join(config::MODULES), "modules").unwrap();
            tree.attach_modules(&kernel).unwrap();
            // An upgrade is another file of that name.
            fs::write(directory.join("new"), "others").unwrap();
            fs::rename(directory.join("new"), directory.join(config::MODULES)).unwrap();
            let shared = tree.root().join(protocol::MODULES);
            assert_eq!(fs::read_to_string(&shared).unwrap(), "modules");
            let refused = fs::write(&shared, "mine").unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem);
        });
    }

    #[test]
    fn a_kernel_without_modules_has_none() {
        in_namespace(|tree, directory| {
            tree.attach_modules(&directory.join("vmlinuz")).unwrap();
            assert!(!tree.root().join(protocol::MODULES).exists());
        });
    }
}
