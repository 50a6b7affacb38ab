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
use crate::host::host_mount;
use crate::host::owners::{self, IdMap};
use crate::host::path_error::PathError;
use crate::host::sys::{self, SetAttr};
use crate::spec::guest_path::guest_rootfs;

/// The option of an overlay that has its lower directories.
const LOWER: &str = "lowerdir=";
/// Those that have the directories in which it writes.
const UPPER: &str = "upperdir=";
const WORK: &str = "workdir=";
/// Device nodes and set-id programs do nothing on the host: the guest's kernel is who opens and executes them.
const INERT: [&str; 2] = ["nosuid", "nodev"];

/// A rootfs that the guest does not have yet, twice: each is a tree of mounts that is attached nowhere.
#[derive(Debug)]
pub struct PreparedRootfs {
    /// The tree that the guest sees.
    pub tree: OwnedFd,
    /// For who is to see it on the host.
    pub shown: OwnedFd,
}

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
        let target = self.make_rootfs_directory(attachment)?;
        self.mount_rootfs(attachment, mounts, bundle_rootfs, &target)?;
        Ok(guest_rootfs(&attachment.container))
    }

    /// Mounts the rootfs where the guest does not see it.
    ///
    /// # Errors
    /// Nothing can be mounted.
    pub fn prepare_rootfs(
        &self,
        attachment: &Attachment,
        mounts: &[Mount],
        bundle_rootfs: &Path,
    ) -> Result<PreparedRootfs, ShareError> {
        // Of this attachment alone: one that was given up may still be at work.
        let name = format!("root-{}-{}", attachment.container, attachment.number);
        let directory = self.mirrors.directory().join(name);
        let place = directory.join("rootfs");
        let failed = |source: io::Error| ShareError::from(PathError::new("prepare", &place, source));
        // It goes with this; clones of it are what is kept.
        let _layers = Layers { directory, used: true };
        fs::create_dir_all(&place).map_err(failed)?;
        self.mount_rootfs(attachment, mounts, bundle_rootfs, &place)?;
        let clone = || {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
            open_tree(CWD, &place, flags).map_err(|errno| failed(errno.into()))
        };
        Ok(PreparedRootfs {
            tree: clone()?,
            shown: clone()?,
        })
    }

    /// Gives the guest a rootfs that was prepared.
    ///
    /// # Errors
    /// The container has been detached meanwhile.
    pub fn attach_prepared_rootfs(&self, attachment: &Attachment, tree: &OwnedFd) -> Result<(), ShareError> {
        let target = self.make_rootfs_directory(attachment)?;
        let _held = self.attachments.hold(attachment)?;
        attach(tree, &target, false)
    }

    fn make_rootfs_directory(&self, attachment: &Attachment) -> Result<PathBuf, ShareError> {
        let own = Path::new(attachment.container.as_str());
        let name = own.join("rootfs");
        let _held = self.attachments.hold(attachment)?;
        self.make_directory(own, false)?;
        self.make_directory(&name, true)?;
        Ok(self.root.join(&name))
    }

    fn mount_rootfs(
        &self,
        attachment: &Attachment,
        mounts: &[Mount],
        bundle_rootfs: &Path,
        target: &Path,
    ) -> Result<(), ShareError> {
        if mounts.is_empty() {
            let how = How {
                recursive: true,
                read_only: false,
                map: None,
            };
            self.bind_rootfs(attachment, bundle_rootfs, target, &how)?;
        }
        mounts
            .iter()
            .try_for_each(|mount| self.mount_layer(attachment, mount, target))
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
                let name = format!("layers-{}-{}", attachment.container, attachment.number);
                let mut layers = Layers::new(self.mirrors.directory().join(name));
                self.own_lower(&mut layers, kind, map.as_ref(), &mut options)
                    .and_then(|()| self.own_upper(&mut layers, kind, &mut options))
                    .map_err(refused)?;
                // From the beginning: what comes to virtiofsd's mounts is not changed afterwards.
                options.extend(INERT.map(String::from));
                let _held = self.attachments.hold(attachment)?;
                host_mount::mount(kind, &mount.source, &options, target).map_err(refused)
            }
        }
    }

    /// Gives an overlay lower directories of its own where those of its options will not do: their files are to belong to others, as
    /// containerd has it for an image that a user namespace runs from; or they are something else in the host's mount namespace, as
    /// containerd's erofs snapshotter has mounted a layer there since this server started, and `/` passes no mounts on. They can go once it is
    /// mounted: it has clones of its own.
    fn own_lower(
        &self,
        layers: &mut Layers,
        kind: &str,
        map: Option<&IdMap>,
        options: &mut [String],
    ) -> io::Result<()> {
        let is_lower = |option: &&mut String| option.starts_with(LOWER) && !option.contains('\\');
        let Some(option) = options.iter_mut().find(is_lower).filter(|_| kind == "overlay") else {
            if map.is_none() {
                return Ok(());
            }
            let why = "only an overlay or a bind can have its files given to other owners (uidmap, gidmap)";
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        };
        let lower: Vec<PathBuf> = option[LOWER.len()..].split(':').map(PathBuf::from).collect();
        let unseen = self.unseen(&lower)?;
        if map.is_none() && !unseen.contains(&true) {
            return Ok(());
        }
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
            places.push(layers.add(&number.to_string(), &tree)?.display().to_string());
        }
        *option = format!("{LOWER}{}", places.join(":"));
        Ok(())
    }

    /// The same for where an overlay writes: containerd's erofs snapshotter mounts a disk of its own there. Both directories have to be on
    /// one mount, so it is the directory above both that is cloned.
    fn own_upper(&self, layers: &mut Layers, kind: &str, options: &mut [String]) -> io::Result<()> {
        let find = |name: &str| {
            let found = options.iter().position(|option| option.starts_with(name))?;
            Some((found, PathBuf::from(&options[found][name.len()..])))
        };
        let (Some((upper_at, upper)), Some((work_at, work))) = (find(UPPER), find(WORK)) else {
            return Ok(());
        };
        if kind != "overlay" || !self.unseen(&[upper.clone(), work.clone()])?.contains(&true) {
            return Ok(());
        }
        let above = upper.ancestors().find(|above| work.starts_with(above));
        let above = above.unwrap_or(Path::new("/"));
        let tree = self.host.open_tree(above, false).map_err(io::Error::other)?;
        sys::mount_setattr(tree.as_fd(), SetAttr::PrivateRecursive)?;
        let place = layers.add("upper", &tree)?;
        for (at, name, path) in [(upper_at, UPPER, &upper), (work_at, WORK, &work)] {
            let below = path.strip_prefix(above).unwrap_or(path);
            options[at] = format!("{name}{}", place.join(below).display());
        }
        Ok(())
    }

    /// Which of these are something else in the host's mount namespace than in the server's.
    fn unseen(&self, paths: &[PathBuf]) -> io::Result<Vec<bool>> {
        let looked_at = paths.to_vec();
        let hosts = self
            .host
            .run(move || looked_at.iter().map(|path| identity(path)).collect::<Vec<_>>());
        let hosts = hosts.map_err(io::Error::other)?;
        let is_unseen = |(path, hosts): (&PathBuf, &Option<_>)| hosts.is_some() && *hosts != identity(path);
        Ok(paths.iter().zip(&hosts).map(is_unseen).collect())
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

/// Directories of an overlay that is being mounted, in a directory of the server's mount namespace. They go with this.
struct Layers {
    directory: PathBuf,
    used: bool,
}

impl Layers {
    fn new(directory: PathBuf) -> Self {
        Self { directory, used: false }
    }

    fn add(&mut self, name: &str, tree: &OwnedFd) -> io::Result<PathBuf> {
        self.used = true;
        let place = self.directory.join(name);
        fs::create_dir_all(&place)?;
        move_mount(tree, "", CWD, &place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        Ok(place)
    }
}

impl Drop for Layers {
    fn drop(&mut self) {
        if !self.used {
            return;
        }
        let directory = &self.directory;
        let removed = unmount_below(directory).map_err(io::Error::other).and_then(|()| {
            // Empty directories alone: if something were mounted there still, files of the host would go.
            for entry in fs::read_dir(directory)? {
                fs::remove_dir(entry?.path())?;
            }
            fs::remove_dir(directory)
        });
        if let Err(error) = removed {
            tracing::warn!(%error, path = %directory.display(), "layers of an overlay stay mounted until the sandbox's end");
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
        Some(owners::line(inside, outside, size))
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
    fn an_overlay_writes_to_a_disk_that_the_host_has_mounted_since() {
        in_namespace(|tree, directory| {
            let disk = directory.join("disk");
            fs::create_dir(&disk).unwrap();
            let made = disk.clone();
            let mounted = move || {
                rustix::mount::mount("tmpfs", &made, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
                for name in ["lower", "rw/upper", "rw/work"] {
                    fs::create_dir_all(made.join(name)).unwrap();
                }
                fs::write(made.join("lower/below"), "").unwrap();
            };
            tree.host.run(mounted).unwrap();
            assert!(!disk.join("rw").exists(), "the server does not see it");
            let mut mount = Mount::new();
            mount.type_ = "overlay".to_owned();
            let at = |option: &str, name: &str| format!("{option}={}", disk.join(name).display());
            mount.options = vec![
                at("workdir", "rw/work"),
                at("upperdir", "rw/upper"),
                at("lowerdir", "lower"),
            ];
            let id = ContainerId::new("c").unwrap();
            tree.attach_rootfs(&tree.begin(&id), &[mount], Path::new("/nowhere"))
                .unwrap();
            let root = tree.root().join("c/rootfs");
            assert!(root.join("below").exists());
            fs::write(root.join("written"), "").unwrap();
            let written = disk.join("rw/upper/written");
            assert!(tree.host.run(move || written.exists()).unwrap());
            assert_eq!(fs::read_dir(tree.mirrors.directory()).unwrap().count(), 0);
            tree.detach(&id).unwrap();
            tree.host.run(move || unmount_below(&disk).unwrap()).unwrap();
        });
    }

    /// The thread of a creation that was given up goes on until it is done.
    #[test]
    fn a_rootfs_is_prepared_beside_that_of_a_creation_that_was_given_up() {
        in_namespace(|tree, directory| {
            let source = directory.join("source");
            fs::create_dir(&source).unwrap();
            let id = ContainerId::new("c").unwrap();
            let given_up = tree.begin(&id);
            tree.detach(&id).unwrap();
            let attachment = tree.begin(&id);
            let used = |attachment: &Attachment| tree.mirrors.directory().join(format!("root-c-{}", attachment.number));
            // It has its place mounted still.
            fs::create_dir_all(used(&given_up).join("rootfs")).unwrap();
            rustix::mount::mount_bind(&source, used(&given_up).join("rootfs")).unwrap();
            let prepared = tree.prepare_rootfs(&attachment, &[], &source).unwrap();
            assert!(!used(&attachment).exists() && !tree.root().join("c").exists());
            unmount_below(&used(&given_up)).unwrap();
            tree.prepare_rootfs(&given_up, &[], &source).unwrap_err();
            tree.attach_prepared_rootfs(&given_up, &prepared.tree).unwrap_err();
            tree.attach_prepared_rootfs(&attachment, &prepared.tree).unwrap();
            fs::write(tree.root().join("c/rootfs/new"), "").unwrap();
            assert!(source.join("new").exists());
            tree.detach(&id).unwrap();
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
            assert_eq!(fs::read_dir(tree.mirrors.directory()).unwrap().count(), 0);
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
