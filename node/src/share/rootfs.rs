//! The rootfs of a container: the mounts that containerd sends, or the bundle's own directory.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use containerd_shim_protos::types::mount::Mount;
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::attach::{attach, unmount_below};
use super::error::ShareError;
use super::{Attachment, SharedTree, id_map};
use crate::guest_path::guest_rootfs;
use crate::host_mount;
use crate::owners::IdMap;
use crate::path_error::PathError;
use crate::sys::{self, SetAttr};

/// The option of an overlay that has its lower directories.
const LOWER: &str = "lowerdir=";

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
            let how = How {
                recursive: true,
                read_only: false,
                map: None,
            };
            self.bind_rootfs(attachment, bundle_rootfs, &target, &how)?;
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
        let (map, mut options) = take_id_map(&mount.options).map_err(refused)?;
        match mount.type_.as_str() {
            "bind" | "rbind" => {
                let how = How {
                    recursive: mount.type_ == "rbind" || has("rbind"),
                    read_only: has("ro"),
                    map,
                };
                self.bind_rootfs(attachment, Path::new(&mount.source), target, &how)
            }
            kind => {
                let layers = self.own_layers(attachment, kind, map.as_ref(), &mut options);
                let _layers = layers.map_err(refused)?;
                let _held = self.attachments.hold(attachment)?;
                host_mount::mount(kind, &mount.source, &options, target).map_err(refused)
            }
        }
    }

    /// Gives an overlay lower directories of its own where those of its options will not do: their files are to belong to others, as
    /// containerd has it for an image that a user namespace runs from; or they are something else in the host's mount namespace, as
    /// containerd's erofs snapshotter has mounted a layer there since this server started, and `/` passes no mounts on. They can go once it is
    /// mounted: it has clones of its own.
    fn own_layers(
        &self,
        attachment: &Attachment,
        kind: &str,
        map: Option<&IdMap>,
        options: &mut [String],
    ) -> io::Result<Option<Layers>> {
        let is_lower = |option: &&mut String| option.starts_with(LOWER) && !option.contains('\\');
        let Some(option) = options.iter_mut().find(is_lower).filter(|_| kind == "overlay") else {
            if map.is_none() {
                return Ok(None);
            }
            let why = "only an overlay or a bind can have its files given to other owners (uidmap, gidmap)";
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        };
        let lower: Vec<PathBuf> = option[LOWER.len()..].split(':').map(PathBuf::from).collect();
        let looked_at = lower.clone();
        let hosts = self
            .host
            .run(move || looked_at.iter().map(|path| identity(path)).collect::<Vec<_>>());
        let hosts = hosts.map_err(io::Error::other)?;
        let is_unseen = |(path, hosts): (&PathBuf, &Option<_>)| hosts.is_some() && *hosts != identity(path);
        let unseen: Vec<bool> = lower.iter().zip(&hosts).map(is_unseen).collect();
        if map.is_none() && !unseen.contains(&true) {
            return Ok(None);
        }
        let mut layers = Layers(
            self.mirrors
                .directory()
                .join(format!("layers-{}", attachment.container)),
        );
        let mut places = Vec::new();
        for (number, (path, unseen)) in lower.iter().zip(unseen).enumerate() {
            let tree = match unseen {
                true => self.host.open_tree(path, false).map_err(io::Error::other)?,
                // By its name in the server's namespace, as mount(2) takes it where nothing is to be done.
                false => open_tree(
                    CWD,
                    path,
                    OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
                )?,
            };
            sys::mount_setattr(tree.as_fd(), SetAttr::PrivateRecursive)?;
            if let Some(map) = map {
                id_map::apply(&tree, map)?;
            }
            places.push(layers.add(number, &tree)?.display().to_string());
        }
        *option = format!("{LOWER}{}", places.join(":"));
        Ok(Some(layers))
    }

    fn bind_rootfs(&self, attachment: &Attachment, source: &Path, target: &Path, how: &How) -> Result<(), ShareError> {
        let failed = |error| ShareError::RootfsSource {
            root: source.to_owned(),
            source: Box::new(error),
        };
        let tree = self.host.open_tree(source, how.recursive).map_err(failed)?;
        if let Some(map) = &how.map {
            id_map::apply(&tree, map).map_err(|error| PathError::new("map the owners of", source, error))?;
        }
        let _held = self.attachments.hold(attachment)?;
        attach(&tree, target, how.read_only)
    }
}

/// Which file a path leads to; none if it leads to none.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let stat = rustix::fs::stat(path).ok()?;
    Some((stat.st_dev, stat.st_ino))
}

/// How a directory becomes a rootfs.
struct How {
    recursive: bool,
    read_only: bool,
    map: Option<IdMap>,
}

/// Lower directories of an overlay that is being mounted, in a directory of the server's mount namespace. They go with this.
struct Layers(PathBuf);

impl Layers {
    fn add(&mut self, number: usize, tree: &OwnedFd) -> io::Result<PathBuf> {
        let place = self.0.join(number.to_string());
        fs::create_dir_all(&place)?;
        move_mount(tree, "", CWD, &place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        Ok(place)
    }
}

impl Drop for Layers {
    fn drop(&mut self) {
        let removed = unmount_below(&self.0).map_err(io::Error::other).and_then(|()| {
            // Empty directories alone: if something were mounted there still, files of the host would go.
            for entry in fs::read_dir(&self.0)? {
                fs::remove_dir(entry?.path())?;
            }
            fs::remove_dir(&self.0)
        });
        if let Err(error) = removed {
            tracing::warn!(%error, path = %self.0.display(), "layers of an overlay stay mounted until the sandbox's end");
        }
    }
}

/// Takes out of a mount's options whose files they are to be: `uidmap=INSIDE:OUTSIDE:SIZE` and `gidmap=`, as containerd's snapshotters write
/// them (core/mount of containerd). Several ranges are apart by commas.
fn take_id_map(options: &[String]) -> io::Result<(Option<IdMap>, Vec<String>)> {
    let (mut users, mut groups, mut rest) = (String::new(), String::new(), Vec::new());
    for option in options {
        match option.split_once('=') {
            Some(("uidmap", map)) => users.push_str(&lines(map)?),
            Some(("gidmap", map)) => groups.push_str(&lines(map)?),
            _ => rest.push(option.clone()),
        }
    }
    let map = match (users.is_empty(), groups.is_empty()) {
        (true, true) => None,
        (false, false) => Some(IdMap {
            users,
            groups,
            recursive: false,
        }),
        (_, _) => {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "uidmap and gidmap: one is there without the other",
            ));
        }
    };
    Ok((map, rest))
}

fn lines(map: &str) -> io::Result<String> {
    let line = |range: &str| {
        let words: Vec<u32> = range.split(':').map(str::parse).collect::<Result<_, _>>().ok()?;
        let [inside, outside, size] = words[..] else {
            return None;
        };
        Some(format!("{inside} {outside} {size}\n"))
    };
    let lines: Option<String> = map.split(',').map(line).collect();
    lines.ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{map:?} is no mapping of ids (INSIDE:OUTSIDE:SIZE)"),
        )
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::super::tests::in_namespace;
    use super::*;
    use lifecycle::id::ContainerId;

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
    fn the_files_of_an_overlay_may_belong_to_others() {
        in_namespace(|tree, directory| {
            // On a tmpfs of the server's namespace: an overlay cannot have an overlay's upper layer.
            let layers = directory.join("layers");
            fs::create_dir(&layers).unwrap();
            rustix::mount::mount("tmpfs", &layers, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
            let made = |name: &str| {
                let made = layers.join(name);
                fs::create_dir(&made).unwrap();
                made.display().to_string()
            };
            let (one, two, upper, work) = (made("one"), made("two"), made("upper"), made("work"));
            fs::write(Path::new(&one).join("one"), "").unwrap();
            std::os::unix::fs::chown(Path::new(&one).join("one"), Some(7), Some(8)).unwrap();
            fs::write(Path::new(&two).join("two"), "").unwrap();
            let mut mount = Mount::new();
            mount.type_ = "overlay".to_owned();
            mount.options = vec![
                format!("lowerdir={two}:{one}"),
                format!("upperdir={upper}"),
                format!("workdir={work}"),
                "uidmap=0:100000:65536".to_owned(),
                "gidmap=0:200000:65536".to_owned(),
            ];
            let id = ContainerId::new("c").unwrap();
            tree.attach_rootfs(&tree.begin(&id), &[mount.clone()], Path::new("/nowhere"))
                .unwrap();
            let owner = |name: &str| {
                let found = fs::metadata(tree.root().join("c/rootfs").join(name)).unwrap();
                (found.uid(), found.gid())
            };
            assert_eq!((owner("one"), owner("two")), ((100_007, 200_008), (100_000, 200_000)));
            assert!(!tree.mirrors.directory().join("layers-c").exists());
            tree.detach(&id).unwrap();
            mount.options.pop();
            let error = tree
                .attach_rootfs(&tree.begin(&id), &[mount], Path::new("/nowhere"))
                .unwrap_err();
            assert!(base::chain(&error).contains("uidmap and gidmap"), "{error}");
            tree.detach(&id).unwrap();
            unmount_below(&layers).unwrap();
        });
    }

    #[test]
    fn a_mapping_of_several_ranges_is_read_and_rubbish_refused() {
        assert_eq!(lines("0:1000:10,10:5:1").unwrap(), "0 1000 10\n10 5 1\n");
        for rubbish in ["", "0", "0:1", "a:b:c", "0:1:2:3", "0:1:-2"] {
            assert!(lines(rubbish).is_err(), "{rubbish}");
        }
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
            let error = base::chain(&attach(&mount).unwrap_err());
            assert!(
                error.contains("the host's kernel has no file system \"nosuchfs\""),
                "{error}"
            );
            tree.detach(&id).unwrap();
        });
    }
}
