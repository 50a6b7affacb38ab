//! The reserve: memory and threads that containers cannot use, and that the agent and the kernel need when containers
//! take as much as they can.
//!
//! A container without a limit would otherwise take the guest's last page and its last thread (kernel.threads-max counts
//! those of every user), and the agent could not carry out requests any more. The agent itself is never killed for lack
//! of memory: its `oom_score_adj` is -1000.

use std::path::{Path, PathBuf};

use super::{CONTAINERS, Error, Watch, failed, stats};

/// Memory in bytes that stays free when all containers are at their limit: the agent starts a process with less than 4 MiB,
/// and the kernel's own buffers for virtio take a few more.
const MEMORY: u64 = 16 << 20;

/// At least so much is left to the containers, however small the guest is.
const MEMORY_LEAST: u64 = 4 << 20;

/// Threads that stay free: the agent's for requests that block, and the processes that it starts.
const THREADS: u64 = 128;

/// As [`THREADS`] for [`MEMORY_LEAST`].
const THREADS_LEAST: u64 = 16;

/// Sets the limits anew, for memory may have been plugged. What the containers have counts as theirs to keep.
///
/// # Errors
/// A file of the kernel cannot be read or written.
pub(crate) fn keep() -> Result<(), Error> {
    let memory = most(current("memory.current")?, free_memory()?, MEMORY, MEMORY_LEAST);
    let threads = most(current("pids.current")?, free_threads()?, THREADS, THREADS_LEAST);
    for (file, value) in [("memory.max", memory), ("pids.max", threads)] {
        let value = value.to_string();
        let path = Path::new(CONTAINERS).join(file);
        std::fs::write(&path, &value).map_err(|source| Error::Refused {
            file: path.display().to_string(),
            value,
            source,
        })?;
    }
    Ok(())
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

fn free_memory() -> Result<u64, Error> {
    let path = Path::new("/proc/meminfo");
    meminfo_free(&read(path)?).ok_or_else(|| unreadable(path.to_owned()))
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

/// `MemFree` in bytes (proc_meminfo(5)).
fn meminfo_free(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemFree:"))?;
    number(line.trim().strip_suffix("kB")?)?.checked_mul(1024)
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
    let changes = match Watch::new(&path) {
        Ok(changes) => changes,
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "it will not be said when the guest's memory is used up");
            return;
        }
    };
    let mut told = 0;
    loop {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let times = stats::flat(&text).find_map(|(key, value)| (key == "oom").then_some(value));
        let times = times.unwrap_or_default();
        if times > told {
            tracing::error!(
                times,
                "the guest's memory is used up: the containers have taken all that there is for them, and the kernel ends \
                 processes; give the VM more memory (default_memory) or the containers limits"
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
        let meminfo = "MemTotal:         229376 kB\nMemFree:          190000 kB\nMemAvailable:     195000 kB\n";
        assert_eq!(meminfo_free(meminfo), Some(190_000 << 10));
        assert_eq!(meminfo_free("MemTotal: 1 kB\n"), None);
        assert_eq!(loadavg_threads("0.00 0.01 0.05 2/113 4711\n"), Some(113));
        assert_eq!(loadavg_threads("nothing"), None);
    }

    #[test]
    fn what_is_there_stays_and_a_reserve_is_left() {
        assert_eq!(most(0, 100, 16, 4), 84);
        assert_eq!(most(50, 100, 16, 4), 134);
        assert_eq!(most(0, 10, 16, 4), 4);
        assert_eq!(most(50, 0, 16, 4), 50);
    }
}
