//! Huge pages that are reserved in the guest's memory for containers (the kernel's hugetlbpage.rst).
//!
//! The kernel's count is the sum of the containers' requests. The kernel may not reach a count that is written, because
//! memory is short or fragmented. So the actual count is read back.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::error::StorageError;

/// Pages that a container holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reserved {
    size: u64,
    count: u64,
}

/// The kernel's counts, changed by one at a time.
#[derive(Debug, Clone)]
pub(super) struct HugePages {
    directory: PathBuf,
    write: fn(&Path, u64) -> io::Result<()>,
    changing: Arc<Mutex<()>>,
}

impl Default for HugePages {
    fn default() -> Self {
        Self::at(Path::new("/sys/kernel/mm/hugepages"))
    }
}

impl HugePages {
    fn at(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            write,
            changing: Arc::default(),
        }
    }

    fn file(&self, size: u64) -> PathBuf {
        self.directory.join(format!("hugepages-{}kB/nr_hugepages", size / 1024))
    }

    /// Reserves `bytes` in pages of `size` bytes.
    pub(super) fn reserve(&self, size: u64, bytes: u64) -> Result<Reserved, StorageError> {
        let count = bytes.div_ceil(size.max(1));
        let file = self.file(size);
        let _one = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = read(&file).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                StorageError::Invalid(format!("the guest has no huge pages of {} KiB", size / 1024))
            }
            _ => StorageError::io("read", &file)(error),
        })?;
        (self.write)(&file, before.saturating_add(count)).map_err(StorageError::io("write", &file))?;
        let after = read(&file).map_err(StorageError::io("read", &file))?;
        let got = after.saturating_sub(before);
        if got < count {
            (self.write)(&file, before).map_err(StorageError::io("write", &file))?;
            return Err(StorageError::NoRoom {
                wanted: count,
                got,
                size_kib: size / 1024,
            });
        }
        Ok(Reserved { size, count })
    }

    /// Gives them back. Pages in use go when they are freed.
    pub(super) fn give_back(&self, reserved: &Reserved) {
        let file = self.file(reserved.size);
        let _one = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = read(&file).and_then(|now| (self.write)(&file, now.saturating_sub(reserved.count)));
        if let Err(error) = changed {
            tracing::warn!(%error, file = %file.display(), "huge pages are not given back");
        }
    }
}

fn read(file: &Path) -> io::Result<u64> {
    fs::read_to_string(file)?.trim().parse().map_err(io::Error::other)
}

fn write(file: &Path, count: u64) -> io::Result<()> {
    fs::write(file, count.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_counted_up_and_down() {
        let directory = tempfile::tempdir().unwrap();
        let sizes = directory.path().join("hugepages-2048kB");
        fs::create_dir(&sizes).unwrap();
        fs::write(sizes.join("nr_hugepages"), "3\n").unwrap();
        let pages = HugePages::at(directory.path());
        let reserved = pages.reserve(2 << 20, 5 << 20).unwrap();
        assert_eq!(reserved.count, 3, "two and a half are three");
        assert_eq!(read(&sizes.join("nr_hugepages")).unwrap(), 6);
        pages.give_back(&reserved);
        assert_eq!(read(&sizes.join("nr_hugepages")).unwrap(), 3);
    }

    #[test]
    fn a_size_that_the_kernel_does_not_have_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let pages = HugePages::at(directory.path());
        let error = pages.reserve(1 << 30, 1 << 30).unwrap_err();
        assert_eq!(error.to_string(), "the guest has no huge pages of 1048576 KiB");
    }

    #[test]
    fn less_than_was_asked_for_is_put_back_and_told() {
        let directory = tempfile::tempdir().unwrap();
        let sizes = directory.path().join("hugepages-2048kB");
        fs::create_dir(&sizes).unwrap();
        fs::write(sizes.join("nr_hugepages"), "1").unwrap();
        let pages = HugePages {
            // A kernel that has memory for four in all.
            write: |file, count| write(file, count.min(4)),
            ..HugePages::at(directory.path())
        };
        let error = pages.reserve(2 << 20, 8 << 20).unwrap_err();
        assert!(
            matches!(error, StorageError::NoRoom { wanted: 4, got: 3, .. }),
            "{error}"
        );
        assert_eq!(read(&sizes.join("nr_hugepages")).unwrap(), 1);
    }
}
