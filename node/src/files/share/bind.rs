//! The sources of a container's bind mounts: opens them on the host, and assigns each a path in a volume.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use protocol::agent::Cover;
use rustix::fs::{FsWord, StatVfsMountFlags};

use super::attach::io_error;
use super::error::ShareError;
use super::registry::{Choice, Inside, Late, Overlap, Piece, Place, Registry, Shown, View, VolumeId, join};
use super::volume::{Identity, Source};
use super::{Attachment, SharedTree, apart, id_map, overlay};
use crate::host::host_ns::HostTree;
use crate::host::mountinfo::{self, MountLine};
use crate::host::path_error::PathError;
use crate::spec::guest_spec::{BindSource, HostOptions, Over, PlacedBind};

/// File systems in which a kernel shows itself (statfs(2)): proc, sysfs, and what is mounted below the latter to change a
/// kernel by: debugfs, tracefs, securityfs, configfs, efivarfs, pstore.
const OF_A_KERNEL: [FsWord; 8] = [
    0x9fa0,
    0x6265_6572,
    0x6462_6720,
    0x7472_6163,
    0x7363_6673,
    0x6265_6570,
    0xde5e_81e4,
    0x6165_676c,
];

/// Where the bind mounts of a container are in the guest.
#[derive(Debug, Default)]
pub struct AttachedBinds {
    /// One for each that was asked for, in their order.
    pub placed: Vec<PlacedBind>,
    /// Volumes that are new with it.
    pub exported: Vec<VolumeId>,
    /// What other containers are to see from now on.
    pub covers: Vec<Cover>,
}

/// A source that is open.
struct Found<'a> {
    bind: &'a BindSource,
    host: HostTree,
    identity: Identity,
    options: HostOptions,
    /// A read-only mount of the host's kernel, or one that was asked for.
    read_only: bool,
    at: Located,
}

/// What the list of the host's mounts says of a source.
#[derive(Default)]
struct Located {
    /// None if the list has no such mount: then it is in no volume and no volume is in it.
    place: Option<Place>,
    /// Mounts below it, if it is recursive, and what is mounted there.
    inside: Vec<(PathBuf, Place)>,
    /// Paths of those that are read-only.
    read_only_inside: BTreeSet<PathBuf>,
    /// The host may mount something below it later.
    receives: bool,
}

impl Located {
    fn new(mounts: &[MountLine], bind: &BindSource, source: &HostTree) -> Self {
        let Some(own) = mounts.iter().find(|line| line.id == source.mount) else {
            return Self::default();
        };
        let rest = source.path.strip_prefix(&own.mountpoint).ok();
        let mut located = Self {
            place: rest.map(|rest| Place {
                device: own.device,
                path: join(&own.root, rest),
            }),
            receives: bind.receives && propagating(mounts).contains(&own.id),
            ..Self::default()
        };
        for (inside, line) in below(mounts, bind, source, own.id) {
            if line.read_only {
                located.read_only_inside.insert(inside.to_owned());
            }
            let of = Place {
                device: line.device,
                path: line.root.clone(),
            };
            located.inside.push((inside.to_owned(), of));
        }
        located
    }

    fn mounted(&self) -> Inside {
        let mut inside = Inside::default();
        for (at, of) in &self.inside {
            inside.add(of.clone(), self.read_only_inside.contains(at));
        }
        inside
    }
}

/// The mounts below a source, by their places in it; none if it is not recursive.
fn below<'a>(
    mounts: &'a [MountLine],
    bind: &BindSource,
    source: &'a HostTree,
    own: u64,
) -> Vec<(&'a Path, &'a MountLine)> {
    // Listed in the order in which they were made, so that a parent comes before its children, but for what was moved.
    let mut below = HashSet::from([own]);
    let mut found = Vec::new();
    for line in mounts.iter().filter(|line| bind.recursive && line.id != own) {
        if let Ok(inside) = line.mountpoint.strip_prefix(&source.path)
            && below.contains(&line.parent)
        {
            below.insert(line.id);
            found.push((inside, line));
        }
    }
    found
}

/// The host's mounts through which a later mount could arrive, by their numbers: each that is shared or a slave, and each
/// that such a one is mounted on, however far above.
fn propagating(mounts: &[MountLine]) -> HashSet<u64> {
    let mut found = HashSet::new();
    for mount in mounts.iter().rev() {
        if mount.shared || mount.receives || found.contains(&mount.id) {
            found.extend([mount.id, mount.parent]);
        }
    }
    found
}

impl SharedTree {
    /// Gives the sources of a container's bind mounts their places in volumes, and exports what is in none.
    ///
    /// A symbolic link is resolved by the host. One that leads to a directory of the host's kernel is refused: `/proc` and
    /// `/sys` by their names are the guest's own ([`crate::spec::guest_spec`]), and by another name they would be the host's. A single
    /// file of it, such as `/etc/mtab` leads to, is read-only whatever is asked for.
    ///
    /// A volume to which nobody writes is read-only on the host, too, with all that is mounted below it: the guest's kernel
    /// knows one attribute for a mount and what it finds below (submounts of virtio-fs), and a guest that does not keep to it
    /// must not gain by that.
    ///
    /// # Errors
    /// A source does not exist, is the host's kernel's, or cannot be mounted. What was begun is undone by
    /// [`SharedTree::detach`].
    pub fn attach_binds(&self, attachment: &Attachment, binds: &[BindSource]) -> Result<AttachedBinds, ShareError> {
        if binds.is_empty() {
            return Ok(AttachedBinds::default());
        }
        // File servers may take their time: nothing is held meanwhile.
        let mut found = binds
            .iter()
            .map(|bind| self.find(bind))
            .collect::<Result<Vec<_>, _>>()?;
        let listed = self.host.run(mountinfo::read).map_err(io::Error::other).flatten();
        let mounts = listed.map_err(|source| PathError::new("list the host's mounts of", "/", source))?;
        let asked = found.len();
        let apart: Vec<_> = found
            .iter()
            .enumerate()
            .flat_map(|(of, source)| apart_of(&mounts, of, source))
            .collect();
        // What is not there any more, or is a kernel's, is as the source is.
        let own = apart
            .iter()
            .filter_map(|part| Some((part, self.find(&part.bind).ok()?)));
        let (parts, own): (Vec<_>, Vec<_>) = own.unzip();
        found.extend(own);
        for source in &mut found {
            source.at = Located::new(&mounts, source.bind, &source.host);
        }
        let _held = self.attachments.hold(attachment)?;
        let mut attaching = Attaching {
            tree: self,
            registry: &mut self.registry(),
            attachment,
            exported: Vec::new(),
        };
        // What is above comes first, so that what is below is found in it; and who writes, so that nothing changes again.
        let mut order: Vec<usize> = (0..found.len()).collect();
        let depth = |source: &Found<'_>| source.at.place.as_ref().map(|place| place.path.components().count());
        order.sort_by_key(|index| (depth(&found[*index]), found[*index].read_only));
        let mut views = vec![None; found.len()];
        for index in order {
            views[index] = Some(attaching.view(&found[index])?);
        }
        // Every volume is known by now.
        let mut placed = Vec::new();
        for (source, view) in found.iter().zip(views.into_iter().flatten()) {
            placed.push(attaching.place(source, &view)?);
        }
        for (part, own) in parts.into_iter().zip(placed.split_off(asked)) {
            part.put_over(&mut placed[part.of], own);
        }
        let covers = attaching.covers()?;
        Ok(AttachedBinds {
            placed,
            exported: attaching.exported,
            covers,
        })
    }

    fn find<'a>(&self, bind: &'a BindSource) -> Result<Found<'a>, ShareError> {
        let opened = match &bind.overlay {
            Some(options) => overlay::mount(&self.host, options, &self.root),
            None => self.host.find_tree(&bind.source, bind.recursive),
        };
        let host = opened.map_err(|error| ShareError::Bind {
            bind: bind.source.clone(),
            destination: bind.destination.clone(),
            source: Box::new(error),
        })?;
        let examine = |errno| io_error("examine", &bind.source, errno);
        if let Some(map) = &bind.id_map {
            id_map::apply(&host.tree, map).map_err(|source| ShareError::IdMap {
                bind: bind.source.clone(),
                destination: bind.destination.clone(),
                source,
            })?;
        }
        let mut options = host_options(&host.tree).map_err(examine)?;
        let identity = Identity::of(&host.tree).map_err(examine)?;
        let kernels = OF_A_KERNEL.contains(&rustix::fs::fstatfs(&host.tree).map_err(examine)?.f_type);
        if kernels && identity.is_directory() {
            return Err(ShareError::Kernels {
                bind: bind.source.clone(),
                destination: bind.destination.clone(),
            });
        }
        options.read_only |= kernels;
        Ok(Found {
            bind,
            host,
            identity,
            options,
            read_only: bind.read_only || options.read_only,
            at: Located::default(),
        })
    }
}

/// A mount below a source, which is bound by itself.
struct Apart {
    /// The source, by its number among those that were asked for.
    of: usize,
    /// Its path below the source.
    at: PathBuf,
    bind: BindSource,
}

impl Apart {
    /// It covers its place in the source, with all that covers parts of it.
    fn put_over(&self, source: &mut PlacedBind, own: PlacedBind) {
        source.over.retain(|over| over.at != self.at);
        source.over.push(Over {
            at: self.at.clone(),
            source: own.source,
            read_only: self.bind.read_only,
            apart: Some(own.options),
        });
        let below = own.over.into_iter().map(|over| Over {
            at: self.at.join(&over.at),
            read_only: over.read_only || self.bind.read_only,
            apart: Some(own.options),
            ..over
        });
        source.over.extend(below);
        // A path sorts before what is below it.
        source.over.sort_by(|one, other| one.at.cmp(&other.at));
    }
}

fn apart_of(mounts: &[MountLine], of: usize, source: &Found<'_>) -> Vec<Apart> {
    let inside: BTreeMap<_, _> = below(mounts, source.bind, &source.host, source.host.mount)
        .into_iter()
        .map(|(at, line)| (at.to_owned(), line))
        .collect();
    let sources = apart::sources(source.bind, &inside).into_iter();
    sources.map(|(at, bind)| Apart { of, at, bind }).collect()
}

/// One container's sources on their way into volumes.
struct Attaching<'a> {
    tree: &'a SharedTree,
    registry: &'a mut Registry,
    attachment: &'a Attachment,
    exported: Vec<VolumeId>,
}

impl Attaching<'_> {
    /// The place of a source in a volume, which is exported if there is none.
    fn view(&mut self, source: &Found<'_>) -> Result<View, ShareError> {
        let container = &self.attachment.container;
        let pieces = self.pieces(source)?;
        let writes = !source.read_only;
        let choice = source.at.place.as_ref().map_or(Choice::New, |place| {
            self.registry.choose(&pieces, place, writes, |view| {
                // The guest is told of a path in JSON.
                let tellable = view.at.to_str().is_some();
                let same = || self.tree.identity(view) == Some(source.identity);
                tellable && same() && self.shows_the_same(&pieces, view, source)
            })
        });
        let root = |volume| View {
            volume,
            at: PathBuf::new(),
        };
        let view = match choice {
            Choice::View(view) => view,
            Choice::Upgrade(volume) => {
                self.tree
                    .make_writable(self.registry, volume, source.at.mounted().read_only)?;
                root(volume)
            }
            Choice::New => return self.export(source).map(root),
        };
        self.registry.enter(view.volume, container, writes);
        Ok(view)
    }

    /// The mounts of the volumes that a source may be a part of: those whose files belong to whom its files belong.
    fn pieces(&self, source: &Found<'_>) -> Result<Vec<Piece>, ShareError> {
        let mut pieces = self.tree.pieces()?;
        let map = source.bind.id_map.as_ref();
        pieces.retain(|piece| self.registry.is_mapped_by(piece.volume, map));
        Ok(pieces)
    }

    /// Whether a view has the mounts below it that the source has, and will have those that the source is to have.
    fn shows_the_same(&self, pieces: &[Piece], view: &View, source: &Found<'_>) -> bool {
        if !source.identity.is_directory() {
            return true;
        }
        // One that the host passes nothing on to has what it has now, in a volume that receives elsewhere as well. But a private
        // mount of it keeps what the host unmounts.
        let receives = self.registry.receives(view.volume);
        if receives != source.at.receives && !(receives && source.bind.receives) {
            return false;
        }
        if source.bind.recursive && self.registry.has_all_inside(view.volume) {
            return true;
        }
        let inside = pieces.iter().filter(|piece| piece.volume == view.volume);
        let inside = inside.filter_map(|piece| Some((piece.at.strip_prefix(&view.at).ok()?, &piece.of)));
        let mut shown: Vec<_> = inside.filter(|(at, _)| !at.as_os_str().is_empty()).collect();
        let mut wanted: Vec<_> = source.at.inside.iter().map(|(at, of)| (at.as_path(), of)).collect();
        let key = |(at, of): &(&Path, &Place)| (at.to_path_buf(), of.device, of.path.clone());
        shown.sort_by_key(key);
        wanted.sort_by_key(key);
        shown == wanted
    }

    fn export(&mut self, source: &Found<'_>) -> Result<VolumeId, ShareError> {
        let exported = Source {
            bind: source.bind,
            host: &source.host,
            writable: !source.read_only,
            follows: source.at.receives,
            inside: source.at.mounted(),
        };
        let directory = source.identity.is_directory();
        let volume = self
            .tree
            .export(self.registry, &self.attachment.container, &exported, directory)?;
        self.exported.push(volume);
        Ok(volume)
    }

    /// What the container writes to and is a part of what other containers have for reading: they are to have it as well, or it would be
    /// other inodes to them.
    fn covers(&mut self) -> Result<Vec<Cover>, ShareError> {
        let container = &self.attachment.container;
        let volumes = self.registry.to_cover(container);
        if volumes.is_empty() {
            return Ok(Vec::new());
        }
        let pieces = self.tree.pieces()?;
        let same = |one: &View, other: &View| self.tree.are_the_same(one, other);
        let late = self.registry.late(&pieces, container, &volumes, same);
        let cover = |late: Late| {
            // The agent is told of paths as text.
            let cover = Cover {
                container_id: late.container.to_string(),
                place: late.place().to_str()?.to_owned(),
                shown: SharedTree::guest_path(&late.shown).to_str()?.to_owned(),
                source: SharedTree::guest_path(&late.source).to_str()?.to_owned(),
                ..Cover::default()
            };
            Some((cover, late))
        };
        let (covers, planned) = late.into_iter().filter_map(cover).unzip();
        self.registry.plan(container, planned);
        Ok(covers)
    }

    /// Where a source is in the guest, and what is mounted over parts of it.
    fn place(&mut self, source: &Found<'_>, view: &View) -> Result<PlacedBind, ShareError> {
        let container = &self.attachment.container;
        let mut over = Vec::new();
        if let Some(place) = source.at.place.as_ref().filter(|_| source.identity.is_directory()) {
            let pieces = self.pieces(source)?;
            let same = |one: &View, other: &View| self.tree.are_the_same(one, other);
            let read_only_inside = &source.at.read_only_inside;
            let mut covered = BTreeMap::new();
            let overlaps = self.registry.overlaps(&pieces, view, place, read_only_inside, same);
            for Overlap { at, view, read_only } in overlaps {
                let writes = !source.read_only && !read_only;
                if writes {
                    self.tree
                        .make_writable(self.registry, view.volume, source.at.mounted().read_only)?;
                }
                self.registry.enter(view.volume, container, writes);
                covered.insert(at.clone(), view.clone());
                over.push(Over {
                    at,
                    source: SharedTree::guest_path(&view),
                    read_only,
                    apart: None,
                });
            }
            if source.read_only {
                let shown = Shown {
                    destination: source.bind.destination.clone(),
                    source: place.clone(),
                    view: view.clone(),
                    covered,
                };
                self.registry.show(container, shown);
            }
        }
        Ok(PlacedBind {
            position: source.bind.position,
            source: SharedTree::guest_path(view),
            options: source.options,
            over,
        })
    }
}

fn host_options(tree: &OwnedFd) -> rustix::io::Result<HostOptions> {
    let flags = rustix::fs::fstatvfs(tree)?.f_flag;
    Ok(HostOptions {
        read_only: flags.contains(StatVfsMountFlags::RDONLY),
        nosuid: flags.contains(StatVfsMountFlags::NOSUID),
        nodev: flags.contains(StatVfsMountFlags::NODEV),
        noexec: flags.contains(StatVfsMountFlags::NOEXEC),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_that_passes_nothing_on_itself_may_have_one_below_that_does() {
        let line = |id, parent, shared, receives| MountLine {
            id,
            parent,
            device: (8, 1),
            root: "/".into(),
            mountpoint: "/".into(),
            read_only: false,
            receives,
            shared,
            unbindable: false,
            kind: String::new(),
            super_options: String::new(),
        };
        let mounts = [
            line(1, 0, false, false),
            line(2, 1, false, false),
            line(3, 2, true, false),
            line(4, 1, false, false),
            line(5, 4, false, true),
            line(6, 1, false, false),
        ];
        let mut found: Vec<u64> = propagating(&mounts).into_iter().collect();
        found.sort_unstable();
        assert_eq!(found, [0, 1, 2, 3, 4, 5]);
    }
}
