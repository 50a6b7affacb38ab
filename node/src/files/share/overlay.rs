//! An overlay of directories of the host that a specification asks for as a mount: the host makes it, and it is shared like a directory.
//!
//! It is mounted in a mount namespace that ends with the thread that makes it. What is left is a mount that is attached nowhere, and goes
//! with its descriptor.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::mount::{MountPropagationFlags, OpenTreeFlags, mount_change, open_tree};

use crate::host::host_mount;
use crate::host::host_ns::{HostNamespace, HostNamespaceError, HostTree};

/// Mounts it, over `place` in the namespace that nobody sees. Blocks.
pub(super) fn mount(host: &HostNamespace, options: &[String], place: &Path) -> Result<HostTree, HostNamespaceError> {
    let (options, over) = (options.to_vec(), place.to_owned());
    let made = host.run(move || -> io::Result<HostTree> {
        crate::host::sys::unshare_mount_namespace()?;
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        host_mount::mount("overlay", "overlay", &options, &over)?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(CWD, &over, flags)?;
        let mount = statx(&tree, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?.stx_mnt_id;
        Ok(HostTree {
            tree,
            mount,
            path: PathBuf::from("/"),
        })
    });
    made?.map_err(|source| HostNamespaceError::Open {
        path: "overlay".into(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn an_overlay_is_there_as_long_as_its_descriptor_and_in_no_namespace() {
        let host = HostNamespace::start_thread().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["lower", "upper", "work", "place"] {
            fs::create_dir(path(name)).unwrap();
        }
        fs::write(path("lower/file"), "below").unwrap();
        // The machine's own root may be an overlay, on which there is none.
        let options = [
            format!("lowerdir={}", path("lower").display()),
            format!("upperdir={}", path("upper").display()),
            format!("workdir={}", path("work").display()),
        ];
        let tree = mount(&host, &options, &path("place")).unwrap();
        let inside = crate::host::openat_beneath::name_of(&tree.tree);
        assert_eq!(fs::read_to_string(format!("{inside}/file")).unwrap(), "below");
        fs::write(format!("{inside}/new"), "above").unwrap();
        assert_eq!(fs::read_to_string(path("upper/new")).unwrap(), "above");
        assert_eq!(fs::read_dir(path("place")).unwrap().count(), 0);
        mount(&host, &["lowerdir=/no/such".to_owned()], &path("place")).unwrap_err();
    }
}
