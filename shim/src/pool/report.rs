//! The pool's records for the operator: a note of each member, how many starts were served, and why the pool is not full.

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use base::process::proportional;
use node::process::ProcessRef;
use serde::{Deserialize, Serialize};

use super::place::{self, Slot};

/// A member's note.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Notes {
    /// The configuration file that it was made for.
    pub(super) config: PathBuf,
    /// Its shim.
    pub(super) process: Option<ProcessRef>,
    /// QEMU and its helpers.
    pub(super) vm: Vec<ProcessRef>,
    /// Whether the VM has booted.
    pub(super) ready: bool,
    /// When it was started, in seconds since the epoch.
    pub(super) since: u64,
}

/// Seconds since the epoch.
pub(super) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

impl Notes {
    /// Writes them; a reader sees the old ones or the new ones, whole. Without them the member works as well.
    pub(super) fn write(&self, slot: &Slot) {
        let path = slot.notes();
        let new = path.with_extension("new");
        let written = serde_json::to_vec(self)
            .map_err(std::io::Error::other)
            .and_then(|text| fs::write(&new, text))
            .and_then(|()| fs::rename(&new, &path));
        if let Err(error) = written {
            tracing::debug!(%error, path = %path.display(), "the member of the pool is not described");
        }
    }
}

/// What a member says of itself.
pub(super) fn read(slot: &Slot) -> Option<Notes> {
    serde_json::from_slice(&fs::read(slot.notes()).ok()?).ok()
}

/// What came of a start while the pool is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// A member was claimed.
    Hit,
    /// The VM was booted.
    Miss,
}

/// Starts since the pool was made.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Counts {
    hits: u64,
    misses: u64,
}

fn counts_file(root: &Path) -> PathBuf {
    root.join(place::STARTS)
}

/// Counts a start. What cannot be counted is not.
pub(super) fn count(root: &Path, outcome: Outcome) {
    let path = counts_file(root);
    let counted = || -> std::io::Result<()> {
        let mut options = File::options();
        let mut file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)?;
        file.lock()?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        let mut counts: Counts = serde_json::from_str(&text).unwrap_or_default();
        match outcome {
            Outcome::Hit => counts.hits += 1,
            Outcome::Miss => counts.misses += 1,
        }
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(serde_json::to_string(&counts)?.as_bytes())
    };
    if let Err(error) = counted() {
        tracing::debug!(%error, path = %path.display(), "a start is not counted");
    }
}

fn notice_file(root: &Path) -> PathBuf {
    root.join(place::NOTICE)
}

/// Remembers why the pool is not what the configuration asks for; the last one counts.
pub(super) fn note(root: &Path, why: &str) {
    // Who asks for the status misses it otherwise, and nobody else.
    let _ = fs::write(notice_file(root), why);
}

/// The pool as it is.
#[derive(Debug, Serialize)]
struct Status {
    /// Starts that a member has served, since the pool was made.
    hits: u64,
    /// Starts that found none.
    misses: u64,
    /// The last reason why a member did not come up or was not made; empty if there was none.
    notice: String,
    members: Vec<Member>,
}

#[derive(Debug, Serialize)]
struct Member {
    slot: String,
    /// `booting` or `ready`.
    state: &'static str,
    config: PathBuf,
    pid: i32,
    /// Age in seconds.
    age: u64,
    /// Bytes of the host's memory that are its processes' alone, and its part of what they share with others (PSS).
    memory: u64,
}

/// The status as JSON: of the members of one configuration, or of all. One that has only begun may be of any.
///
/// # Errors
/// It cannot be encoded.
pub(crate) fn status(config_path: Option<&Path>) -> Result<String, serde_json::Error> {
    let root = place::root();
    let text = fs::read_to_string(counts_file(&root)).unwrap_or_default();
    let counts: Counts = serde_json::from_str(&text).unwrap_or_default();
    let mut slots = place::slots(&root);
    slots.retain(Slot::is_taken);
    slots.sort_by(|one, other| one.name().cmp(other.name()));
    let only = config_path.map(|path| config::locate(Some(path), None));
    let of_it = |notes: &Notes| notes.process.is_none() || only.as_ref().is_none_or(|only| notes.config == *only);
    let all = slots.iter().map(|slot| (slot, read(slot).unwrap_or_default()));
    let members = all
        .filter(|(_, notes)| of_it(notes))
        .map(|(slot, notes)| member(slot, &notes));
    serde_json::to_string_pretty(&Status {
        hits: counts.hits,
        misses: counts.misses,
        notice: fs::read_to_string(notice_file(&root)).unwrap_or_default(),
        members: members.collect(),
    })
}

fn member(slot: &Slot, notes: &Notes) -> Member {
    let processes = notes.process.iter().chain(&notes.vm);
    Member {
        slot: slot.name().to_owned(),
        state: if notes.ready { "ready" } else { "booting" },
        config: notes.config.clone(),
        pid: notes.process.map_or(0, |process| process.pid),
        // One that has only begun has no notes yet.
        age: if notes.since == 0 {
            0
        } else {
            now().saturating_sub(notes.since)
        },
        memory: processes.filter_map(|process| proportional(process.pid)).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_that_are_counted_at_the_same_time_are_all_counted() {
        let root = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for number in 0..20 {
                let outcome = if number % 4 == 0 { Outcome::Miss } else { Outcome::Hit };
                let root = root.path();
                scope.spawn(move || count(root, outcome));
            }
        });
        let text = fs::read_to_string(counts_file(root.path())).unwrap();
        let counts: Counts = serde_json::from_str(&text).unwrap();
        assert_eq!(counts, Counts { hits: 15, misses: 5 });
    }

    #[test]
    fn a_process_has_memory_of_its_own() {
        assert!(proportional(std::process::id().cast_signed()).is_some_and(|bytes| bytes > 0));
    }
}
