//! The paths of watched directories in the guest, and the meaning of an event there. Pure.

use std::collections::HashMap;

use protocol::agent::HostChange;

use super::event::{Entry, Event, Handle};
use crate::files::share::VolumeId;

/// A watched directory or file as the guest has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) volume: VolumeId,
    /// Below the volume's root, without leading slash; empty for the root.
    pub(super) path: Vec<u8>,
    /// The volume is a single file.
    pub(super) file: bool,
}

impl Place {
    /// What is in this directory under that name.
    pub(super) fn child(&self, name: &[u8]) -> Self {
        let mut path = self.path.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend(name);
        Self { path, ..self.clone() }
    }

    /// Where this is once `from` has become `to`; none if it is not below `from`.
    fn moved(&self, from: &Self, to: &Self) -> Option<Vec<u8>> {
        if self.volume != from.volume {
            return None;
        }
        let rest = self.path.strip_prefix(from.path.as_slice())?;
        let below = rest.is_empty() || rest.starts_with(b"/");
        below.then(|| [to.path.as_slice(), rest].concat())
    }

    fn change(&self, name: &[u8], mask: u32, cookie: u32) -> HostChange {
        HostChange {
            volume: self.volume,
            directory: self.path.clone(),
            name: name.to_owned(),
            mask,
            cookie,
            ..Default::default()
        }
    }
}

/// What a host's event means for the guest and for the marks.
#[derive(Debug, Default)]
pub(super) struct Translated {
    /// For the guest, in order.
    pub(super) changes: Vec<HostChange>,
    /// Directories that are not in any volume any longer, although they are there: their marks are to be taken back, before what has appeared
    /// is marked.
    pub(super) left: Vec<Marked>,
    /// Directories that are new in a watched one.
    pub(super) appeared: Vec<Place>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Marked {
    pub(super) handle: Handle,
    pub(super) volume: VolumeId,
    pub(super) directory: bool,
}

/// Bits of fanotify and of inotify that mean the same, in the order in which they happen to a file. Those for one name
/// can come in one event.
const BITS: [(u64, u32); 5] = [
    (libc::FAN_CREATE, libc::IN_CREATE),
    (libc::FAN_ATTRIB, libc::IN_ATTRIB),
    (libc::FAN_MODIFY, libc::IN_MODIFY),
    (libc::FAN_CLOSE_WRITE, libc::IN_CLOSE_WRITE),
    (libc::FAN_DELETE, libc::IN_DELETE),
];

/// All that is watched for one sandbox.
#[derive(Debug, Default)]
pub(super) struct Table {
    places: HashMap<Handle, Vec<Place>>,
    cookie: u32,
}

impl Table {
    pub(super) fn len(&self) -> usize {
        self.places.values().map(Vec::len).sum()
    }

    pub(super) fn insert(&mut self, handle: Handle, place: Place) {
        let places = self.places.entry(handle).or_default();
        if !places.contains(&place) {
            places.push(place);
        }
    }

    /// Nothing of these volumes is of interest any longer. The answer is what need not be watched any more.
    pub(super) fn forget(&mut self, volumes: &[VolumeId]) -> Vec<Marked> {
        self.retain(|place| !volumes.contains(&place.volume))
    }

    /// Forgets the other places. The answer is what has none any more.
    fn retain(&mut self, keep: impl Fn(&Place) -> bool) -> Vec<Marked> {
        let mut gone = Vec::new();
        self.places.retain(|handle, places| {
            let first = places.first().map(|place| (place.volume, !place.file));
            places.retain(&keep);
            if let (Some((volume, directory)), true) = (first, places.is_empty()) {
                gone.push(Marked {
                    handle: handle.clone(),
                    volume,
                    directory,
                });
            }
            !places.is_empty()
        });
        gone
    }

    /// What the guest is to be told. `exists` says whether there is such a name now.
    pub(super) fn translate(&mut self, event: &Event, exists: impl Fn(&Place, &[u8]) -> bool) -> Translated {
        let mut translated = Translated::default();
        if event.mask & libc::FAN_RENAME != 0 {
            self.renamed(event, &mut translated);
            return translated;
        }
        if let Some(object) = &event.object {
            let files = self.places.get(object).into_iter().flatten().filter(|place| place.file);
            for place in files.cloned().collect::<Vec<_>>() {
                push(&mut translated, &place, b"", event.mask, |_| true);
            }
        }
        let Some(entry) = &event.entry else {
            return translated;
        };
        for place in self.directories(entry) {
            if entry.name == b"." {
                let own = event.mask & (libc::FAN_ATTRIB | libc::FAN_ONDIR);
                push(&mut translated, &place, b"", own, |_| true);
                continue;
            }
            push(&mut translated, &place, &entry.name, event.mask, |name| {
                exists(&place, name)
            });
            if event.mask & libc::FAN_ONDIR == 0 {
                continue;
            }
            let child = place.child(&entry.name);
            if event.mask & libc::FAN_DELETE != 0 {
                // Their marks have gone with them.
                self.retain(|other| other.moved(&child, &child).is_none());
            }
            if event.mask & libc::FAN_CREATE != 0 {
                translated.appeared.push(child);
            }
        }
        translated
    }

    fn renamed(&mut self, event: &Event, translated: &mut Translated) {
        self.cookie = self.cookie.wrapping_add(1).max(1);
        let cookie = self.cookie;
        let on_directory = event.mask & libc::FAN_ONDIR != 0;
        let bit = if on_directory { libc::IN_ISDIR } else { 0 };
        let named = |entry: &Option<Entry>| {
            entry
                .iter()
                .flat_map(|entry| {
                    self.directories(entry)
                        .into_iter()
                        .map(|place| (place, entry.name.clone()))
                })
                .collect::<Vec<_>>()
        };
        let (old, new) = (named(&event.old), named(&event.new));
        for (place, name) in &old {
            translated
                .changes
                .push(place.change(name, libc::IN_MOVED_FROM | bit, cookie));
        }
        for (place, name) in &new {
            translated
                .changes
                .push(place.change(name, libc::IN_MOVED_TO | bit, cookie));
        }
        if !on_directory {
            return;
        }
        for (from, from_name) in &old {
            let from_path = from.child(from_name);
            let target = new.iter().find(|(to, _)| to.volume == from.volume);
            match target {
                Some((to, to_name)) => {
                    let to_path = to.child(to_name);
                    for place in self.places.values_mut().flatten() {
                        if let Some(path) = place.moved(&from_path, &to_path) {
                            place.path = path;
                        }
                    }
                }
                None => {
                    let left = self.retain(|place| place.moved(&from_path, &from_path).is_none());
                    translated.left.extend(left);
                }
            }
        }
        let from_elsewhere = new
            .iter()
            .filter(|(to, _)| !old.iter().any(|(from, _)| from.volume == to.volume));
        translated
            .appeared
            .extend(from_elsewhere.map(|(to, name)| to.child(name)));
    }

    /// The watched directories that an entry is in.
    fn directories(&self, entry: &Entry) -> Vec<Place> {
        let places = self.places.get(&entry.directory).into_iter().flatten();
        places.filter(|place| !place.file).cloned().collect()
    }
}

/// One change for each bit.
fn push(translated: &mut Translated, place: &Place, name: &[u8], mask: u64, exists: impl Fn(&[u8]) -> bool) {
    let directory = if mask & libc::FAN_ONDIR == 0 { 0 } else { libc::IN_ISDIR };
    let both = libc::FAN_CREATE | libc::FAN_DELETE;
    let replaced = mask & both == both && exists(name);
    if replaced {
        translated
            .changes
            .push(place.change(name, libc::IN_DELETE | directory, 0));
    }
    for (bit, change) in BITS {
        if mask & bit != 0 && !(replaced && bit == libc::FAN_DELETE) {
            translated.changes.push(place.change(name, change | directory, 0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handle(number: u8) -> Handle {
        Handle {
            file_system: [0; 8],
            kind: 1,
            bytes: vec![number],
        }
    }

    fn place(path: &str) -> Place {
        Place {
            volume: 1,
            path: path.as_bytes().to_owned(),
            file: false,
        }
    }

    fn entry(directory: u8, name: &str) -> Option<Entry> {
        Some(Entry {
            directory: handle(directory),
            name: name.as_bytes().to_owned(),
        })
    }

    /// Directory 1 is the volume, 2 is `a` in it, 3 is `a/b`.
    fn table() -> Table {
        let mut table = Table::default();
        for (number, path) in [(1, ""), (2, "a"), (3, "a/b")] {
            table.insert(handle(number), place(path));
        }
        table
    }

    fn event(mask: u64, entry: Option<Entry>) -> Event {
        Event {
            mask,
            entry,
            ..Event::default()
        }
    }

    fn said(translated: &Translated) -> Vec<(String, String, u32)> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_owned()).unwrap();
        let said = translated.changes.iter();
        said.map(|change| (text(&change.directory), text(&change.name), change.mask))
            .collect()
    }

    #[test]
    fn what_came_as_one_event_is_told_in_the_order_in_which_it_happened() {
        let mask = libc::FAN_CLOSE_WRITE | libc::FAN_CREATE | libc::FAN_MODIFY;
        let translated = table().translate(&event(mask, entry(3, "f")), |_, _| true);
        let masks: Vec<u32> = said(&translated).iter().map(|(_, _, mask)| *mask).collect();
        assert_eq!(masks, [libc::IN_CREATE, libc::IN_MODIFY, libc::IN_CLOSE_WRITE]);
        assert_eq!(said(&translated)[0].0, "a/b");
    }

    #[test]
    fn a_file_that_was_made_and_removed_is_told_apart_from_one_that_was_replaced() {
        let mask = libc::FAN_CREATE | libc::FAN_DELETE;
        let order = |exists| {
            let translated = table().translate(&event(mask, entry(1, "f")), |_, _| exists);
            said(&translated).iter().map(|(_, _, mask)| *mask).collect::<Vec<_>>()
        };
        assert_eq!(order(false), [libc::IN_CREATE, libc::IN_DELETE]);
        assert_eq!(order(true), [libc::IN_DELETE, libc::IN_CREATE]);
    }

    #[test]
    fn both_halves_of_a_rename_have_the_same_cookie_and_what_is_below_moves_along() {
        let mut table = table();
        let rename = Event {
            mask: libc::FAN_RENAME | libc::FAN_ONDIR,
            old: entry(2, "b"),
            new: entry(1, "c"),
            ..Event::default()
        };
        let translated = table.translate(&rename, |_, _| true);
        assert_eq!(
            said(&translated),
            [
                ("a".into(), "b".into(), libc::IN_MOVED_FROM | libc::IN_ISDIR),
                (String::new(), "c".into(), libc::IN_MOVED_TO | libc::IN_ISDIR)
            ]
        );
        assert!(translated.changes[0].cookie != 0 && translated.changes[0].cookie == translated.changes[1].cookie);
        let translated = table.translate(&event(libc::FAN_MODIFY, entry(3, "f")), |_, _| true);
        assert_eq!(said(&translated)[0].0, "c");
    }

    #[test]
    fn a_directory_that_is_removed_or_moved_away_is_forgotten_with_all_below_it() {
        let mut deleted = table();
        deleted.translate(&event(libc::FAN_DELETE | libc::FAN_ONDIR, entry(1, "a")), |_, _| false);
        assert_eq!(deleted.len(), 1);
        let mut moved = table();
        let away = Event {
            mask: libc::FAN_RENAME | libc::FAN_ONDIR,
            old: entry(1, "a"),
            new: entry(9, "elsewhere"),
            ..Event::default()
        };
        let translated = moved.translate(&away, |_, _| true);
        assert_eq!(moved.len(), 1);
        let mut left: Vec<_> = translated.left.into_iter().map(|marked| marked.handle).collect();
        left.sort_by_key(|handle| handle.bytes.clone());
        assert_eq!(left, [handle(2), handle(3)]);
    }

    #[test]
    fn new_directories_are_to_be_watched_and_others_like_them_are_left_alone() {
        let mut table = table();
        let translated = table.translate(&event(libc::FAN_CREATE | libc::FAN_ONDIR, entry(2, "new")), |_, _| true);
        assert_eq!(translated.appeared, [place("a/new")]);
        table.insert(handle(4), place("ab"));
        table.translate(&event(libc::FAN_DELETE | libc::FAN_ONDIR, entry(1, "a")), |_, _| false);
        assert_eq!(table.len(), 2, "ab is not below a");
    }

    #[test]
    fn a_volume_that_is_a_file_is_told_by_what_it_is() {
        let mut table = Table::default();
        let file = Place {
            file: true,
            ..place("")
        };
        table.insert(handle(7), file);
        let event = Event {
            mask: libc::FAN_MODIFY,
            entry: entry(8, "f"),
            object: Some(handle(7)),
            ..Event::default()
        };
        assert_eq!(
            said(&table.translate(&event, |_, _| true)),
            [(String::new(), String::new(), libc::IN_MODIFY)]
        );
        let marked = Marked {
            handle: handle(7),
            volume: 1,
            directory: false,
        };
        assert_eq!(table.forget(&[1]), [marked]);
        assert_eq!(table.len(), 0);
    }

    #[test]
    fn what_is_in_two_volumes_is_watched_until_both_are_gone() {
        let mut table = table();
        table.insert(handle(3), Place { volume: 2, ..place("") });
        let mut gone: Vec<_> = table.forget(&[1]).into_iter().map(|marked| marked.handle).collect();
        gone.sort_by_key(|handle| handle.bytes.clone());
        assert_eq!(gone, [handle(1), handle(2)]);
        let marked = Marked {
            handle: handle(3),
            volume: 2,
            directory: true,
        };
        assert_eq!(table.forget(&[2]), [marked]);
    }
}
