//! The pool's records for the operator: a note of each member, how many starts were served, and why the pool is not full.

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

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
    /// Bytes that its VM may still take while it boots: no other VM is made of them.
    promised: u64,
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
    let memory = memory(notes);
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
        memory,
        promised: if notes.ready {
            0
        } else {
            slot.promised().saturating_sub(memory)
        },
    }
}

/// Bytes of the host's memory that a slot's VM was promised and has not taken yet: 0 if it has booted, or nobody has the slot.
pub(super) fn outstanding(slot: &Slot) -> u64 {
    if slot.is_taken() {
        member(slot, &read(slot).unwrap_or_default()).promised
    } else {
        0
    }
}

fn memory(notes: &Notes) -> u64 {
    let Some(process) = notes.process else { return 0 };
    // While it boots it has not written down its children.
    let children = if notes.ready { Vec::new() } else { children(process.pid) };
    let processes = std::iter::once(process.pid).chain(notes.vm.iter().map(|process| process.pid));
    processes.chain(children).map(proportional_bytes).sum()
}

/// The children of a process (proc_pid_task(5)), with theirs: virtiofsd has one.
fn children(pid: i32) -> Vec<i32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    let list = lists.collect::<String>();
    let own: Vec<i32> = list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
    let theirs = own.iter().flat_map(|pid| children(*pid));
    own.iter().copied().chain(theirs).collect()
}

/// proc_pid_smaps(5), `Pss`; 0 of a process that has gone.
fn proportional_bytes(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
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
    fn what_a_vm_was_promised_counts_until_it_has_booted_less_what_it_has_taken() {
        let root = tempfile::tempdir().unwrap();
        let slot = Slot::new(root.path(), &super::super::Key::test("k"), 0);
        let lock = slot.take().unwrap().unwrap();
        assert_eq!(outstanding(&slot), 0);
        slot.promise(&lock, 1 << 40).unwrap();
        assert_eq!(outstanding(&slot), 1 << 40);
        slot.directory().create().unwrap();
        let mut notes = Notes {
            process: ProcessRef::own(),
            ..Notes::default()
        };
        notes.write(&slot);
        let left = outstanding(&slot);
        assert!(left < 1 << 40 && left > 1 << 39, "{left}");
        notes.ready = true;
        notes.write(&slot);
        assert_eq!(outstanding(&slot), 0);
        notes.ready = false;
        notes.write(&slot);
        drop(lock);
        assert_eq!(outstanding(&slot), 0, "its member is dead");
        // The next one of the slot has a promise of its own.
        let _lock = slot.take().unwrap().unwrap();
        assert_eq!(outstanding(&slot), 0);
    }

    #[test]
    fn a_process_has_memory_of_its_own() {
        assert!(proportional_bytes(std::process::id().try_into().unwrap()) > 0);
    }
}
