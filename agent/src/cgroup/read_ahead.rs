//! Sets the read-ahead size of the guest's file systems when a container has little memory.
//!
//! A page fault in a mapped file, for example in a program's code, reads 128 KiB around the page (the kernel's
//! `do_sync_mmap_readahead`). A limit of 1 MB has room for only eight such reads. Each evicts what the others have read.
//! Because something can always be evicted, the kernel does not declare the memory used up: a shell that took more than
//! its limit was killed after 59 s and 11,000 reads (docs/decisions/0014). The kernel has this setting only per file
//! system, not per cgroup. So it follows the smallest limit in the guest.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;

use super::paths::CONTAINERS;
use super::setting;

/// Every file system and disk that reads ahead (sysfs-class-bdi of the kernel).
const DEVICES: &str = "/sys/class/bdi";

/// A read may bring this part of what the smallest container may have.
const PART: u64 = 128;

/// A page, in KiB: as little as is read at all.
const LEAST: u64 = 4;

/// What each device reads ahead where nobody has little memory, in KiB: what it had when it was first seen. Held while
/// limits are looked at and sizes are written, so that the newest limit is always seen by the last to write.
static NORMAL: Mutex<BTreeMap<String, u64>> = Mutex::new(BTreeMap::new());

/// Sees to it that no device reads ahead more than is good for the container with the smallest limit. Called when limits have
/// changed. What cannot be set is slow and not wrong: the log says so.
pub(super) fn adapt() {
    let mut normal = NORMAL.lock().unwrap_or_else(PoisonError::into_inner);
    let adapted =
        smallest_limit(Path::new(CONTAINERS)).and_then(|limit| adapt_all(Path::new(DEVICES), limit, &mut normal));
    if let Err(error) = adapted {
        tracing::warn!(%error, "what files are read ahead is not made smaller for containers with little memory");
    }
}

/// The first error is the answer, when all others have been set.
fn adapt_all(devices: &Path, limit: u64, normal: &mut BTreeMap<String, u64>) -> io::Result<()> {
    let mut adapted = Ok(());
    for device in fs::read_dir(devices)? {
        let device = device?;
        let file = device.path().join("read_ahead_kb");
        // A disk that is unplugged meanwhile reads nothing.
        let Some(now) = fs::read_to_string(&file).ok().as_deref().and_then(number) else {
            continue;
        };
        let name = device.file_name().to_string_lossy().into_owned();
        let wanted = size(limit, *normal.entry(name).or_insert(now));
        if wanted != now
            && let Err(error) = setting::write(&file, &wanted.to_string())
            && !has_gone(&error)
        {
            adapted = adapted.and(Err(error));
        }
    }
    adapted
}

/// Whether it was unplugged between two calls: its file is not there, or belongs to nothing.
fn has_gone(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::NODEV))
}

/// What is read ahead, in KiB, under a limit in bytes; whole pages.
fn size(limit: u64, normal: u64) -> u64 {
    let part = limit / PART / 1024;
    normal.min((part - part % LEAST).max(LEAST))
}

/// The smallest limit of all containers, in bytes.
fn smallest_limit(containers: &Path) -> io::Result<u64> {
    let mut smallest = u64::MAX;
    for container in fs::read_dir(containers)? {
        // One that has gone since, or a file of the directory's own, limits nobody.
        let limit = fs::read_to_string(container?.path().join("memory.max")).unwrap_or_default();
        smallest = smallest.min(number(&limit).unwrap_or(u64::MAX));
    }
    Ok(smallest)
}

/// The number of a file; none where it says `max`.
fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_is_a_small_part_of_the_limit_in_pages_and_never_more_than_normal() {
        assert_eq!(size(u64::MAX, 128), 128);
        assert_eq!(size(16 << 20, 128), 128);
        assert_eq!(size(4 << 20, 128), 32);
        assert_eq!(size(3_000_000, 128), 20);
        assert_eq!(size(1_000_000, 128), 4);
        assert_eq!(size(0, 128), 4);
        assert_eq!(size(1 << 20, 0), 0, "one that reads nothing ahead is left alone");
    }

    #[test]
    fn the_smallest_limit_counts_and_the_normal_size_comes_back() {
        let (containers, devices) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let device = devices.path().join("0:27");
        fs::create_dir(&device).unwrap();
        fs::write(device.join("read_ahead_kb"), "128\n").unwrap();
        fs::write(containers.path().join("cgroup.procs"), "").unwrap();
        for (name, limit) in [("a", "max\n"), ("b", "1048576\n"), ("c", "16777216\n")] {
            fs::create_dir(containers.path().join(name)).unwrap();
            fs::write(containers.path().join(name).join("memory.max"), limit).unwrap();
        }
        let mut normal = BTreeMap::new();
        let mut adapted = || {
            let limit = smallest_limit(containers.path()).unwrap();
            adapt_all(devices.path(), limit, &mut normal).unwrap();
            number(&fs::read_to_string(device.join("read_ahead_kb")).unwrap()).unwrap()
        };
        assert_eq!(adapted(), 8);
        fs::remove_dir_all(containers.path().join("b")).unwrap();
        assert_eq!(adapted(), 128);
    }

    #[test]
    fn a_disk_that_cannot_be_set_leaves_none_of_the_others_out() {
        let devices = tempfile::tempdir().unwrap();
        let file = |name: &str| devices.path().join(name).join("read_ahead_kb");
        // The order in which they are listed is the file system's: some come before the others in any order.
        for number in 0..8 {
            let (good, bad) = (format!("254:{number}"), format!("253:{number}"));
            for name in [&good, &bad] {
                fs::create_dir(devices.path().join(name)).unwrap();
            }
            fs::write(file(&good), "128\n").unwrap();
            // Can be read and not be written to, also by root.
            std::os::unix::fs::symlink("/proc/sys/kernel/ngroups_max", file(&bad)).unwrap();
        }
        adapt_all(devices.path(), 1 << 20, &mut BTreeMap::new()).unwrap_err();
        for number in 0..8 {
            assert_eq!(fs::read_to_string(file(&format!("254:{number}"))).unwrap(), "8");
        }
    }

    #[test]
    fn a_disk_that_has_gone_between_is_no_error() {
        assert!(has_gone(&Errno::NOENT.into()) && has_gone(&Errno::NODEV.into()));
        assert!(!has_gone(&Errno::INVAL.into()));
    }
}
