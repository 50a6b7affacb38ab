//! The rootfs of a container: the mounts that containerd sends, or the bundle's own directory.

use std::io;
use std::path::{Path, PathBuf};

use containerd_shim_protos::types::mount::Mount;

use super::{Attachment, ShareError, SharedTree, attach, guest_rootfs};
use crate::host_mount;

impl SharedTree {
    /// Mounts the rootfs; `bundle_rootfs` (root.path, made absolute) is taken where there are no mounts. The answer is
    /// the path in the guest.
    ///
    /// # Errors
    /// Nothing can be mounted. What was begun is undone by [`SharedTree::detach`].
    pub fn attach_rootfs(
        &self,
        attachment: &Attachment,
        mounts: &[Mount],
        bundle_rootfs: &Path,
    ) -> Result<PathBuf, ShareError> {
        let container = &attachment.container;
        let own = Path::new(container.as_str());
        let name = own.join("rootfs");
        {
            let _held = self.attachments.hold(attachment)?;
            self.make_directory(own, false)?;
            self.make_directory(&name, true)?;
        }
        let target = self.root.join(&name);
        if mounts.is_empty() {
            self.bind_rootfs(attachment, bundle_rootfs, &target, (true, false))?;
        }
        for mount in mounts {
            self.mount_layer(attachment, mount, &target)?;
        }
        Ok(guest_rootfs(container))
    }

    fn mount_layer(&self, attachment: &Attachment, mount: &Mount, target: &Path) -> Result<(), ShareError> {
        let refused = |source| ShareError::Rootfs {
            kind: mount.type_.clone(),
            from: mount.source.clone(),
            options: mount.options.clone(),
            source,
        };
        if !mount.target.is_empty() {
            let why = format!("a mount on {:?} inside the rootfs is not supported", mount.target);
            return Err(refused(io::Error::new(io::ErrorKind::Unsupported, why)));
        }
        let has = |option: &str| mount.options.iter().any(|other| other == option);
        match mount.type_.as_str() {
            "bind" | "rbind" => {
                let recursive = mount.type_ == "rbind" || has("rbind");
                self.bind_rootfs(attachment, Path::new(&mount.source), target, (recursive, has("ro")))
            }
            kind => {
                let _held = self.attachments.hold(attachment)?;
                host_mount::mount(kind, &mount.source, &mount.options, target).map_err(refused)
            }
        }
    }

    fn bind_rootfs(
        &self,
        attachment: &Attachment,
        source: &Path,
        target: &Path,
        (recursive, read_only): (bool, bool),
    ) -> Result<(), ShareError> {
        let tree = self
            .host
            .open_tree(source, recursive)
            .map_err(|error| ShareError::RootfsSource {
                root: source.to_owned(),
                source: Box::new(error),
            })?;
        let _held = self.attachments.hold(attachment)?;
        attach(&tree, target, read_only)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::tests::in_namespace;
    use super::super::unmount_below;
    use super::*;
    use crate::id::ContainerId;

    #[test]
    fn an_overlay_of_more_layers_than_a_page_of_options_is_mounted() {
        in_namespace(|tree, directory| {
            // The layers are on a tmpfs of the server's namespace: an overlay cannot have an overlay's upper layer.
            let layers = directory.join("layers");
            fs::create_dir(&layers).unwrap();
            rustix::mount::mount("tmpfs", &layers, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
            let layer = |number: usize| layers.join(format!("snapshots-with-a-long-name/{number}/fs"));
            for number in 0..100 {
                fs::create_dir_all(layer(number)).unwrap();
                fs::write(layer(number).join(number.to_string()), "").unwrap();
            }
            let lower: Vec<String> = (0..100).map(|number| layer(number).display().to_string()).collect();
            let mut mount = Mount::new();
            mount.type_ = "overlay".to_owned();
            mount.options = vec!["ro".to_owned(), format!("lowerdir={}", lower.join(":"))];
            let id = ContainerId::new("c").unwrap();
            tree.attach_rootfs(&tree.begin(&id), &[mount], Path::new("/nowhere"))
                .unwrap();
            assert_eq!(fs::read_dir(tree.root().join("c/rootfs")).unwrap().count(), 100);
            tree.detach(&id).unwrap();
            unmount_below(&layers).unwrap();
        });
    }

    #[test]
    fn a_file_system_of_any_type_that_the_host_has_is_mounted_and_another_one_named() {
        in_namespace(|tree, _| {
            let mut mount = Mount::new();
            mount.type_ = "ramfs".to_owned();
            mount.source = "ramfs".to_owned();
            mount.options = vec!["mode=0700".to_owned(), "noatime".to_owned()];
            let id = ContainerId::new("c").unwrap();
            let attach = |mount: &Mount| {
                tree.attach_rootfs(&tree.begin(&id), std::slice::from_ref(mount), Path::new("/nowhere"))
            };
            attach(&mount).unwrap();
            fs::write(tree.root().join("c/rootfs/file"), "").unwrap();
            tree.detach(&id).unwrap();
            mount.type_ = "nosuchfs".to_owned();
            let error = crate::error::chain(&attach(&mount).unwrap_err());
            assert!(
                error.contains("the host's kernel has no file system \"nosuchfs\""),
                "{error}"
            );
            tree.detach(&id).unwrap();
        });
    }
}
