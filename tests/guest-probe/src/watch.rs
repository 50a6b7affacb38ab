//! Tells what inotify(7) tells, with what is there at that moment.

use std::{collections::HashMap, fs, path::Path};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::error::Result;

const EVENTS: [(&str, AddWatchFlags); 9] = [
    ("create", AddWatchFlags::IN_CREATE),
    ("delete", AddWatchFlags::IN_DELETE),
    ("moved-from", AddWatchFlags::IN_MOVED_FROM),
    ("moved-to", AddWatchFlags::IN_MOVED_TO),
    ("modify", AddWatchFlags::IN_MODIFY),
    ("attrib", AddWatchFlags::IN_ATTRIB),
    ("close-write", AddWatchFlags::IN_CLOSE_WRITE),
    ("delete-self", AddWatchFlags::IN_DELETE_SELF),
    ("ignored", AddWatchFlags::IN_IGNORED),
];

/// Ends after `count` events. One that equals the one before it is told and not counted: inotify(7) merges the two if
/// the first was not read yet, so how many there are is chance.
pub(crate) fn watch(count: &str, paths: &[&str]) -> Result<()> {
    let mut left: usize = count.parse()?;
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC)?;
    let mask = EVENTS[..8]
        .iter()
        .fold(AddWatchFlags::empty(), |mask, (_, bit)| mask | *bit);
    let mut watched = HashMap::new();
    let mut last = None;
    for path in paths {
        watched.insert(inotify.add_watch(*path, mask)?, *path);
    }
    println!("watching");
    while left > 0 {
        for event in inotify.read_events()? {
            let path = watched.get(&event.wd).copied().unwrap_or("?");
            let name = event.name.as_deref().map(Path::new);
            let full = name.map_or_else(|| Path::new(path).to_owned(), |name| Path::new(path).join(name));
            // A link's target is what a reader of a configmap goes by.
            let content = fs::read_link(&full).map_or_else(
                |_| fs::read_to_string(&full).unwrap_or_default(),
                |target| target.display().to_string(),
            );
            let bits = EVENTS.iter().filter(|(_, bit)| event.mask.contains(*bit));
            let bits: Vec<&str> = bits.map(|(name, _)| *name).collect();
            println!(
                "{path} {} {} {} {}",
                bits.join("+"),
                name.map_or("-", |name| name.to_str().unwrap_or("?")),
                u8::from(event.cookie != 0),
                content.trim_end()
            );
            let told = (event.wd, event.mask, event.cookie, event.name);
            if last.as_ref() != Some(&told) {
                left = left.saturating_sub(1);
            }
            last = Some(told);
        }
    }
    Ok(())
}
