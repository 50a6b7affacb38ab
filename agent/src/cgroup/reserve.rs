//! The reserve: memory and threads that containers cannot use, and that the agent and the kernel need when containers
//! take as much as they can.
//!
//! A container without a limit would otherwise take the guest's last page and its last thread (kernel.threads-max counts
//! those of every user), and the agent could not carry out requests any more. The agent itself is never killed for lack
//! of memory: its `oom_score_adj` is -1000.
//!
//! While the VM may still get more memory there is a mark below the limit (memory.high): who allocates beyond it is slowed down, and so
//! waits for the memory that [`crate::guest::growth`] asks for.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::error::{Error, failed};
use super::flat::flat;
use super::paths::CONTAINERS;
use super::watch::{Stalls, Watch};

const MAX: &str = "memory.max";
const HIGH: &str = "memory.high";

/// Memory in bytes that stays free when all containers are at their limit: the agent starts a process with less than 4 MiB,
/// and the kernel's own buffers for virtio take a few more.
const MEMORY: u64 = 16 << 20;

/// At least so much is left to the containers, however small the guest is.
const MEMORY_LEAST: u64 = 4 << 20;

/// Threads that stay free: the agent's for requests that block, and the processes that it starts.
const THREADS: u64 = 128;

/// As [`THREADS`] for [`MEMORY_LEAST`].
const THREADS_LEAST: u64 = 16;

/// What the kernel counts in, in bytes.
const PAGE: u64 = 4096;

/// The kernel's records of a page take this part of it (`struct page`), and come from memory that is there already.
const RECORDS: u64 = 64;

/// Bytes that the VM may still get. Held while limits are set, so that the newest of it counts.
static MORE: Mutex<u64> = Mutex::new(0);

/// Told when a container's limits have been set.
static CHANGED: Notify = Notify::const_new();

/// Sets the limits anew, for memory may have been plugged. What the containers have counts as theirs to keep. May block while the
/// kernel reclaims memory.
///
/// # Errors
/// A file of the kernel cannot be read or written.
pub(crate) fn keep() -> Result<(), Error> {
    let more = MORE.lock().unwrap_or_else(PoisonError::into_inner);
    let free = free_memory()?;
    // Without them no memory can be plugged.
    let records = (*more / RECORDS).min(free / 4);
    let memory = most(current("memory.current")?, free, MEMORY + records, MEMORY_LEAST);
    let high = if *more > 0 {
        (memory - margin(memory)).to_string()
    } else {
        "max".to_owned()
    };
    let threads = most(current("pids.current")?, free_threads()?, THREADS, THREADS_LEAST);
    set(MAX, memory.to_string())?;
    set(HIGH, high)?;
    set("pids.max", threads.to_string())
}

fn set(file: &str, value: String) -> Result<(), Error> {
    let path = Path::new(CONTAINERS).join(file);
    std::fs::write(&path, &value).map_err(|source| Error::Refused {
        file: path.display().to_string(),
        value,
        source,
    })
}

/// How far below the limit the mark is. Who is a twentieth beyond the mark gets less than a megabyte a second (the kernel's
/// `calculate_high_delay`), but there may be many.
fn margin(limit: u64) -> u64 {
    (limit / 8).clamp(MEMORY_LEAST / 2, 64 << 20)
}

/// Says how much the VM may still get, from the next [`keep`] on. Blocks while one is under way.
pub(crate) fn may_grow(bytes: u64) {
    *MORE.lock().unwrap_or_else(PoisonError::into_inner) = bytes;
}

/// Has programs of containers told that the machine has so many bytes of memory, as it has when all has come (patches/0301 of the guest's
/// kernel); 0: what it has now. The agent itself, which is in another cgroup, sees what there is.
pub(crate) fn grows_to(bytes: u64) {
    const FILE: &str = "memory.grows_to";
    if !Path::new(CONTAINERS).join(FILE).exists() {
        tracing::debug!("the kernel cannot tell programs what memory may come");
    } else if let Err(error) = set(FILE, bytes.to_string()) {
        tracing::warn!(
            error = base::chain(&error),
            "programs are not told what memory may come"
        );
    }
}

/// Lowers the mark to what is left when the VM has given `bytes` back, and the kernel reclaims what is beyond. Blocks.
///
/// # Errors
/// A file of the kernel cannot be read or written.
pub(crate) fn prepare_to_give_back(bytes: u64) -> Result<(), Error> {
    let _more = MORE.lock().unwrap_or_else(PoisonError::into_inner);
    let limit = current(MAX)?.saturating_sub(bytes);
    set(HIGH, limit.saturating_sub(margin(limit)).to_string())
}

/// A container's limits have been set: who may have more memory is to be found out anew.
pub(super) fn changed() {
    CHANGED.notify_one();
}

/// Waits until the limits have changed.
pub(crate) async fn limits_changed() {
    CHANGED.notified().await;
}

/// What all containers together have of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Bytes that they may have before they are slowed down or killed.
    pub(crate) limit: u64,
    /// Bytes that the kernel cannot take back: programs' memory, files in tmpfs, the kernel's own for them.
    pub(crate) needed: u64,
    /// Bytes of files that were read again after the kernel had taken them back.
    pub(crate) refaulted: u64,
    /// Bytes that the guest has.
    pub(crate) total: u64,
}

impl Usage {
    /// # Errors
    /// A file of the kernel cannot be read.
    pub(crate) fn read() -> Result<Self, Error> {
        let text = read(&Path::new(CONTAINERS).join("memory.stat"))?;
        let (mut reclaimable, mut refaults) = (0u64, 0u64);
        for (key, value) in flat(&text) {
            match key {
                "inactive_file" | "active_file" | "slab_reclaimable" => reclaimable = reclaimable.saturating_add(value),
                "workingset_refault_file" => refaults = value,
                _ => {}
            }
        }
        let system = rustix::system::sysinfo();
        Ok(Self {
            limit: current(MAX)?.min(mark()?),
            needed: current("memory.current")?.saturating_sub(reclaimable),
            refaulted: refaults.saturating_mul(PAGE),
            total: system.totalram.saturating_mul(u64::from(system.mem_unit)),
        })
    }
}

/// Events of the containers' cgroup itself: its mark or its limit was reached.
///
/// # Errors
/// The kernel has no memory controller.
pub(crate) fn memory_events() -> Result<Watch, Error> {
    let path = Path::new(CONTAINERS).join("memory.events.local");
    Watch::new(&path).map_err(failed("watch", path))
}

/// Events of containers that wait for memory: reclaim, pages read again, the mark.
///
/// # Errors
/// The kernel has no pressure stall information.
pub(crate) fn memory_stalls(stalled: Duration, window: Duration) -> Result<Stalls, Error> {
    let path = Path::new(CONTAINERS).join("memory.pressure");
    Stalls::new(&path, stalled, window).map_err(failed("watch", path))
}

/// What may be had by those who have `current` while `free` is left.
fn most(current: u64, free: u64, reserve: u64, least: u64) -> u64 {
    current.saturating_add(free.saturating_sub(reserve)).max(least)
}

fn current(file: &str) -> Result<u64, Error> {
    let path = Path::new(CONTAINERS).join(file);
    let text = read(&path)?;
    number(&text).ok_or_else(|| unreadable(path))
}

fn mark() -> Result<u64, Error> {
    Ok(number(&read(&Path::new(CONTAINERS).join(HIGH))?).unwrap_or(u64::MAX))
}

fn free_memory() -> Result<u64, Error> {
    let meminfo = base::meminfo::read().ok_or_else(|| unreadable(PathBuf::from("/proc/meminfo")))?;
    Ok(meminfo.mem_free)
}

fn free_threads() -> Result<u64, Error> {
    let (limit, now) = (Path::new("/proc/sys/kernel/threads-max"), Path::new("/proc/loadavg"));
    let limit = number(&read(limit)?).ok_or_else(|| unreadable(limit.to_owned()))?;
    let used = loadavg_threads(&read(now)?).ok_or_else(|| unreadable(now.to_owned()))?;
    Ok(limit.saturating_sub(used))
}

fn read(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(failed("read", path))
}

fn unreadable(path: PathBuf) -> Error {
    failed("understand", path)(std::io::ErrorKind::InvalidData.into())
}

fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// How many threads there are: the second number of the fourth field (proc_loadavg(5)).
fn loadavg_threads(text: &str) -> Option<u64> {
    let (_, all) = text.split_whitespace().nth(3)?.split_once('/')?;
    number(all)
}

/// Says in the log, for ever, when the containers have used up what they may have together. What is killed then is told of
/// as with any other limit.
pub(crate) async fn watch() {
    let path = Path::new(CONTAINERS).join("memory.events.local");
    let changes = match memory_events() {
        Ok(changes) => changes,
        Err(error) => {
            tracing::warn!(
                error = base::chain(&error),
                "it will not be said when the guest's memory is used up"
            );
            return;
        }
    };
    let mut told = 0;
    loop {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let times = flat(&text).find_map(|(key, value)| (key == "oom").then_some(value));
        let times = times.unwrap_or_default();
        if times > told {
            tracing::error!(
                times,
                "the guest's memory is used up: the containers have taken all that there is for them, and the kernel ends \
                 processes; give the VM more memory (default_memory, default_memory_limit) or the containers limits"
            );
            told = times;
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_memory_and_threads_are_read() {
        assert!(free_memory().unwrap() > 0);
        assert_eq!(loadavg_threads("0.00 0.01 0.05 2/113 4711\n"), Some(113));
        assert_eq!(loadavg_threads("nothing"), None);
    }

    #[test]
    fn the_mark_is_below_the_limit_by_a_part_of_it_within_bounds() {
        for (limit, expected) in [(4u64, 2u64), (16, 2), (160, 20), (4096, 64)] {
            assert_eq!(margin(limit << 20), expected << 20);
        }
    }

    #[test]
    fn what_is_there_stays_and_a_reserve_is_left() {
        assert_eq!(most(0, 100, 16, 4), 84);
        assert_eq!(most(50, 100, 16, 4), 134);
        assert_eq!(most(0, 10, 16, 4), 4);
        assert_eq!(most(50, 0, 16, 4), 50);
    }
}
