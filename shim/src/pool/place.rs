//! The pool's directory and its slots, and the removal of what a dead member has left in one.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use node::path_error::PathError;
use node::run_dir::{self, RunDir, RunDirError};
use rustix::fs::{FlockOperation, flock};

use super::Key;
use crate::cleanup;

/// Suffix of a lock file.
const LOCK: &str = ".lock";

/// How many starts the pool has served.
pub(super) const STARTS: &str = "starts.json";

/// End of the name of a key's notice: why the pool has not all VMs of the key that it should have.
pub(super) const NOTICE: &str = ".notice";

/// End of the name of a mark: the template of this key could not be made or used.
pub(super) const FAILED: &str = ".failed";

/// End of the name of the link to a template.
pub(super) const TEMPLATE: &str = ".template";

/// End of the name of a slot in which a template is made.
const MAKER: &str = ".maker";

#[derive(Debug, thiserror::Error)]
pub(crate) enum PoolError {
    #[error(transparent)]
    Io(#[from] PathError),
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    #[error("the pool needs a configuration that can be used: {0}")]
    Configuration(String),
    /// A member's VM did not come up.
    #[error("the VM did not come up: {0}")]
    Boot(String),
    /// A thread or a process cannot be had.
    #[error("cannot start a {0}")]
    Start(&'static str, #[source] io::Error),
    /// What was to be retired is still there.
    #[error("{0} members of the pool do not end")]
    Stays(usize),
}

pub(super) fn root() -> PathBuf {
    Path::new(run_dir::ROOT).join("pool")
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Slot {
    name: String,
    root: PathBuf,
}

impl Slot {
    pub(super) fn new(root: &Path, key: &Key, number: u32) -> Self {
        Self::named(root, format!("{}.{number}", key.as_str()))
    }

    /// The one in which the template of this key is made.
    pub(super) fn of_maker(root: &Path, key: &str) -> Self {
        Self::named(root, format!("{key}{MAKER}"))
    }

    pub(super) fn named(root: &Path, name: String) -> Self {
        Self {
            name,
            root: root.to_owned(),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Its number, by which it is compared with `vm_cache_number`.
    pub(super) fn number(&self) -> u32 {
        self.name
            .rsplit_once('.')
            .and_then(|(_, number)| number.parse().ok())
            .unwrap_or(u32::MAX)
    }

    /// Whether a template is made in it, instead of a member living there.
    pub(super) fn is_maker(&self) -> bool {
        self.name.ends_with(MAKER)
    }

    /// The key of the VM in it, as it is in names.
    pub(super) fn key(&self) -> &str {
        self.name.split_once('.').map_or(&*self.name, |(key, _)| key)
    }

    /// Whether the VM in it has this key.
    pub(super) fn has_key(&self, key: &Key) -> bool {
        self.key() == key.as_str()
    }

    pub(super) fn directory(&self) -> RunDir {
        RunDir::at(self.root.join(&self.name))
    }

    pub(super) fn claim_socket(&self) -> PathBuf {
        self.directory().path().join("claim")
    }

    /// What the member says of itself, for [`super::status`].
    pub(super) fn notes(&self) -> PathBuf {
        self.directory().path().join("member.json")
    }

    fn lock_path(&self) -> PathBuf {
        self.root.join(format!("{}{LOCK}", self.name))
    }

    /// Takes the slot if it is free, and removes what a dead member has left in it.
    ///
    /// # Errors
    /// Its files cannot be made or removed.
    pub(super) fn take(&self) -> Result<Option<OwnedFd>, PoolError> {
        let Some(lock) = self.try_lock()? else {
            return Ok(None);
        };
        let lock = File::from(lock);
        // What was promised to the dead one.
        lock.set_len(0)
            .map_err(|source| PathError::new("empty", self.lock_path(), source))?;
        cleanup::remove_contents(&self.directory());
        Ok(Some(lock.into()))
    }

    fn try_lock(&self) -> Result<Option<OwnedFd>, PoolError> {
        let path = self.lock_path();
        let failed = |source: io::Error| PathError::new("lock", &path, source);
        loop {
            let mut options = File::options();
            options.write(true).create(true).truncate(false);
            let file = match options.open(&path) {
                // Whoever emptied the pool has just removed its directory.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    create(&self.root)?;
                    continue;
                }
                opened => opened.map_err(failed)?,
            };
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(failed(error.into()).into()),
            }
            // A sweep may have removed the name, and somebody may have made another file by now.
            let named = fs::metadata(&path).ok().map(|named| (named.dev(), named.ino()));
            let own = file.metadata().map_err(failed)?;
            if named == Some((own.dev(), own.ino())) {
                return Ok(Some(file.into()));
            }
        }
    }

    /// Writes down how many bytes of the host's memory the VM may take that is about to boot here. `lock` is the slot's.
    pub(super) fn promise(&self, lock: &OwnedFd, bytes: u64) -> Result<(), PoolError> {
        let write = || -> io::Result<()> {
            let mut file = File::from(lock.try_clone()?);
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(bytes.to_string().as_bytes())
        };
        write().map_err(|source| PathError::new("write", self.lock_path(), source).into())
    }

    /// What was promised; 0 if nothing was.
    pub(super) fn promised(&self) -> u64 {
        let text = fs::read_to_string(self.lock_path()).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    /// Holds off everybody else who would claim the member or end it, until the answer is dropped. None if somebody does that, or there is no
    /// member. The lock is on the member's directory, which is renamed when the member is adopted.
    pub(super) fn hold(&self) -> Option<OwnedFd> {
        let directory = self.directory();
        let held = File::open(directory.path()).ok()?;
        flock(&held, FlockOperation::NonBlockingLockExclusive).ok()?;
        // Whoever had the lock before may have had it adopted.
        let named = fs::metadata(directory.path()).ok()?;
        let own = held.metadata().ok()?;
        ((named.dev(), named.ino()) == (own.dev(), own.ino())).then(|| held.into())
    }

    /// Whether a member holds its lock.
    pub(super) fn is_taken(&self) -> bool {
        // Shared: those who look do not take it from one another.
        File::open(self.lock_path())
            .is_ok_and(|lock| flock(&lock, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK))
    }
}

/// Holds off everybody else who would have a VM boot, until the answer is dropped: what one finds free of the host's memory the next one does not. Blocks.
pub(super) fn reckon(root: &Path) -> Result<OwnedFd, PoolError> {
    let lock = || -> io::Result<OwnedFd> {
        let directory = File::open(root)?;
        flock(&directory, FlockOperation::LockExclusive)?;
        Ok(directory.into())
    };
    // Whoever has emptied the pool may have removed its directory.
    create(root)?;
    lock().map_err(|source| PathError::new("lock", root, source).into())
}

pub(super) fn create(root: &Path) -> Result<(), PoolError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(root);
    made.map_err(|source| PathError::new("create", root, source).into())
}

/// All slots that have ever been taken and not been removed, in no order. None where there is no pool.
pub(super) fn slots(root: &Path) -> Vec<Slot> {
    let names = fs::read_dir(root).into_iter().flatten().filter_map(|entry| {
        let name = entry.ok()?.file_name().into_string().ok()?;
        name.strip_suffix(LOCK).map(str::to_owned)
    });
    names.map(|name| Slot::named(root, name)).collect()
}

/// The files of keys with this end of the name ([`NOTICE`], [`FAILED`], [`TEMPLATE`]), by the keys.
pub(super) fn of_keys(root: &Path, end: &str) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let files = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        Some((name.strip_suffix(end)?.to_owned(), entry.path()))
    });
    files.collect()
}

pub(super) fn templates(root: &Path) -> Vec<(String, PathBuf)> {
    let links = of_keys(root, TEMPLATE).into_iter();
    links
        .filter_map(|(key, link)| Some((key, fs::read_link(link).ok()?)))
        .collect()
}

/// Removes what dead members have left, in all slots.
pub(super) fn sweep(root: &Path) {
    for slot in slots(root) {
        let swept = slot.take().map(|taken| {
            // With the lock: who takes the slot now makes a file of its own, and this one is nobody's.
            if taken.is_some() && !slot.directory().path().exists() {
                let _ = fs::remove_file(slot.lock_path());
            }
        });
        if let Err(error) = swept {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(
                error,
                slot = slot.name(),
                "what a dead member of the pool has left stays"
            );
        }
    }
}

/// Removes the pool's directory, with the files that are in it, if it has neither slots nor templates any more.
pub(super) fn remove_empty(root: &Path) {
    if !slots(root).is_empty() || !templates(root).is_empty() {
        return;
    }
    // By their names: another file may be the lock of a member that somebody has just started.
    let _ = fs::remove_file(root.join(STARTS));
    for (_, path) in [NOTICE, FAILED].iter().flat_map(|end| of_keys(root, end)) {
        let _ = fs::remove_file(path);
    }
    // One that somebody fills at the same time stays.
    let _ = fs::remove_dir(root);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_pool_is_removed_and_not_the_lock_of_one_who_fills_it() {
        let root = tempfile::tempdir().unwrap();
        let pool = root.path().join("pool");
        create(&pool).unwrap();
        for name in [STARTS, "k.notice", "k.failed"] {
            fs::write(pool.join(name), "").unwrap();
        }
        // What is no slot's, as a lock is that was made after the look.
        fs::write(pool.join("other"), "").unwrap();
        remove_empty(&pool);
        assert!(pool.join("other").exists());
        fs::remove_file(pool.join("other")).unwrap();
        remove_empty(&pool);
        assert!(!pool.exists());
    }

    #[test]
    fn a_slot_is_taken_once_and_free_when_its_lock_goes() {
        let root = tempfile::tempdir().unwrap();
        let slot = Slot::new(root.path(), &Key::test("k"), 0);
        let lock = slot.take().unwrap();
        assert!(lock.is_some() && slot.is_taken());
        assert!(slot.take().unwrap().is_none());
        drop(lock);
        assert!(!slot.is_taken());
    }

    #[test]
    fn a_sweep_removes_what_the_dead_have_left_and_nothing_of_the_living() {
        let root = tempfile::tempdir().unwrap();
        let dead = Slot::new(root.path(), &Key::test("k"), 0);
        let living = Slot::new(root.path(), &Key::test("k"), 1);
        drop(dead.take().unwrap());
        let lock = living.take().unwrap();
        for slot in [&dead, &living] {
            slot.directory().create().unwrap();
            fs::write(slot.notes(), "{}").unwrap();
        }
        sweep(root.path());
        assert_eq!(slots(root.path()), std::slice::from_ref(&living));
        assert!(!dead.directory().path().exists() && living.notes().exists());
        drop(lock);
        sweep(root.path());
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_empty_pool_is_removed_whole_and_one_with_slots_stays() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("pool");
        let slot = Slot::new(&root, &Key::test("k"), 0);
        let lock = slot.take().unwrap();
        fs::write(root.join("k.notice"), "a problem").unwrap();
        sweep(&root);
        remove_empty(&root);
        assert_eq!(fs::read_dir(&root).unwrap().count(), 2);
        drop(lock);
        sweep(&root);
        remove_empty(&root);
        assert!(!root.exists());
        // Who looks makes nothing.
        assert!(!slot.is_taken() && !root.exists());
    }

    #[test]
    fn a_member_is_held_by_one_and_not_when_it_is_adopted() {
        let root = tempfile::tempdir().unwrap();
        let slot = Slot::new(root.path(), &Key::test("k"), 0);
        assert!(slot.hold().is_none());
        slot.directory().create().unwrap();
        let held = slot.hold();
        assert!(held.is_some() && slot.hold().is_none());
        drop(held);
        let held = slot.hold();
        assert!(held.is_some());
        fs::rename(slot.directory().path(), root.path().join("sandbox")).unwrap();
        assert!(slot.hold().is_none());
        slot.directory().create().unwrap();
        assert!(slot.hold().is_some(), "the next one is another");
    }

    #[test]
    fn a_slot_knows_its_key_and_number() {
        let slot = Slot::new(Path::new("/p"), &Key::test("k"), 12);
        assert!(slot.has_key(&Key::test("k")) && !slot.has_key(&Key::test("k2")));
        assert_eq!(slot.number(), 12);
    }
}
