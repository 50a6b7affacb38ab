//! Volumes and roots of containers that the host shares. They are held while a container uses them, and released
//! afterwards. The host's changes of a volume are reported to the watchers in the guest.
//!
//! Each is a mount that the first lookup creates (submounts of virtio-fs). As long as it exists, the host's file system
//! is in use. So it is unmounted with its last user, and its name is looked up once more, so that the kernel notices that
//! the host does not share it any more. Reporting changes needs
//! `guest-kernel/patches/0200-fuse-tell-watchers-of-changes-on-the-host.patch`.
//!
//! ```text
//!  (absent) ── first user ──► busy ── mounted ──► held ── last user goes ──► busy ── unmounted ──► (absent)
//! ```
//! Mounting and unmounting may wait for a host that does not answer. The table's lock is not held meanwhile: only those wait who want the
//! same volume.

mod cover;
mod mounts;
mod sys;
mod table;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use oci_spec::runtime::Spec;
use protocol::agent::{Cover, HostChange};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use crate::common::ids::ContainerId;
use mounts::{Kernel, Mounts};
pub(crate) use table::Claim;
use table::{State, Table, Volume};

/// The volumes of the sandbox. Clones share them. All functions but [`Volumes::claim`] block.
#[derive(Debug, Clone)]
pub(crate) struct Volumes(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    table: Mutex<Table>,
    /// A volume is not busy any more, or a container was released.
    changed: Condvar,
    mounts: Box<dyn Mounts>,
}

impl Default for Volumes {
    fn default() -> Self {
        Self::with(Box::new(Kernel))
    }
}

impl Volumes {
    fn with(mounts: Box<dyn Mounts>) -> Self {
        Self(Arc::new(Shared {
            table: Mutex::default(),
            changed: Condvar::new(),
            mounts,
        }))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a container hold volumes until it is released, whatever it still waits for by then.
    pub(crate) fn claim(&self, container: &ContainerId) -> Claim {
        self.table().claim(container)
    }

    /// Holds what a specification binds. What cannot be opened is left to the launch, which says so.
    pub(crate) fn acquire(&self, claim: &Claim, spec: &Spec) {
        self.look_again(&root(&claim.container));
        let sources = spec
            .mounts()
            .iter()
            .flatten()
            .filter_map(|mount| mount.source().as_deref());
        let volumes: BTreeSet<u32> = sources.filter_map(volume_of).collect();
        for volume in volumes {
            self.acquire_one(claim, volume);
        }
        self.look_in_background();
    }

    fn acquire_one(&self, claim: &Claim, volume: u32) {
        let mut table = self.table();
        loop {
            if !table.is_valid(claim) {
                return;
            }
            match table.volumes.get_mut(&volume) {
                None => break,
                Some(State::Held(held)) => {
                    held.users.insert(claim.container.clone());
                    return;
                }
                Some(State::Busy) => table = self.0.changed.wait(table).unwrap_or_else(PoisonError::into_inner),
            }
        }
        table.volumes.insert(volume, State::Busy);
        drop(table);
        let place = place(volume);
        self.look_again(&place);
        let mounted = self.0.mounts.hold(&place);
        let mut table = self.table();
        match mounted {
            Ok(root) if table.is_valid(claim) => {
                let held = Volume {
                    root: Arc::new(root),
                    users: BTreeSet::from([claim.container.clone()]),
                };
                table.volumes.insert(volume, State::Held(held));
                drop(table);
                self.0.changed.notify_all();
            }
            // Its container was released meanwhile: nobody uses it.
            Ok(root) => {
                drop(table);
                drop(root);
                self.unmount(volume);
            }
            Err(_) => {
                table.volumes.remove(&volume);
                table.leave(place);
                drop(table);
                self.0.changed.notify_all();
            }
        }
    }

    /// Shows a container that runs a volume in place of a part of one that it has for reading. The answer is whether it sees the volume. What cannot
    /// be done is logged: the container keeps what it has.
    pub(crate) fn cover(&self, container: &ContainerId, namespace: &OwnedFd, cover: &Cover) -> bool {
        let source = Path::new(&cover.source);
        let Some(volume) = volume_of(source) else { return false };
        // Without a claim it has been released meanwhile.
        let claim = self.table().claim_of(container);
        let Some(claim) = claim else { return false };
        let had = self.table().uses(container, volume);
        self.acquire_one(&claim, volume);
        let covered = match cover::cover(namespace, Path::new(&cover.place), Path::new(&cover.shown), source) {
            Ok(covered) => {
                if !covered {
                    tracing::debug!(%container, place = cover.place, "something else is mounted there");
                }
                covered
            }
            Err(error) => {
                tracing::warn!(
                    %container, place = cover.place, %error,
                    "sockets and locks do not meet there: it is shown as it was before another container could write to it"
                );
                false
            }
        };
        if !covered && !had {
            let unused = self.table().release_one(container, volume);
            if unused.is_some() {
                drop(unused);
                self.unmount(volume);
            }
        }
        covered
    }

    /// Lets go of what a container has used and nobody else uses. May be called again, and for one that has used nothing.
    pub(crate) fn release(&self, container: &ContainerId) {
        let unused = self.table().release(container);
        self.0.changed.notify_all();
        // Closed without the lock.
        let unused: Vec<u32> = unused.into_iter().map(|(volume, _)| volume).collect();
        thread::scope(|scope| {
            for volume in unused {
                // On a thread of its own: one that the host does not answer for keeps no other one mounted.
                let spawned = thread::Builder::new().spawn_scoped(scope, move || self.unmount(volume));
                if spawned.is_err() {
                    self.unmount(volume);
                }
            }
            let root = root(container);
            self.0.mounts.unmount(&root.join("rootfs"));
            self.table().leave(root);
        });
    }

    /// Unmounts a busy volume.
    fn unmount(&self, volume: u32) {
        let place = place(volume);
        self.0.mounts.unmount(&place);
        let mut table = self.table();
        table.volumes.remove(&volume);
        table.leave(place);
        drop(table);
        self.0.changed.notify_all();
    }

    /// A name that was left is used again: the kernel looks whether it still stands for the same.
    fn look_again(&self, name: &Path) {
        let was_left = self.table().take_left(name);
        if was_left {
            self.0.mounts.is_gone(name);
        }
    }

    /// Looks once more for names that nobody uses: the kernel forgets what the host no longer has, which by itself it would
    /// do only for want of memory. On a thread of its own: the host may not answer.
    fn look_in_background(&self) {
        if !self.table().has_left() {
            return;
        }
        let volumes = self.clone();
        let spawned = thread::Builder::new()
            .name("look".to_owned())
            .spawn(move || volumes.look_for_what_is_gone());
        if let Err(error) = spawned {
            tracing::debug!(%error, "what the host no longer has is looked for later");
        }
    }

    fn look_for_what_is_gone(&self) {
        let mut last: Option<PathBuf> = None;
        loop {
            let next = self.table().look_after(last.as_deref());
            let Some(name) = next else { return };
            let is_gone = self.0.mounts.is_gone(&name);
            self.table().looked(&name, is_gone);
            last = Some(name);
        }
    }

    /// Tells one change. What is not there, or not any longer, has nobody who watches it.
    ///
    /// # Errors
    /// ENOTTY or ENOSYS: the kernel cannot.
    pub(crate) fn tell(&self, change: &HostChange) -> io::Result<()> {
        if change.mask == libc::IN_UNMOUNT {
            self.look_in_background();
            return Ok(());
        }
        let source = match self.table().volumes.get(&change.volume) {
            Some(State::Held(held)) => Arc::clone(&held.root),
            Some(State::Busy) | None => return Ok(()),
        };
        let path = if change.directory.is_empty() {
            Path::new(".")
        } else {
            Path::new(OsStr::from_bytes(&change.directory))
        };
        let file = match beneath(&source, path, change.directory.is_empty()) {
            Ok(file) => file,
            Err(Errno::NOSYS) => return Err(Errno::NOSYS.into()),
            Err(_) => return Ok(()),
        };
        match sys::tell(&file, change.mask, change.cookie, &change.name) {
            Err(error) if unsupported(&error) => Err(error),
            Err(error) => {
                tracing::debug!(volume = change.volume, ?path, %error, "a change of the host's is not told");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }
}

/// The directory of a container's root in the shared directory.
fn root(container: &ContainerId) -> PathBuf {
    Path::new(protocol::SHARE_MOUNTPOINT).join(container.as_str())
}

fn place(volume: u32) -> PathBuf {
    let volumes = Path::new(protocol::SHARE_MOUNTPOINT).join(protocol::VOLUMES);
    volumes.join(volume.to_string())
}

/// The volume that a path of the guest is in.
fn volume_of(path: &Path) -> Option<u32> {
    let volumes = path.strip_prefix(protocol::SHARE_MOUNTPOINT).ok()?;
    let inside = volumes.strip_prefix(protocol::VOLUMES).ok()?;
    inside.components().next()?.as_os_str().to_str()?.parse().ok()
}

/// Whether the error means that this kernel is without the patch.
pub(crate) fn unsupported(error: &io::Error) -> bool {
    // virtiofsd answers an ioctl that it does not know with ENOSYS or ENOTTY.
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOTTY | Errno::NOSYS | Errno::OPNOTSUPP)
    )
}

/// Opens a directory below a mount, or the mount's root, which can be a file.
fn beneath(source: &OwnedFd, path: &Path, root: bool) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    if root {
        // The same file once more, readable: "." does not exist in one that is no directory.
        let number = std::os::fd::AsRawFd::as_raw_fd(source);
        return rustix::fs::openat(CWD, format!("/proc/self/fd/{number}"), flags, Mode::empty());
    }
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    openat2(source, path, flags | OFlags::DIRECTORY, Mode::empty(), resolve)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};
    use std::time::Duration;

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    /// What is mounted, and places whose calls wait.
    #[derive(Debug, Default, Clone)]
    struct Fake(Arc<(Mutex<FakeState>, Condvar)>);

    #[derive(Debug, Default)]
    struct FakeState {
        mounted: BTreeSet<PathBuf>,
        hung: BTreeSet<PathBuf>,
        waiting: BTreeSet<PathBuf>,
    }

    impl Fake {
        fn wait(&self, place: &Path) -> MutexGuard<'_, FakeState> {
            let (state, changed) = &*self.0;
            let mut state = state.lock().unwrap();
            state.waiting.insert(place.to_owned());
            changed.notify_all();
            let (mut state, _) = changed
                .wait_timeout_while(state, LONG, |state| state.hung.contains(place))
                .unwrap();
            state.waiting.remove(place);
            state
        }

        fn hangs(&self, place: &Path, hangs: bool) {
            let (state, changed) = &*self.0;
            let mut state = state.lock().unwrap();
            match hangs {
                true => state.hung.insert(place.to_owned()),
                false => state.hung.remove(place),
            };
            changed.notify_all();
        }

        /// Waits until a call is blocked.
        fn waits(&self, place: &Path) {
            let (state, changed) = &*self.0;
            let state = state.lock().unwrap();
            let waited = changed.wait_timeout_while(state, LONG, |state| !state.waiting.contains(place));
            assert!(!waited.unwrap().1.timed_out());
        }

        fn is_mounted(&self, place: &Path) -> bool {
            self.0.0.lock().unwrap().mounted.contains(place)
        }
    }

    impl Mounts for Fake {
        fn hold(&self, place: &Path) -> Result<OwnedFd, Errno> {
            self.wait(place).mounted.insert(place.to_owned());
            rustix::fs::open("/", OFlags::PATH, Mode::empty())
        }

        fn unmount(&self, place: &Path) {
            self.wait(place).mounted.remove(place);
        }

        fn is_gone(&self, name: &Path) -> bool {
            !self.wait(name).mounted.contains(name)
        }
    }

    fn id(name: &str) -> ContainerId {
        ContainerId::new(name).unwrap()
    }

    fn begin(work: impl FnOnce() + Send + 'static) -> Receiver<()> {
        let (done, waits) = channel();
        thread::spawn(move || {
            work();
            let _ = done.send(());
        });
        waits
    }

    fn begin_acquiring(volumes: &Volumes, container: &str, volume: u32) -> Receiver<()> {
        let (volumes, claim) = (volumes.clone(), volumes.claim(&id(container)));
        begin(move || volumes.acquire_one(&claim, volume))
    }

    fn acquire(volumes: &Volumes, container: &str, volume: u32) {
        begin_acquiring(volumes, container, volume).recv_timeout(LONG).unwrap();
    }

    fn begin_releasing(volumes: &Volumes, container: &str) -> Receiver<()> {
        let (volumes, container) = (volumes.clone(), id(container));
        begin(move || volumes.release(&container))
    }

    fn release(volumes: &Volumes, container: &str) {
        begin_releasing(volumes, container).recv_timeout(LONG).unwrap();
    }

    fn holds(volumes: &Volumes, volume: u32, container: &str) -> bool {
        match volumes.table().volumes.get(&volume) {
            Some(State::Held(held)) => held.users.contains(&id(container)),
            Some(State::Busy) | None => false,
        }
    }

    #[test]
    fn an_unmount_that_hangs_holds_up_only_those_who_want_that_volume() {
        let fake = Fake::default();
        let volumes = Volumes::with(Box::new(fake.clone()));
        acquire(&volumes, "a", 1);
        acquire(&volumes, "b", 2);
        fake.hangs(&place(1), true);
        let leaving = begin_releasing(&volumes, "a");
        fake.waits(&place(1));
        release(&volumes, "b");
        acquire(&volumes, "c", 2);
        assert!(holds(&volumes, 2, "c"));
        let comes = begin_acquiring(&volumes, "d", 1);
        comes.recv_timeout(Duration::from_millis(50)).unwrap_err();
        fake.hangs(&place(1), false);
        leaving.recv_timeout(LONG).unwrap();
        comes.recv_timeout(LONG).unwrap();
        assert!(holds(&volumes, 1, "d") && fake.is_mounted(&place(1)));
    }

    #[test]
    fn a_volume_that_hangs_keeps_no_other_one_of_its_container_mounted() {
        let fake = Fake::default();
        let volumes = Volumes::with(Box::new(fake.clone()));
        for volume in 1..=3 {
            let claim = volumes.claim(&id("a"));
            volumes.acquire_one(&claim, volume);
        }
        fake.hangs(&place(2), true);
        let leaving = begin_releasing(&volumes, "a");
        fake.waits(&place(2));
        acquire(&volumes, "b", 1);
        acquire(&volumes, "b", 3);
        fake.hangs(&place(2), false);
        leaving.recv_timeout(LONG).unwrap();
    }

    #[test]
    fn what_comes_after_the_release_is_let_go_of_at_once() {
        let fake = Fake::default();
        let volumes = Volumes::with(Box::new(fake.clone()));
        fake.hangs(&place(1), true);
        let opening = begin_acquiring(&volumes, "a", 1);
        fake.waits(&place(1));
        let (waiter, claim) = (volumes.clone(), volumes.claim(&id("b")));
        let waiting = begin(move || waiter.acquire_one(&claim, 1));
        // Neither the one that opens it nor the one that waits for that is wanted any more, and the first one's name is used again.
        release(&volumes, "a");
        release(&volumes, "b");
        waiting.recv_timeout(LONG).unwrap();
        volumes.claim(&id("a"));
        fake.hangs(&place(1), false);
        opening.recv_timeout(LONG).unwrap();
        assert!(!holds(&volumes, 1, "a") && !fake.is_mounted(&place(1)));
        acquire(&volumes, "c", 1);
        assert!(holds(&volumes, 1, "c"));
    }

    #[test]
    fn a_name_that_the_host_does_not_answer_for_holds_up_no_creation() {
        let fake = Fake::default();
        let volumes = Volumes::with(Box::new(fake.clone()));
        for (container, volume) in [("a", 1), ("b", 2)] {
            acquire(&volumes, container, volume);
            release(&volumes, container);
        }
        fake.hangs(&place(1), true);
        let (acquiring, claim) = (volumes.clone(), volumes.claim(&id("c")));
        let creating = begin(move || acquiring.acquire(&claim, &Spec::default()));
        creating.recv_timeout(LONG).unwrap();
        fake.waits(&place(1));
        // The others are looked for all the same.
        volumes.look_for_what_is_gone();
        let left: Vec<_> = std::iter::from_fn(|| volumes.table().look_after(None)).collect();
        assert!(left.is_empty(), "{left:?}");
        assert!(volumes.table().take_left(&place(1)) && !volumes.table().take_left(&place(2)));
        fake.hangs(&place(1), false);
    }

    #[test]
    fn a_path_in_a_volume_leads_to_its_number_and_no_other_does() {
        let of = |path: &str| volume_of(Path::new(path));
        assert_eq!(of("/run/tatami/shared/.volumes/12"), Some(12));
        assert_eq!(of("/run/tatami/shared/.volumes/12/a/b"), Some(12));
        for other in [
            "/run/tatami/shared/.volumes",
            "/run/tatami/shared/c/rootfs",
            "/run/tatami/storage/12",
            "/12",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }
}
