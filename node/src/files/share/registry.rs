//! The volumes of a sandbox: their users, and the volume that a source belongs to. Pure.
//!
//! A volume is one exported mount, and so one file system in the guest. A source that is the same file or directory as a
//! volume, or is inside one, is shared as a *view*: a path in that volume. If a volume is inside the part that a view
//! shows, it is mounted over its path in the view (an *overlap*), because other containers use its inodes.
//!
//! Paths are only a proposal. The caller checks with the file system whether two paths are the same file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::host::mountinfo::MountLine;
use crate::host::owners::IdMap;
use lifecycle::id::ContainerId;

/// A volume's number. It is never used again in the same sandbox.
pub type VolumeId = u32;

/// Where a file is: on which file system, and by what path from that file system's own root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) device: (u32, u32),
    pub(super) path: PathBuf,
}

impl Place {
    pub(super) fn of(line: MountLine) -> Self {
        Self {
            device: line.device,
            path: line.root,
        }
    }
}

/// What the host has mounted inside a source.
#[derive(Debug, Clone, Default)]
pub(super) struct Inside {
    pub(super) writable: Vec<Place>,
    pub(super) read_only: Vec<Place>,
}

impl Inside {
    pub(super) fn add(&mut self, of: Place, read_only: bool) {
        match read_only {
            true => self.read_only.push(of),
            false => self.writable.push(of),
        }
    }

    /// What may be made writable: what the host has read-only nowhere in the source. It is known by what is mounted, not by
    /// where: the guest can rename the directories above a mount.
    pub(super) fn into_lifted(mut self) -> Vec<Place> {
        self.writable.retain(|place| !self.read_only.contains(place));
        self.writable
    }
}

/// A mount that is exported: a volume's own, with nothing in `at`, or one that the host has inside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) volume: VolumeId,
    /// Its mount point in the volume.
    pub(super) at: PathBuf,
    /// What is mounted.
    pub(super) of: Place,
    /// It is mounted read-only.
    pub(super) read_only: bool,
}

/// A path in a volume; empty for its root.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct View {
    pub(super) volume: VolumeId,
    pub(super) at: PathBuf,
}

/// A volume that covers a part of what another one shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Overlap {
    /// The place in the view that is covered.
    pub(super) at: PathBuf,
    pub(super) view: View,
    /// The host has a read-only mount there.
    pub(super) read_only: bool,
}

/// A mount of a container, as it was made.
#[derive(Debug, Clone)]
pub(super) struct Shown {
    /// The path in the container.
    pub(super) destination: PathBuf,
    pub(super) source: Place,
    pub(super) view: View,
    /// What covers parts of it already, by the part.
    pub(super) covered: BTreeMap<PathBuf, View>,
}

/// A volume that a running container is to see in place of a part of one of its mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Late {
    pub(super) container: ContainerId,
    /// The mount of the container: its destination, and what it shows.
    pub(super) mount: (PathBuf, View),
    /// The part of the mount.
    pub(super) at: PathBuf,
    pub(super) shown: View,
    pub(super) source: View,
}

impl Late {
    /// The path in the container.
    pub(super) fn place(&self) -> PathBuf {
        join(&self.mount.0, &self.at)
    }
}

/// Covers that go to the guest with a container that is being created. One is nothing once its own container is gone.
#[derive(Debug, Default)]
struct Planned {
    covers: Vec<Option<Late>>,
    /// The guest may have made them.
    sent: bool,
}

/// Whether a volume can be written to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Access {
    #[default]
    ReadOnly,
    /// It was to be changed, and that is not done: some of its mounts can be written to. No user writes.
    Changing,
    Writable,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Exported {
    pub(super) access: Access,
    /// What the host mounts inside it later appears.
    pub(super) receives: bool,
    /// What the host had mounted inside it is there.
    pub(super) recursive: bool,
    pub(super) inside: Inside,
    /// Its files belong to others than on the host.
    pub(super) id_map: Option<IdMap>,
}

#[derive(Debug)]
struct Volume {
    /// Whether each of them may write to the whole volume or to a part of it.
    users: BTreeMap<ContainerId, bool>,
    /// In how many places it covers a part of what a container has, or may do so.
    covering: BTreeMap<ContainerId, usize>,
    exported: Exported,
}

impl Volume {
    fn is_used(&self) -> bool {
        !self.users.is_empty() || !self.covering.is_empty()
    }

    /// It covers one place less.
    fn uncover(&mut self, container: &ContainerId) {
        if let Some(places) = self.covering.get_mut(container) {
            *places -= 1;
            if *places == 0 {
                self.covering.remove(container);
            }
        }
    }
}

/// Which volume a source belongs to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// It is in a volume already.
    View(View),
    /// It is a volume's root, which was read-only so far and is to be written to.
    Upgrade(VolumeId),
    /// It needs a volume of its own.
    New,
}

/// The volumes of a sandbox, and who uses them.
#[derive(Debug, Default)]
pub(super) struct Registry {
    last: VolumeId,
    volumes: BTreeMap<VolumeId, Volume>,
    /// Read-only mounts of directories, of containers that are there.
    shown: BTreeMap<ContainerId, Vec<Shown>>,
    /// What is to be covered in others, by the container with which the guest is told.
    planned: BTreeMap<ContainerId, Planned>,
    /// No longer used, and not yet removed.
    unused: BTreeSet<VolumeId>,
    /// Volumes that were removed and not reported yet.
    gone: Vec<VolumeId>,
}

impl Registry {
    /// Adds a volume that `container` uses.
    pub(super) fn add(&mut self, container: &ContainerId, exported: Exported) -> VolumeId {
        self.last += 1;
        let volume = Volume {
            users: BTreeMap::from([(container.clone(), exported.access == Access::Writable)]),
            covering: BTreeMap::new(),
            exported,
        };
        self.volumes.insert(self.last, volume);
        self.last
    }

    /// A container has a view of a volume.
    pub(super) fn enter(&mut self, volume: VolumeId, container: &ContainerId, writes: bool) {
        if let Some(volume) = self.volumes.get_mut(&volume) {
            *volume.users.entry(container.clone()).or_default() |= writes;
        }
    }

    /// A container has a read-only mount of a directory.
    pub(super) fn show(&mut self, container: &ContainerId, shown: Shown) {
        self.shown.entry(container.clone()).or_default().push(shown);
    }

    /// Volumes that other containers than `container` may have to see from now on: those to which it writes, and those that are planned to
    /// cover something already, as it is not known yet what comes of that. None if no other container has anything to be covered.
    pub(super) fn to_cover(&self, container: &ContainerId) -> BTreeSet<VolumeId> {
        if self.shown.keys().all(|other| other == container) {
            return BTreeSet::new();
        }
        let written = self
            .volumes
            .iter()
            .filter(|(_, volume)| volume.users.get(container) == Some(&true));
        let written: BTreeSet<VolumeId> = written.map(|(id, _)| *id).collect();
        if written.is_empty() {
            return written;
        }
        let planned = self
            .planned
            .values()
            .flat_map(|planned| planned.covers.iter().flatten());
        let planned = planned.map(|late| late.source.volume);
        written.iter().copied().chain(planned).collect()
    }

    /// Where other containers than `container` have a part of theirs read-only that is one of `volumes`, and have other inodes there: they are
    /// to see the volume. `same` says whether two paths are the same file.
    ///
    /// A mount that can be written to is left alone: what is in it becomes a volume of its own only where it differs in what the
    /// host mounts later, which is to stay so. The same holds for a read-only one.
    pub(super) fn late(
        &self,
        pieces: &[Piece],
        container: &ContainerId,
        volumes: &BTreeSet<VolumeId>,
        same: impl Fn(&View, &View) -> bool,
    ) -> Vec<Late> {
        let mut late = Vec::new();
        for (other, mounts) in self.shown.iter().filter(|(other, _)| *other != container) {
            for mount in mounts {
                let overlaps = self.overlaps(pieces, &mount.view, &mount.source, &BTreeSet::new(), &same);
                let found = self.late_in(mount, overlaps, volumes).into_iter();
                late.extend(found.map(|(at, shown, source)| Late {
                    container: other.clone(),
                    mount: (mount.destination.clone(), mount.view.clone()),
                    at,
                    shown,
                    source,
                }));
            }
        }
        late
    }

    /// The guest is to be told of these covers with `container`, in this order. Their volumes stay until it is known what came of it.
    pub(super) fn plan(&mut self, container: &ContainerId, covers: Vec<Late>) {
        for late in &covers {
            if let Some(volume) = self.volumes.get_mut(&late.source.volume) {
                *volume.covering.entry(late.container.clone()).or_default() += 1;
            }
        }
        let planned = self.planned.entry(container.clone()).or_default();
        planned.covers.extend(covers.into_iter().map(Some));
    }

    /// The guest is told of the covers that were planned with `container`.
    pub(super) fn covers_sent(&mut self, container: &ContainerId) {
        if let Some(planned) = self.planned.get_mut(container) {
            planned.sent = true;
        }
    }

    /// What the guest has made of the covers that were planned with `container`, in their order. What it does not say it has not made.
    pub(super) fn covers_made(&mut self, container: &ContainerId, made: &[bool]) {
        let Some(planned) = self.planned.remove(container) else {
            return;
        };
        for (index, late) in planned.covers.into_iter().enumerate() {
            let Some(late) = late else { continue };
            let mounts = self.shown.get_mut(&late.container).into_iter().flatten();
            let mut mounts = mounts.filter(|mount| (&mount.destination, &mount.view) == (&late.mount.0, &late.mount.1));
            let is_new = made.get(index) == Some(&true)
                && mounts.next().is_some_and(|mount| {
                    let before = mount.covered.insert(late.at.clone(), late.source.clone());
                    before.as_ref() != Some(&late.source)
                });
            if !is_new && let Some(volume) = self.volumes.get_mut(&late.source.volume) {
                volume.uncover(&late.container);
            }
        }
    }

    /// The parts of one mount that are to be covered: the part, what is there, and what is to be there. What covered something below a new
    /// cover is hidden by it, and mounted once more.
    fn late_in(
        &self,
        mount: &Shown,
        overlaps: Vec<Overlap>,
        volumes: &BTreeSet<VolumeId>,
    ) -> Vec<(PathBuf, View, View)> {
        let receives = self.receives(mount.view.volume);
        // Upper parts come first: each with whether it is mounted now.
        let mut covers: Vec<(PathBuf, View, bool)> = Vec::new();
        let mut late = Vec::new();
        for Overlap { at, view, .. } in overlaps {
            let is_covered = mount.covered.get(&at) == Some(&view);
            let is_new = volumes.contains(&view.volume)
                && view.at.as_os_str().is_empty()
                && self.writable(view.volume)
                && self.receives(view.volume) == receives;
            if !is_covered && !is_new {
                continue;
            }
            let above = covers.iter().rfind(|(above, _, _)| at.starts_with(above));
            let shown = match above {
                Some((above, view, _)) => View {
                    volume: view.volume,
                    at: join(&view.at, at.strip_prefix(above).unwrap_or(&at)),
                },
                None => View {
                    volume: mount.view.volume,
                    at: join(&mount.view.at, &at),
                },
            };
            let now = !is_covered || above.is_some_and(|(_, _, now)| *now);
            covers.push((at.clone(), view.clone(), now));
            if now {
                late.push((at, shown, view));
            }
        }
        late
    }

    /// A container is gone. The answer is the volumes that nobody uses any longer, those of earlier calls that
    /// [`Registry::removed`] was not called for included.
    ///
    /// Covers that were planned with it and not sent are not made. Of those that were sent and not answered nobody knows: their volumes stay as
    /// long as the containers in which they may be, and whoever writes to them next plans the covers again.
    pub(super) fn leave(&mut self, container: &ContainerId) -> Vec<VolumeId> {
        if self.planned.get(container).is_some_and(|planned| !planned.sent) {
            self.covers_made(container, &[]);
        }
        self.planned.remove(container);
        for late in self.planned.values_mut().flat_map(|planned| &mut planned.covers) {
            late.take_if(|late| late.container == *container);
        }
        self.shown.remove(container);
        for (id, volume) in &mut self.volumes {
            volume.users.remove(container);
            volume.covering.remove(container);
            if !volume.is_used() {
                self.unused.insert(*id);
            }
        }
        self.volumes.retain(|_, volume| volume.is_used());
        self.unused.iter().copied().collect()
    }

    /// Nothing of it is left.
    pub(super) fn removed(&mut self, volume: VolumeId) {
        self.unused.remove(&volume);
        self.gone.push(volume);
    }

    /// The volumes that have been removed since the last call.
    pub(super) fn take_gone(&mut self) -> Vec<VolumeId> {
        std::mem::take(&mut self.gone)
    }

    /// Volumes that can be written to, be it in part, and that no user writes to.
    pub(super) fn idle_writable(&self) -> Vec<VolumeId> {
        let idle = |volume: &Volume| {
            volume.exported.access != Access::ReadOnly && !volume.users.values().any(|writes| *writes)
        };
        let found = self.volumes.iter().filter(|(_, volume)| idle(volume));
        found.map(|(id, _)| *id).collect()
    }

    pub(super) fn writable(&self, volume: VolumeId) -> bool {
        let volume = self.volumes.get(&volume);
        volume.is_some_and(|volume| volume.exported.access == Access::Writable)
    }

    /// Whether what the host mounts inside it later appears.
    pub(super) fn receives(&self, volume: VolumeId) -> bool {
        let volume = self.volumes.get(&volume);
        volume.is_some_and(|volume| volume.exported.receives)
    }

    /// Whether it has whatever the host has mounted inside it, at any time.
    pub(super) fn has_all_inside(&self, volume: VolumeId) -> bool {
        let volume = self.volumes.get(&volume);
        volume.is_some_and(|volume| volume.exported.receives && volume.exported.recursive)
    }

    pub(super) fn set_access(&mut self, volume: VolumeId, access: Access) {
        if let Some(volume) = self.volumes.get_mut(&volume) {
            volume.exported.access = access;
        }
    }

    /// Whether its files belong to whom this says.
    pub(super) fn is_mapped_by(&self, volume: VolumeId, map: Option<&IdMap>) -> bool {
        let volume = self.volumes.get(&volume);
        volume.is_some_and(|volume| volume.exported.id_map.as_ref() == map)
    }

    /// What was mounted inside a volume when it was exported.
    pub(super) fn inside(&self, volume: VolumeId) -> Inside {
        let volume = self.volumes.get(&volume);
        volume.map(|volume| volume.exported.inside.clone()).unwrap_or_default()
    }

    /// What becomes of a source. `is_source` says whether a path in a volume is the same file.
    ///
    /// A read-only volume does not become writable for the sake of a part of it: the rest of it would be as well.
    pub(super) fn choose(
        &self,
        pieces: &[Piece],
        source: &Place,
        writes: bool,
        is_source: impl Fn(&View) -> bool,
    ) -> Choice {
        let Some(view) = self.views(pieces, source).into_iter().find(is_source) else {
            return Choice::New;
        };
        match (writes && !self.writable(view.volume), view.at.as_os_str().is_empty()) {
            (false, _) => Choice::View(view),
            (true, true) => Choice::Upgrade(view.volume),
            (true, false) => Choice::New,
        }
    }

    /// The paths at which a place should be: in the deepest volume first, and in a mount inside a volume only where it is in
    /// no volume itself. All containers look in the same order, and so find the same inodes.
    fn views(&self, pieces: &[Piece], place: &Place) -> Vec<View> {
        let mut found: Vec<(bool, usize, View)> = pieces
            .iter()
            .filter(|piece| self.volumes.contains_key(&piece.volume) && piece.of.device == place.device)
            .filter_map(|piece| {
                let rest = place.path.strip_prefix(&piece.of.path).ok()?;
                let view = View {
                    volume: piece.volume,
                    at: join(&piece.at, rest),
                };
                Some((!piece.at.as_os_str().is_empty(), rest.components().count(), view))
            })
            .collect();
        found.sort();
        found.into_iter().map(|(_, _, view)| view).collect()
    }

    /// What is to be mounted over parts of a view, the upper ones first. `same` says whether two paths are the same file.
    ///
    /// A part is read-only if a mount on the way to it is: in the volume as it is now, or on the host as it is now
    /// (`read_only_inside`, below the source).
    pub(super) fn overlaps(
        &self,
        pieces: &[Piece],
        base: &View,
        source: &Place,
        read_only_inside: &BTreeSet<PathBuf>,
        same: impl Fn(&View, &View) -> bool,
    ) -> Vec<Overlap> {
        // What the view shows: the source itself, and the mounts inside it.
        let inside = |piece: &&Piece| piece.volume == base.volume && !piece.at.as_os_str().is_empty();
        let mut shown = vec![(PathBuf::new(), source)];
        shown.extend(pieces.iter().filter(inside).filter_map(|piece| {
            let at = piece.at.strip_prefix(&base.at).ok()?;
            (!at.as_os_str().is_empty()).then(|| (at.to_owned(), &piece.of))
        }));
        let mut found: BTreeMap<PathBuf, View> = BTreeMap::new();
        let mut propose = |at: PathBuf, view: View| {
            let shown = View {
                volume: base.volume,
                at: join(&base.at, &at),
            };
            if !at.as_os_str().is_empty() && !found.contains_key(&at) && same(&shown, &view) {
                found.insert(at, view);
            }
        };
        for (at, of) in &shown {
            let own = |piece: &&Piece| piece.at.as_os_str().is_empty() && piece.volume != base.volume;
            let own = pieces.iter().filter(own).filter(|piece| piece.of.device == of.device);
            for piece in own.filter(|piece| self.volumes.contains_key(&piece.volume)) {
                if let Ok(rest) = piece.of.path.strip_prefix(&of.path) {
                    let view = View {
                        volume: piece.volume,
                        at: PathBuf::new(),
                    };
                    propose(join(at, rest), view);
                }
            }
        }
        for (at, of) in &shown {
            if let Some(view) = self.views(pieces, of).into_iter().next()
                && view.volume != base.volume
            {
                propose(at.clone(), view);
            }
        }
        let read_only = pieces.iter().filter(|piece| inside(piece) && piece.read_only);
        let mut read_only: BTreeSet<PathBuf> = read_only.map(|piece| piece.at.clone()).collect();
        read_only.extend(read_only_inside.iter().map(|place| join(&base.at, place)));
        // A path sorts before what is below it.
        let overlaps = found.into_iter().map(|(at, view)| Overlap {
            read_only: is_in_one_of(&join(&base.at, &at), &read_only),
            at,
            view,
        });
        overlaps.collect()
    }
}

/// Whether a path is one of those, or below one.
fn is_in_one_of(path: &Path, those: &BTreeSet<PathBuf>) -> bool {
    path.ancestors().any(|above| those.contains(above))
}

/// Without the slash at the end that joining nothing leaves.
pub(super) fn join(above: &Path, below: &Path) -> PathBuf {
    match (above.as_os_str().is_empty(), below.as_os_str().is_empty()) {
        (true, _) => below.to_owned(),
        (false, true) => above.to_owned(),
        (false, false) => above.join(below),
    }
}

#[cfg(test)]
mod tests;
