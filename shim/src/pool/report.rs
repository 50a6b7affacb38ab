//! The pool's records for the operator: a note of each member, how many starts were served, and why the pool is not full.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base::process::proportional;
use node::process::ProcessRef;
use serde::{Deserialize, Serialize};

use super::place::{self, Slot};

#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Notes {
    /// The configuration file that it was made for.
    pub(super) config: PathBuf,
    pub(super) process: Option<ProcessRef>,
    /// QEMU and its helpers.
    pub(super) vm: Vec<ProcessRef>,
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
    /// Of this process, which has begun for this configuration file.
    pub(super) fn own(config: PathBuf) -> Self {
        Self {
            config,
            process: ProcessRef::own(),
            since: now(),
            ..Self::default()
        }
    }

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

pub(super) fn read(slot: &Slot) -> Option<Notes> {
    serde_json::from_slice(&fs::read(slot.notes()).ok()?).ok()
}

/// What came of a start while the pool is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The start took a VM from the pool.
    Hit,
    /// There was none, and the VM is a copy of a template.
    Copy,
    /// The start booted its own VM.
    Miss,
}

/// Starts since the pool was made.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Counts {
    hits: u64,
    #[serde(default)]
    copies: u64,
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
            Outcome::Copy => counts.copies += 1,
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

/// How long the last problem of a key is shown that the pool has no slots of any more: another configuration has taken its place.
const STALE: Duration = Duration::from_secs(3600);

fn notice_file(root: &Path, key: &str) -> PathBuf {
    root.join(format!("{key}{}", place::NOTICE))
}

fn failed_file(root: &Path, key: &str) -> PathBuf {
    root.join(format!("{key}{}", place::FAILED))
}

/// Remembers that the template of this key could not be made or used, and why.
pub(super) fn fail(root: &Path, key: &str, why: &str) {
    note(root, key, why);
    let _ = fs::write(failed_file(root, key), "");
}

/// Whether that was so within this time.
pub(super) fn has_failed_within(root: &Path, key: &str, time: Duration) -> bool {
    let failed = fs::metadata(failed_file(root, key)).and_then(|data| data.modified());
    failed.is_ok_and(|failed| failed.elapsed().is_ok_and(|age| age < time))
}

/// Remembers why the pool has not all VMs of a key that it should have; the last reason counts.
pub(super) fn note(root: &Path, key: &str, why: &str) {
    // Who asks for the status misses it otherwise, and nobody else.
    let _ = fs::write(notice_file(root, key), why);
}

/// The pool is filled with VMs of this key once more: what was wrong with them so far does not count, and what was wrong long ago with those of a key that
/// nobody has any more does not either.
pub(super) fn forget_notices(root: &Path, key: &str) {
    let slots = place::slots(root);
    let files = [place::NOTICE, place::FAILED]
        .iter()
        .flat_map(|end| place::of_keys(root, end));
    for (other, path) in files {
        let age = fs::metadata(&path).and_then(|data| data.modified()).ok();
        let is_stale = age.and_then(|time| time.elapsed().ok()).is_some_and(|age| age > STALE);
        if other == key || is_stale && slots.iter().all(|slot| slot.key() != other) {
            let _ = fs::remove_file(path);
        }
    }
}

/// The notices by their keys, and the latest of all.
fn notices(root: &Path) -> (BTreeMap<String, String>, String) {
    let mut found: Vec<_> = place::of_keys(root, place::NOTICE)
        .into_iter()
        .filter_map(|(key, path)| {
            let time = fs::metadata(&path).and_then(|data| data.modified()).ok()?;
            Some((time, key, fs::read_to_string(path).ok()?))
        })
        .collect();
    found.sort();
    let latest = found.last().map(|(_, _, why)| why.clone()).unwrap_or_default();
    (found.into_iter().map(|(_, key, why)| (key, why)).collect(), latest)
}

#[derive(Debug, Serialize)]
struct Status<'a, Template> {
    /// Starts that a member has served, since the pool was made.
    hits: u64,
    /// Starts that found none, and had a copy of a template.
    copies: u64,
    /// Starts that found neither a member nor a template.
    misses: u64,
    /// The last reason why a member did not come up or was not made; empty if there was none.
    notice: String,
    notices: BTreeMap<String, String>,
    members: Vec<Member>,
    templates: &'a [Template],
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

/// The status as JSON, with that of the templates.
///
/// # Errors
/// It cannot be encoded.
pub(super) fn status<Template: Serialize>(templates: &[Template]) -> Result<String, serde_json::Error> {
    let root = place::root();
    let text = fs::read_to_string(counts_file(&root)).unwrap_or_default();
    let counts: Counts = serde_json::from_str(&text).unwrap_or_default();
    let mut slots = place::slots(&root);
    slots.retain(|slot| slot.is_taken() && !slot.is_maker());
    slots.sort_by(|one, other| one.name().cmp(other.name()));
    let members = slots.iter().map(|slot| member(slot, &read(slot).unwrap_or_default()));
    let (notices, notice) = notices(&root);
    serde_json::to_string_pretty(&Status {
        hits: counts.hits,
        copies: counts.copies,
        misses: counts.misses,
        notice,
        notices,
        members: members.collect(),
        templates,
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
    processes.chain(children).filter_map(proportional).sum()
}

/// The children of a process (proc_pid_task(5)), with theirs: virtiofsd has one.
fn children(pid: i32) -> Vec<i32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    let list = lists.collect::<String>();
    let own: Vec<i32> = list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
    let theirs = own.iter().flat_map(|pid| children(*pid));
    own.iter().copied().chain(theirs).collect()
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
        assert_eq!(
            counts,
            Counts {
                hits: 15,
                copies: 0,
                misses: 5
            }
        );
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
    fn what_was_wrong_with_one_key_is_forgotten_when_it_is_filled_and_not_before() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        note(root, "a", "no memory");
        note(root, "b", "no kernel");
        forget_notices(root, "a");
        let (by_key, latest) = notices(root);
        assert_eq!(
            by_key.into_iter().collect::<Vec<_>>(),
            [("b".to_owned(), "no kernel".to_owned())]
        );
        assert_eq!(latest, "no kernel");
        let old = SystemTime::now() - STALE * 2;
        let file = File::options().write(true).open(notice_file(root, "b")).unwrap();
        file.set_modified(old).unwrap();
        let slot = Slot::named(root, "b.0".to_owned());
        let lock = slot.take().unwrap();
        forget_notices(root, "a");
        assert_eq!(notices(root).1, "no kernel");
        drop(lock);
        place::sweep(root);
        forget_notices(root, "a");
        assert_eq!(notices(root).1, "");
    }

    #[test]
    fn a_process_has_memory_of_its_own() {
        assert!(proportional(std::process::id().cast_signed()).is_some_and(|bytes| bytes > 0));
    }
}
