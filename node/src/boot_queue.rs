//! The boot queue of the node: only a limited number of VMs boot at a time, and the others wait.
//!
//! A boot keeps one CPU busy. If many VMs boot together, all of them are slow and reach their time-outs together.
//!
//! ```text
//! boot.queue      locked by the next one in the queue; the others wait for this lock
//! boot.place.N    locked while a VM boots; contains the pid of its shim
//! ```
//! VMs that nobody waits for yet (the shim's pool) have a queue of their own, `warm.queue` and `warm.place.N`.
//!
//! The locks are flock(2) locks. All shims of the node share them, and no other program uses them. The kernel releases
//! the locks of a process that dies. If a place is free, a boot does not wait. The place
//! of a stopped process does not count, and no boot waits for ever, because a node that boots too many VMs at once is slow,
//! and one that boots none is down. The module does not know what is booted.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, inotify};

/// Name of the queue of VMs that somebody waits for.
const WAITED_FOR: &str = "boot";

/// Name of the queue of VMs that are made in advance.
const IN_ADVANCE: &str = "warm";

/// Longest time between the close of a dying process's file and the end of its lock: one step of the kernel's.
const DYING: Duration = Duration::from_millis(50);

/// The pause in which it is waited for: there is no event.
const BETWEEN_LOOKS: Duration = Duration::from_millis(1);

/// How often it is looked whether one that boots has been stopped: there is no event.
const STOPPED: Duration = Duration::from_secs(2);

/// How long the one that is next waits where no place is given back.
const PATIENCE: Duration = Duration::from_secs(300);

/// The node's queue of VMs that want to boot, in lock files that all shims share.
#[derive(Debug, Clone)]
pub struct BootQueue {
    directory: PathBuf,
    name: &'static str,
    places: usize,
    patience: Duration,
}

/// One of those that boot. Given back when it is dropped, or when the process ends.
#[derive(Debug)]
pub struct BootPlace {
    /// Open for writing: [`BootQueue::wait_for_one`] is told of its end.
    file: File,
}

impl Drop for BootPlace {
    fn drop(&mut self) {
        // Before it is closed: whoever is told of that finds it free. If this fails, closing does the same a little later.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

impl BootQueue {
    /// The queue whose files are in `directory`, with as many places as this process can use CPUs.
    #[must_use]
    pub fn new(directory: &Path) -> Self {
        let cpus = thread::available_parallelism().map_or(1, usize::from);
        Self::with_places(directory, cpus)
    }

    /// The queue of the VMs that nobody waits for yet: with half as many places. They do not take a place from a VM that somebody
    /// waits for; that such a one goes first is a matter of their share of the CPUs.
    #[must_use]
    pub fn in_advance(directory: &Path) -> Self {
        let cpus = thread::available_parallelism().map_or(1, usize::from);
        Self {
            name: IN_ADVANCE,
            ..Self::with_places(directory, (cpus / 2).max(1))
        }
    }

    fn with_places(directory: &Path, places: usize) -> Self {
        Self {
            directory: directory.to_owned(),
            name: WAITED_FOR,
            places,
            patience: PATIENCE,
        }
    }

    /// Waits for a place. May be cancelled.
    ///
    /// # Errors
    /// The files cannot be made, locked or watched.
    pub async fn enter(&self) -> io::Result<BootPlace> {
        let queue = self.open(&format!("{}.queue", self.name))?;
        match flock(&queue, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                if let Some(place) = self.free()? {
                    return Ok(place);
                }
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(error) => return Err(error.into()),
        }
        tracing::info!(
            places = self.places,
            "as many VMs as this node has CPUs for are booting: this one waits"
        );
        let (this, began) = (self.clone(), Instant::now());
        let waited = tokio::task::spawn_blocking(move || {
            lock(&queue)?;
            let place = this.wait_for_one();
            // Only now: the next one looks for a place when this one has its own.
            drop(queue);
            place
        });
        let place = waited.await.map_err(io::Error::other)??;
        tracing::info!(waited = ?began.elapsed(), "it is this VM's turn to boot");
        Ok(place)
    }

    fn place(&self, number: usize) -> String {
        format!("{}.place.{number}", self.name)
    }

    fn open(&self, name: &str) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        options.open(self.directory.join(name))
    }

    /// A place that is free now. To be called by the one that is next: nobody else takes any.
    fn free(&self) -> io::Result<Option<BootPlace>> {
        let mut stopped = 0;
        for number in 0..self.places {
            if let Some(place) = self.take_if_free(number)? {
                return Ok(Some(place));
            }
            stopped += usize::from(self.is_stopped(number));
        }
        // As many more as do not count.
        for number in self.places..self.places + stopped {
            if let Some(place) = self.take_if_free(number)? {
                tracing::warn!(
                    stopped,
                    "a process that boots a VM is stopped: its place in the queue is taken by another"
                );
                return Ok(Some(place));
            }
        }
        Ok(None)
    }

    /// Whether the process that has this place is stopped by a signal or a debugger (proc_pid_stat(5)).
    fn is_stopped(&self, number: usize) -> bool {
        let pid = std::fs::read_to_string(self.directory.join(self.place(number))).ok();
        let stat = pid.and_then(|pid| base::process::stat(pid.trim().parse().ok()?));
        matches!(stat.map(|stat| stat.state), Some('T' | 't'))
    }

    /// This place, if it is free now.
    fn take_if_free(&self, number: usize) -> io::Result<Option<BootPlace>> {
        // Not open for writing: closing it tells nobody that a place is given back.
        let path = self.directory.join(self.place(number));
        let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::CLOEXEC;
        let probe: OwnedFd = rustix::fs::open(path, flags, Mode::from_raw_mode(0o600))?;
        match flock(&probe, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                flock(&probe, FlockOperation::Unlock)?;
                self.take(number).map(Some)
            }
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn take(&self, number: usize) -> io::Result<BootPlace> {
        let mut file = self.open(&self.place(number))?;
        lock(&file)?;
        file.set_len(0)?;
        file.write_all(std::process::id().to_string().as_bytes())?;
        Ok(BootPlace { file })
    }

    /// Takes a place that has just been given back. Of a process that has died the kernel tells before it gives the lock back, and
    /// tells nothing when it does. None if somebody else has the place.
    fn take_soon(&self, number: usize) -> io::Result<Option<BootPlace>> {
        let began = Instant::now();
        loop {
            let place = self.take_if_free(number)?;
            if place.is_some() || began.elapsed() > DYING {
                return Ok(place);
            }
            thread::sleep(BETWEEN_LOOKS);
        }
    }

    /// Waits until one of the places is given back, and takes it.
    fn wait_for_one(&self) -> io::Result<BootPlace> {
        let began = Instant::now();
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        inotify::add_watch(&watch, &self.directory, inotify::WatchFlags::CLOSE_WRITE)?;
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&watch, &mut buffer);
        loop {
            // After the watch was set, and after each event: some may have been lost.
            if let Some(place) = self.free()? {
                return Ok(place);
            }
            if began.elapsed() > self.patience {
                let why = format!("no place was given back within {} s", self.patience.as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
            let event = match events.next() {
                Ok(event) => event,
                Err(rustix::io::Errno::INTR) => continue,
                Err(rustix::io::Errno::AGAIN) => {
                    changed_within(&watch, STOPPED.min(self.patience))?;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let name = event.file_name().and_then(|name| name.to_str().ok());
            let number = name.and_then(|name| name.strip_prefix(self.name)?.strip_prefix(".place.")?.parse().ok());
            if let Some(number) = number.filter(|number| *number < self.places)
                && let Some(place) = self.take_soon(number)?
            {
                return Ok(place);
            }
        }
    }
}

/// Waits for an event, and no longer than so.
fn changed_within(watch: &OwnedFd, limit: Duration) -> io::Result<()> {
    let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
    match poll(&mut [PollFd::new(watch, PollFlags::IN)], Some(&limit)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn lock(file: &File) -> io::Result<()> {
    loop {
        match flock(file, FlockOperation::LockExclusive) {
            Err(rustix::io::Errno::INTR) => {}
            locked => return Ok(locked?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::process::{Command, Stdio};

    const SHORT: Duration = Duration::from_millis(100);
    const LONG: Duration = Duration::from_secs(30);

    async fn in_time(entering: impl Future<Output = io::Result<BootPlace>>) -> BootPlace {
        tokio::time::timeout(LONG, entering).await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn as_many_as_there_are_places_enter_at_once_and_the_next_when_one_is_given_back() {
        let directory = tempfile::tempdir().unwrap();
        let queue = BootQueue::with_places(directory.path(), 2);
        let _first = in_time(queue.enter()).await;
        let second = in_time(queue.enter()).await;
        let mut third = Box::pin(queue.enter());
        assert!(tokio::time::timeout(SHORT, &mut third).await.is_err());
        drop(second);
        let _third = in_time(third).await;
    }

    #[tokio::test]
    async fn twenty_wait_and_all_get_their_turn() {
        let directory = tempfile::tempdir().unwrap();
        let queue = BootQueue::with_places(directory.path(), 1);
        let turns: Vec<_> = (0..20)
            .map(|_| {
                let queue = queue.clone();
                tokio::spawn(async move { drop(in_time(queue.enter()).await) })
            })
            .collect();
        for turn in turns {
            turn.await.unwrap();
        }
    }

    #[tokio::test]
    async fn the_place_of_one_that_gave_up_waiting_is_free() {
        let directory = tempfile::tempdir().unwrap();
        let queue = BootQueue::with_places(directory.path(), 1);
        let first = in_time(queue.enter()).await;
        let waiting = tokio::time::timeout(SHORT, queue.enter()).await;
        assert!(waiting.is_err());
        drop(first);
        in_time(queue.enter()).await;
    }

    /// A process that has the first place.
    fn holder(directory: &Path) -> std::process::Child {
        let script = "exec 9<>boot.place.0 && flock 9 && echo $$ >&9 && echo locked && exec sleep 1000 >&-";
        let mut holder = Command::new("sh")
            .args(["-c", script])
            .current_dir(directory)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        holder.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(said, "locked\n");
        holder
    }

    #[tokio::test]
    async fn the_place_of_a_process_that_is_stopped_does_not_count_until_it_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let queue = BootQueue::with_places(directory.path(), 1);
        let mut holder = holder(directory.path());
        let pid = nix::unistd::Pid::from_raw(holder.id().try_into().unwrap());
        let signal = |signal| nix::sys::signal::kill(pid, signal).unwrap();
        let mut waiting = Box::pin(queue.enter());
        assert!(tokio::time::timeout(SHORT, &mut waiting).await.is_err());
        signal(nix::sys::signal::Signal::SIGSTOP);
        let instead = in_time(waiting).await;
        // One stopped is one place.
        assert!(tokio::time::timeout(SHORT, queue.enter()).await.is_err());
        signal(nix::sys::signal::Signal::SIGCONT);
        drop(instead);
        assert!(tokio::time::timeout(SHORT, queue.enter()).await.is_err());
        holder.kill().unwrap();
        in_time(queue.enter()).await;
        holder.wait().unwrap();
    }

    #[tokio::test]
    async fn nobody_waits_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let mut queue = BootQueue::with_places(directory.path(), 1);
        queue.patience = SHORT;
        let _first = in_time(queue.enter()).await;
        let error = tokio::time::timeout(LONG, queue.enter()).await.unwrap().unwrap_err();
        assert!(error.to_string().contains("no place was given back"), "{error}");
    }

    #[tokio::test]
    async fn the_place_of_a_process_that_was_killed_is_free() {
        let directory = tempfile::tempdir().unwrap();
        let queue = BootQueue::with_places(directory.path(), 1);
        let mut holder = holder(directory.path());
        let mut waiting = Box::pin(queue.enter());
        assert!(tokio::time::timeout(SHORT, &mut waiting).await.is_err());
        holder.kill().unwrap();
        in_time(waiting).await;
        holder.wait().unwrap();
    }
}
