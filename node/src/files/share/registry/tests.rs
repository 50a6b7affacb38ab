//! Tests of the registry against a model: one file system with constant mounts, and containers that are created and
//! removed.

use proptest::prelude::*;

use super::*;

fn place(path: &str) -> Place {
    Place {
        device: (8, 1),
        path: path.into(),
    }
}

fn id(number: u8) -> ContainerId {
    ContainerId::new(&format!("c{number}")).unwrap()
}

fn exported(writable: bool) -> Exported {
    Exported {
        access: if writable { Access::Writable } else { Access::ReadOnly },
        ..Exported::default()
    }
}

/// What [`SharedTree`](crate::files::share::SharedTree) does, with a table in the place of mounts: volumes are directories of one
/// file system.
#[derive(Default)]
struct Sandbox {
    registry: Registry,
    exported: BTreeMap<VolumeId, PathBuf>,
}

/// A view that a container has: of what, whether it writes, and what covers it.
struct Mounted {
    source: PathBuf,
    writes: bool,
    base: View,
    over: Vec<Overlap>,
}

impl Sandbox {
    fn pieces(&self) -> Vec<Piece> {
        let piece = |(volume, path): (&VolumeId, &PathBuf)| Piece {
            volume: *volume,
            at: PathBuf::new(),
            of: Place {
                device: (8, 1),
                path: path.clone(),
            },
            read_only: !self.registry.writable(*volume),
        };
        self.exported.iter().map(piece).collect()
    }

    fn is_empty(&self) -> bool {
        let registry = &self.registry;
        self.exported.is_empty()
            && registry.volumes.is_empty()
            && registry.shown.is_empty()
            && registry.planned.is_empty()
    }

    /// The path on the host that a view shows.
    fn shows(&self, view: &View) -> PathBuf {
        join(&self.exported[&view.volume], &view.at)
    }

    fn mount(&mut self, container: u8, wanted: &[(&str, bool)]) -> Vec<Mounted> {
        let mut wanted = wanted.to_vec();
        wanted.sort_by_key(|(path, writes)| (Path::new(path).components().count(), !writes));
        let mut views = Vec::new();
        for (path, writes) in &wanted {
            let choice = self.registry.choose(&self.pieces(), &place(path), *writes, |view| {
                self.shows(view) == Path::new(path)
            });
            let view = match choice {
                Choice::View(view) => view,
                Choice::Upgrade(volume) => {
                    self.registry.set_access(volume, Access::Writable);
                    View {
                        volume,
                        at: PathBuf::new(),
                    }
                }
                Choice::New => {
                    let volume = self.registry.add(&id(container), exported(*writes));
                    self.exported.insert(volume, (*path).into());
                    View {
                        volume,
                        at: PathBuf::new(),
                    }
                }
            };
            self.registry.enter(view.volume, &id(container), *writes);
            views.push(view);
        }
        let mut mounted = Vec::new();
        for ((path, writes), base) in wanted.iter().zip(views) {
            let same = |one: &View, other: &View| self.shows(one) == self.shows(other);
            let over = self
                .registry
                .overlaps(&self.pieces(), &base, &place(path), &BTreeSet::new(), same);
            for overlap in &over {
                if *writes {
                    self.registry.set_access(overlap.view.volume, Access::Writable);
                }
                self.registry.enter(overlap.view.volume, &id(container), *writes);
            }
            if !writes {
                let shown = Shown {
                    destination: format!("/in{path}").into(),
                    source: place(path),
                    view: base.clone(),
                    covered: over.iter().map(|over| (over.at.clone(), over.view.clone())).collect(),
                };
                self.registry.show(&id(container), shown);
            }
            mounted.push(Mounted {
                source: (*path).into(),
                writes: *writes,
                base,
                over,
            });
        }
        mounted
    }

    /// What other containers are to see because of what a container writes to: place, volume there, volume to be there.
    fn plan(&mut self, container: u8) -> Vec<(String, VolumeId, VolumeId)> {
        let volumes = self.registry.to_cover(&id(container));
        let same = |one: &View, other: &View| self.shows(one) == self.shows(other);
        let late = self.registry.late(&self.pieces(), &id(container), &volumes, same);
        let told = late.iter().map(|late| {
            assert_eq!(self.shows(&late.shown), self.shows(&late.source));
            (
                late.place().display().to_string(),
                late.shown.volume,
                late.source.volume,
            )
        });
        let told = told.collect();
        self.registry.plan(&id(container), late);
        told
    }

    /// The same, and the guest makes all of it.
    fn cover(&mut self, container: u8) -> Vec<(String, VolumeId, VolumeId)> {
        let planned = self.plan(container);
        self.registry.covers_sent(&id(container));
        self.registry.covers_made(&id(container), &vec![true; planned.len()]);
        planned
    }

    fn unmount(&mut self, container: u8) {
        for volume in self.registry.leave(&id(container)) {
            self.exported.remove(&volume);
            self.registry.removed(volume);
        }
        for volume in self.registry.idle_writable() {
            self.registry.set_access(volume, Access::ReadOnly);
        }
    }
}

impl Mounted {
    /// Which volume a path of the host is seen in through this mount.
    fn volume_of(&self, path: &Path) -> Option<VolumeId> {
        let rest = path.strip_prefix(&self.source).ok()?;
        let deepest = self.over.iter().rfind(|over| rest.starts_with(&over.at));
        Some(deepest.map_or(self.base.volume, |over| over.view.volume))
    }
}

#[test]
fn the_same_source_and_a_part_of_it_are_views_of_one_volume() {
    let mut sandbox = Sandbox::default();
    let whole = sandbox.mount(1, &[("/v", true)]);
    let part = sandbox.mount(2, &[("/v/a/b", false), ("/v", true)]);
    assert_eq!(whole[0].base.volume, part[0].base.volume);
    assert_eq!(
        part[1].base,
        View {
            volume: whole[0].base.volume,
            at: "a/b".into()
        }
    );
    assert!(part[0].over.is_empty());
}

#[test]
fn a_parent_that_comes_after_its_child_shows_the_childs_volume_in_its_place() {
    let mut sandbox = Sandbox::default();
    sandbox.mount(1, &[("/v/a", true)]);
    let parent = sandbox.mount(2, &[("/v", true)]);
    let child = View {
        volume: 1,
        at: PathBuf::new(),
    };
    assert_eq!(
        parent[0].over,
        [Overlap {
            at: "a".into(),
            view: child,
            read_only: false
        }]
    );
    // It stays as long as anybody sees it, and what is in it is found there.
    sandbox.unmount(1);
    let part = sandbox.mount(3, &[("/v/a/b", true)]);
    assert_eq!(
        part[0].base,
        View {
            volume: 1,
            at: "b".into()
        }
    );
}

#[test]
fn a_writable_part_of_a_read_only_volume_is_a_volume_and_the_rest_stays_read_only() {
    let mut sandbox = Sandbox::default();
    let mounts = sandbox.mount(1, &[("/", false), ("/v", true)]);
    assert!(!sandbox.registry.writable(mounts[0].base.volume) && sandbox.registry.writable(mounts[1].base.volume));
    assert_eq!(mounts[0].over[0].view.volume, mounts[1].base.volume);
}

#[test]
fn who_reads_a_whole_is_to_see_the_volume_that_a_part_of_it_becomes() {
    let mut sandbox = Sandbox::default();
    sandbox.mount(1, &[("/v", false)]);
    sandbox.mount(2, &[("/v/a/b", true)]);
    assert_eq!(sandbox.cover(2), [("/in/v/a/b".to_owned(), 1, 2)]);
    // It is covered by now, and keeps the volume in use.
    assert!(sandbox.cover(2).is_empty());
    sandbox.unmount(2);
    assert!(sandbox.exported.contains_key(&2) && !sandbox.registry.writable(2));
    // What covers more hides what covered a part of that.
    sandbox.mount(3, &[("/v/a", true)]);
    let late = [("/in/v/a".to_owned(), 1, 3), ("/in/v/a/b".to_owned(), 3, 2)];
    assert_eq!(sandbox.cover(3), late);
    sandbox.unmount(3);
    sandbox.mount(4, &[("/v/a/x", true)]);
    assert_eq!(sandbox.cover(4), [("/in/v/a/x".to_owned(), 3, 4)]);
    for container in [4, 1] {
        sandbox.unmount(container);
    }
    assert!(sandbox.is_empty());
}

#[test]
fn a_cover_that_is_not_made_is_planned_again_with_the_next_who_writes() {
    let part = || ("/in/v/a".to_owned(), 1, 2);
    // The creation fails before the guest is told.
    let mut sandbox = Sandbox::default();
    sandbox.mount(1, &[("/v", false)]);
    sandbox.mount(2, &[("/v/a", true)]);
    assert_eq!(sandbox.plan(2), [part()]);
    sandbox.unmount(2);
    assert!(!sandbox.exported.contains_key(&2), "nobody sees it");
    sandbox.mount(3, &[("/v/a", true)]);
    assert_eq!(sandbox.plan(3), [("/in/v/a".to_owned(), 1, 3)]);
    // The guest has refused.
    sandbox.registry.covers_sent(&id(3));
    sandbox.registry.covers_made(&id(3), &[]);
    sandbox.unmount(3);
    assert!(!sandbox.exported.contains_key(&3));
    // The guest has not answered: the cover may be there.
    sandbox.mount(4, &[("/v/a", true)]);
    assert_eq!(sandbox.plan(4), [("/in/v/a".to_owned(), 1, 4)]);
    sandbox.registry.covers_sent(&id(4));
    sandbox.unmount(4);
    assert!(sandbox.exported.contains_key(&4) && !sandbox.registry.writable(4));
    // Another one writes to it, which is no new volume.
    sandbox.mount(5, &[("/v/a", true)]);
    assert_eq!(sandbox.cover(5), [("/in/v/a".to_owned(), 1, 4)]);
    for container in [5, 1] {
        sandbox.unmount(container);
    }
    assert!(sandbox.is_empty());
}

#[test]
fn two_who_write_at_the_same_time_plan_the_same_cover_and_one_of_them_may_fail() {
    let mut sandbox = Sandbox::default();
    sandbox.mount(1, &[("/v", false)]);
    sandbox.mount(2, &[("/v/a", true)]);
    assert_eq!(sandbox.plan(2), [("/in/v/a".to_owned(), 1, 2)]);
    sandbox.mount(3, &[("/v/a", true)]);
    assert_eq!(sandbox.plan(3), [("/in/v/a".to_owned(), 1, 2)]);
    // What is below is below what is planned.
    sandbox.mount(4, &[("/v/a/b", true)]);
    assert!(sandbox.plan(4).contains(&("/in/v/a".to_owned(), 1, 2)));
    sandbox.unmount(2);
    sandbox.registry.covers_sent(&id(3));
    sandbox.registry.covers_made(&id(3), &[true]);
    for container in [3, 4] {
        sandbox.unmount(container);
    }
    assert!(sandbox.exported.contains_key(&2), "container 1 sees it");
    // The one in which it is goes while it is planned.
    sandbox.mount(5, &[("/v/c", true)]);
    assert_eq!(sandbox.plan(5).len(), 1);
    sandbox.unmount(1);
    sandbox.registry.covers_made(&id(5), &[true]);
    sandbox.unmount(5);
    assert!(sandbox.is_empty());
}

#[test]
fn who_writes_to_the_whole_and_who_comes_read_only_change_nothing_for_others() {
    let mut sandbox = Sandbox::default();
    sandbox.mount(1, &[("/v", true)]);
    sandbox.mount(2, &[("/v/a", true)]);
    assert!(sandbox.plan(2).is_empty());
    sandbox.mount(3, &[("/w", false)]);
    sandbox.mount(4, &[("/w/a", false)]);
    assert!(sandbox.plan(4).is_empty());
}

#[test]
fn a_volume_is_writable_as_long_as_somebody_writes_to_it() {
    let mut sandbox = Sandbox::default();
    sandbox.mount(1, &[("/v", false)]);
    assert!(!sandbox.registry.writable(1));
    sandbox.mount(2, &[("/v", true)]);
    assert!(sandbox.registry.writable(1));
    sandbox.unmount(2);
    assert!(!sandbox.registry.writable(1));
}

#[test]
fn what_is_mounted_inside_a_volume_is_found_and_gives_way_to_a_volume_of_its_own() {
    let mut registry = Registry::default();
    let container = id(1);
    let (disk, other) = (
        place("/data"),
        Place {
            device: (8, 2),
            path: "/".into(),
        },
    );
    let whole = registry.add(&container, exported(true));
    let mut pieces = vec![
        Piece {
            volume: whole,
            at: PathBuf::new(),
            of: disk.clone(),
            read_only: false,
        },
        Piece {
            volume: whole,
            at: "m".into(),
            of: other.clone(),
            read_only: true,
        },
    ];
    let inner = Place {
        device: (8, 2),
        path: "/x".into(),
    };
    let inside = View {
        volume: whole,
        at: "m/x".into(),
    };
    assert_eq!(registry.choose(&pieces, &inner, false, |_| true), Choice::View(inside));
    let own = registry.add(&container, exported(false));
    pieces.push(Piece {
        volume: own,
        at: PathBuf::new(),
        of: other.clone(),
        read_only: true,
    });
    let inside = View {
        volume: own,
        at: "x".into(),
    };
    assert_eq!(registry.choose(&pieces, &inner, false, |_| true), Choice::View(inside));
    let base = View {
        volume: whole,
        at: PathBuf::new(),
    };
    let over = registry.overlaps(&pieces, &base, &disk, &BTreeSet::new(), |_, _| true);
    let covers = View {
        volume: own,
        at: PathBuf::new(),
    };
    assert_eq!(
        over,
        [Overlap {
            at: "m".into(),
            view: covers,
            read_only: true
        }]
    );
    // Another file has taken the name meanwhile.
    assert_eq!(registry.choose(&pieces, &inner, false, |_| false), Choice::New);
    assert!(
        registry
            .overlaps(&pieces, &base, &disk, &BTreeSet::new(), |_, _| false)
            .is_empty()
    );
}

const PATHS: [&str; 8] = ["/", "/a", "/a/b", "/a/b/c", "/a/x", "/ab", "/y", "/y/z"];

#[derive(Debug, Clone)]
enum Step {
    Come(u8, Vec<(usize, bool)>),
    Go(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let mounts = prop::collection::vec((0..PATHS.len(), any::<bool>()), 1..4);
    prop_oneof![
        2 => (0_u8..4, mounts).prop_map(|(container, mounts)| Step::Come(container, mounts)),
        1 => (0_u8..4).prop_map(Step::Go),
    ]
}

proptest! {
    /// All that a container sees it sees in the volume in which a container that comes next would see it; what it may
    /// write to is in a writable volume; what no live container writes to is in none; and nothing is left in the end.
    #[test]
    fn each_file_is_in_one_volume_for_whoever_comes(steps in prop::collection::vec(step(), 1..12)) {
        let mut sandbox = Sandbox::default();
        let mut live: BTreeMap<u8, Vec<Mounted>> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Come(container, wanted) => {
                    if live.contains_key(&container) {
                        continue;
                    }
                    let wanted: Vec<_> = wanted.into_iter().map(|(path, writes)| (PATHS[path], writes)).collect();
                    let mounted = sandbox.mount(container, &wanted);
                    let deepest = |path: &Path| {
                        let covering = sandbox.exported.iter().filter(|(_, top)| path.starts_with(top));
                        covering.max_by_key(|(_, top)| top.components().count()).map(|(volume, _)| *volume)
                    };
                    for mount in &mounted {
                        for path in PATHS.map(Path::new) {
                            let Some(volume) = mount.volume_of(path) else { continue };
                            prop_assert_eq!(Some(volume), deepest(path), "{:?} through {:?}", path, mount.source);
                            prop_assert!(!mount.writes || sandbox.registry.writable(volume));
                        }
                    }
                    live.insert(container, mounted);
                }
                Step::Go(container) => {
                    live.remove(&container);
                    sandbox.unmount(container);
                }
            }
            for (volume, top) in &sandbox.exported {
                let mounts = live.values().flatten();
                let mut uses = mounts.filter(|mount| mount.source.starts_with(top) || top.starts_with(&mount.source));
                let writes = uses.any(|mount| mount.writes);
                prop_assert!(writes || !sandbox.registry.writable(*volume));
            }
        }
        for container in 0..4 {
            sandbox.unmount(container);
        }
        prop_assert!(sandbox.exported.is_empty() && sandbox.registry.volumes.is_empty());
    }
}
