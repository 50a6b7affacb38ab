//! Finds the disk with a serial number: at once if it is there, else when the kernel announces it ([`crate::guest::uevents`]).

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::error::StorageError;
use crate::common::timeouts::scaled;
use crate::guest::uevents::Uevents;

/// How long a disk may take to appear. The guest's kernel only has to enumerate a bus; under emulation on a busy host that
/// takes a second.
const APPEARS: Duration = Duration::from_secs(30);

/// How long a disk may be in use after its last file system was unmounted: the kernel ends that in the background.
const SETTLES: Duration = Duration::from_secs(10);

const BLOCK: &str = "/sys/block";

/// A disk as the guest knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DiskNode {
    /// Its node, in the agent's /dev.
    pub(super) path: PathBuf,
    pub(super) major: u32,
    pub(super) minor: u32,
}

pub(super) async fn find(serial: &str) -> Result<DiskNode, StorageError> {
    if serial.is_empty() || serial.len() > 20 {
        return Err(StorageError::Invalid("a disk without a serial number".to_owned()));
    }
    // Before the first look, so that nothing is missed between the two.
    let events = Uevents::listen().map_err(StorageError::Events)?;
    let found = async {
        loop {
            if let Some(disk) = look(Path::new(BLOCK), serial)
                && disk.opens()?
            {
                return Ok(disk);
            }
            events.next().await.map_err(StorageError::Events)?;
        }
    };
    tokio::time::timeout(scaled(APPEARS), found).await.unwrap_or_else(|_| {
        Err(StorageError::NoDisk {
            serial: serial.to_owned(),
            seconds: scaled(APPEARS).as_secs(),
        })
    })
}

/// Looks through the disks that there are.
fn look(block: &Path, serial: &str) -> Option<DiskNode> {
    let entries = fs::read_dir(block).ok()?;
    entries.filter_map(Result::ok).find_map(|entry| {
        let text = fs::read_to_string(entry.path().join("serial")).ok()?;
        if text.trim_end_matches(['\n', '\0']) != serial {
            return None;
        }
        let numbers = fs::read_to_string(entry.path().join("dev")).ok()?;
        let (major, minor) = numbers.trim().split_once(':')?;
        Some(DiskNode {
            path: Path::new("/dev").join(entry.file_name()),
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
        })
    })
}

impl DiskNode {
    /// Whether the disk can be opened yet. Its files in /sys and its node are there a little before (`device_add_disk`, block/genhd.c), and an
    /// event of another device may have been the reason to look. The disk's own event comes when it can.
    fn opens(&self) -> Result<bool, StorageError> {
        match File::open(&self.path) {
            Ok(_) => Ok(true),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENXIO | libc::ENODEV | libc::ENOENT)) => Ok(false),
            Err(error) => Err(StorageError::io("open", &self.path)(error)),
        }
    }

    /// Writes back what was written to the node itself, and waits until it is on the disk.
    pub(super) fn write_back(&self) -> Result<(), StorageError> {
        let disk = File::open(&self.path).map_err(StorageError::io("open", &self.path))?;
        disk.sync_all().map_err(StorageError::io("write back", &self.path))
    }

    /// A number that changes with each write that the disk has finished: of fields 5, 7, 12 and 16 of its statistics
    /// (Documentation/block/stat.rst of the kernel: writes, sectors written, discards, flushes).
    pub(super) fn written(&self) -> u64 {
        let path = format!("/sys/dev/block/{}:{}/stat", self.major, self.minor);
        let text = fs::read_to_string(path).unwrap_or_default();
        let fields = text.split_ascii_whitespace().enumerate();
        let counted = fields.filter(|(index, _)| [4, 6, 11, 15].contains(index));
        counted
            .filter_map(|(_, field)| field.parse::<u64>().ok())
            .fold(0, u64::wrapping_add)
    }

    /// Waits until nothing in the guest uses the disk any more. Blocks.
    ///
    /// A file system lives on after its last unmount as long as the kernel is busy with what a mount namespace held
    /// that has just ended, and tells nobody when it has gone. Only an exclusive open tells (open(2), `O_EXCL`), so that is
    /// tried until it succeeds.
    pub(super) fn settled(&self) -> Result<(), StorageError> {
        let began = Instant::now();
        loop {
            match OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_EXCL)
                .open(&self.path)
            {
                Ok(disk) => {
                    return disk.sync_all().map_err(StorageError::io("write back", &self.path));
                }
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) && began.elapsed() < scaled(SETTLES) => {
                    thread::sleep(Duration::from_millis(2));
                }
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                    return Err(StorageError::Busy {
                        path: self.path.clone(),
                        seconds: scaled(SETTLES).as_secs(),
                    });
                }
                Err(error) => return Err(StorageError::io("open", &self.path)(error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_known_by_its_whole_serial_number() {
        let directory = tempfile::tempdir().unwrap();
        for (name, serial, dev) in [
            ("vda", "tatami-1", "254:0"),
            ("vdb", "tatami-12\n", "254:16"),
            ("loop0", "", "7:0"),
        ] {
            let disk = directory.path().join(name);
            fs::create_dir(&disk).unwrap();
            fs::write(disk.join("dev"), format!("{dev}\n")).unwrap();
            if !serial.is_empty() {
                fs::write(disk.join("serial"), serial).unwrap();
            }
        }
        let found = look(directory.path(), "tatami-12").unwrap();
        assert_eq!((found.path.as_path(), found.minor), (Path::new("/dev/vdb"), 16));
        assert_eq!(look(directory.path(), "tatami-2"), None);
        assert_eq!(look(directory.path(), "tatami-"), None);
    }

    /// A socket does not open with the error that a disk has which the kernel still adds: ENXIO.
    #[test]
    fn a_disk_that_does_not_open_yet_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let disk = |name: &str| DiskNode {
            path: directory.path().join(name),
            major: 254,
            minor: 0,
        };
        assert!(!disk("none").opens().unwrap());
        std::os::unix::net::UnixListener::bind(disk("added").path).unwrap();
        assert!(!disk("added").opens().unwrap());
        fs::write(disk("there").path, "").unwrap();
        assert!(disk("there").opens().unwrap());
        std::os::unix::fs::symlink("loop", disk("loop").path).unwrap();
        assert!(disk("loop").opens().is_err());
    }

    #[tokio::test]
    async fn a_serial_number_that_is_none_is_refused() {
        for serial in ["", &"9".repeat(21)] {
            assert!(matches!(find(serial).await, Err(StorageError::Invalid(_))));
        }
    }
}
