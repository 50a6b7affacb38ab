//! The host's changes of shared files: found by fanotify(7), and reported to the guest, which cannot see them itself.
//!
//! Every directory of a volume is marked, up to [`MOST_DIRECTORIES`] per sandbox, because a fanotify mark does not cover
//! subdirectories. Changes by the sandbox's helpers are left out: they are the guest's own changes, which its kernel has
//! already reported. Without fanotify (it needs Linux 5.17 and a file system with file handles) no changes are reported.
//!
//! It knows neither the agent nor containerd.

mod event;
mod helpers;
mod sys;
mod table;

use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use protocol::agent::HostChange;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::mount::{OpenTreeFlags, open_tree};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use crate::files::share::VolumeId;
use crate::host::openat_beneath;
use event::Event;
use helpers::Helpers;
use table::{Marked, Place, Table};

/// Directories that are watched for one sandbox: a mark keeps about 1 KiB of the host's kernel memory.
const MOST_DIRECTORIES: usize = 1024;

/// Bytes read at once: at most some 300 events, so that what the guest is told at once stays far below a message's limit.
const BUFFER: usize = 16 << 10;

/// What one sandbox watches on the host. Clones share it.
#[derive(Debug, Clone)]
pub struct Watches {
    group: Arc<AsyncFd<OwnedFd>>,
    /// The shared directory, in which the volumes are.
    root: PathBuf,
    table: Arc<Mutex<Table>>,
    /// For each volume, a file of its file system by which its watched files are found when it is not shared any longer.
    roots: Arc<Mutex<HashMap<VolumeId, OwnedFd>>>,
    helpers: Helpers,
    /// Something is not shared any longer.
    gone: Arc<Notify>,
}

/// The change that is reported for it.
fn gone() -> HostChange {
    HostChange {
        mask: libc::IN_UNMOUNT,
        ..HostChange::default()
    }
}

impl Watches {
    /// Nothing is watched yet. To be called within a runtime.
    ///
    /// # Errors
    /// The host's kernel has no fanotify that names files, or all groups of the user are taken
    /// (`fs.fanotify.max_user_groups`).
    pub fn new(root: &Path) -> io::Result<Self> {
        Ok(Self {
            group: Arc::new(crate::host::sys::watch(sys::group()?)?),
            root: root.to_owned(),
            table: Arc::default(),
            roots: Arc::default(),
            helpers: Helpers::default(),
            gone: Arc::default(),
        })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn roots(&self) -> MutexGuard<'_, HashMap<VolumeId, OwnedFd>> {
        self.roots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a place by its path. The guest can make links in it at any moment, so none is followed: what is marked is what
    /// the guest has, and nothing else of the host's.
    fn open(&self, place: &Place) -> io::Result<OwnedFd> {
        let root = self.root.join(protocol::VOLUMES).join(place.volume.to_string());
        openat_beneath::open(&root, Path::new(OsStr::from_bytes(&place.path)))
    }

    /// Watches a volume that is in the shared directory. Blocks. A volume that cannot be watched is said in the log
    /// and is no error: the container works without.
    pub fn add(&self, volume: VolumeId) {
        let mut place = Place {
            volume,
            path: Vec::new(),
            file: false,
        };
        let opened = self.open(&place).and_then(|file| Ok((kind_and_device(&file)?, file)));
        let Ok(((kind, device), file)) = opened else {
            return;
        };
        if kind != FileType::Directory && kind != FileType::RegularFile {
            return;
        }
        place.file = kind == FileType::RegularFile;
        match apart(&file) {
            Ok(root) => drop(self.roots().insert(volume, root)),
            // Then it is watched until the sandbox ends.
            Err(error) => tracing::debug!(volume, %error, "a volume cannot be opened apart from its mount"),
        }
        match self.mark(&file, &place) {
            Ok(()) if kind == FileType::Directory => self.add_below(place, file, device),
            Ok(()) => {}
            Err(error) => tracing::warn!(
                volume,
                %error,
                "programs in containers that watch this volume are not told what the host changes in it"
            ),
        }
    }

    /// Marks what was opened for a place.
    fn mark(&self, file: &OwnedFd, place: &Place) -> io::Result<()> {
        // The handle first: from the mark on, events are of use.
        let handle = sys::handle_of(file.as_fd())?;
        self.table().insert(handle, place.clone());
        sys::mark(self.group.get_ref().as_fd(), file.as_fd(), !place.file)
    }

    /// Marks what is below a marked directory, level by level, on the same file system.
    fn add_below(&self, top: Place, file: OwnedFd, device: u64) {
        let mut left = VecDeque::from([(top, file)]);
        while let Some((directory, file)) = left.pop_front() {
            // What is gone by now is no loss; what cannot be read cannot be watched.
            let entries = fs::read_dir(openat_beneath::name_of(&file))
                .into_iter()
                .flatten()
                .flatten();
            for entry in entries {
                if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    continue;
                }
                if self.table().len() >= MOST_DIRECTORIES {
                    tracing::warn!(
                        volume = directory.volume,
                        most = MOST_DIRECTORIES,
                        "too many directories to watch: changes in the deepest are not told to programs in containers"
                    );
                    return;
                }
                let place = directory.child(entry.file_name().as_bytes());
                let Ok(opened) = openat_beneath::open_in(&file, Path::new(&entry.file_name())) else {
                    continue;
                };
                let same = kind_and_device(&opened).is_ok_and(|found| found == (FileType::Directory, device));
                if same && self.mark(&opened, &place).is_ok() {
                    left.push_back((place, opened));
                }
            }
        }
    }

    /// These volumes are not shared any longer: their marks are taken back, and the guest is told, which may hold on to what they
    /// were. Blocks.
    pub fn forget(&self, volumes: &[VolumeId]) {
        let unwatched = self.table().forget(volumes);
        let roots: HashMap<VolumeId, OwnedFd> = {
            let mut all = self.roots();
            volumes.iter().filter_map(|volume| all.remove_entry(volume)).collect()
        };
        self.take_back(&unwatched, &roots);
        self.gone.notify_one();
    }

    /// Takes back marks. `roots`: of the volumes that they were in.
    fn take_back(&self, marks: &[Marked], roots: &HashMap<VolumeId, OwnedFd>) {
        let group = self.group.get_ref().as_fd();
        for Marked {
            handle,
            volume,
            directory,
        } in marks
        {
            let Some(root) = roots.get(volume) else { continue };
            // By what it is: its path may be anybody's by now. What is gone has no mark any more.
            if let Ok(file) = sys::open_by_handle(root.as_fd(), handle)
                && let Err(error) = sys::unmark(group, file.as_fd(), *directory)
            {
                tracing::debug!(volume, %error, "a mark of fanotify stays until the sandbox ends");
            }
        }
    }

    /// Waits for changes, and tells them in the order in which they were made.
    ///
    /// # Errors
    /// The kernel gives no more events.
    pub async fn next(&self) -> io::Result<Vec<HostChange>> {
        loop {
            let mut ready = tokio::select! {
                ready = self.group.readable() => ready?,
                () = self.gone.notified() => return Ok(vec![gone()]),
            };
            let mut buffer = vec![0; BUFFER];
            let read = ready.try_io(|group| Ok(rustix::io::read(group.get_ref(), &mut buffer)?));
            let length = match read {
                Ok(length) => length?,
                Err(_would_block) => continue,
            };
            buffer.truncate(length);
            let watches = self.clone();
            // Finding a process's parents and a name's existence asks the file system.
            let told = tokio::task::spawn_blocking(move || watches.tell(&event::decode(&buffer)));
            let changes = told.await.map_err(io::Error::other)?;
            if !changes.is_empty() {
                return Ok(changes);
            }
        }
    }

    fn tell(&self, events: &[Event]) -> Vec<HostChange> {
        let mut changes = Vec::new();
        for event in events {
            if event.mask & libc::FAN_Q_OVERFLOW != 0 {
                tracing::warn!("the host changed more at once than can be told to the guest: some changes are lost");
            }
            if self.helpers.has(event.pid) {
                continue;
            }
            let exists = |place: &Place, name: &[u8]| {
                let found = self.open(place).map(|directory| {
                    rustix::fs::statat(&directory, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW).is_ok()
                });
                found.unwrap_or(false)
            };
            let told = self.table().translate(event, exists);
            if !told.left.is_empty() {
                self.take_back(&told.left, &self.roots());
            }
            for place in told.appeared {
                if let Ok(file) = self.open(&place)
                    && let Ok((FileType::Directory, device)) = kind_and_device(&file)
                    && self.table().len() < MOST_DIRECTORIES
                    && self.mark(&file, &place).is_ok()
                {
                    self.add_below(place, file, device);
                }
            }
            changes.extend(told.changes);
        }
        changes
    }
}

/// Opens a directory or a regular file for reading by a mount of its own: the one that it was found by can be unmounted all the same.
fn apart(file: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let clone = open_tree(CWD, openat_beneath::name_of(file), flags)?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    Ok(rustix::fs::open(openat_beneath::name_of(&clone), flags, Mode::empty())?)
}

fn kind_and_device(file: &OwnedFd) -> io::Result<(FileType, u64)> {
    let stat = rustix::fs::fstat(file)?;
    Ok((FileType::from_raw_mode(stat.st_mode), stat.st_dev))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// Runs a script that is nobody's child any more when it begins to work: what children of ours do is left out.
    fn host(script: &str, directory: &Path) {
        let gate = directory.join("../gate");
        nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let script = format!("read line < ../gate; {script}");
        let status = Command::new("setsid")
            .args(["-f", "sh", "-c", &script])
            .current_dir(directory)
            .status();
        assert!(status.unwrap().success());
        fs::write(&gate, "go\n").unwrap();
    }

    #[tokio::test]
    async fn changes_of_others_are_told_in_order_and_our_own_are_not() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join(protocol::VOLUMES).join("1");
        fs::create_dir_all(root.join("sub")).unwrap();
        let watches = Watches::new(directory.path()).unwrap();
        watches.add(1);
        fs::write(root.join("own"), "not told").unwrap();
        host("echo x > sub/new; mkdir later; mv sub/new renamed", &root);
        let mut seen = Vec::new();
        while seen.len() < 5 {
            for change in watches.next().await.unwrap() {
                let name = String::from_utf8(change.name).unwrap();
                if name == "new" || name == "renamed" || name == "later" {
                    seen.push((name, change.mask));
                } else {
                    assert_ne!(name, "own");
                }
            }
        }
        assert_eq!(seen[0], ("new".to_owned(), libc::IN_CREATE));
        assert!(seen.contains(&("later".to_owned(), libc::IN_CREATE | libc::IN_ISDIR)));
        assert_eq!(seen.last().unwrap(), &("renamed".to_owned(), libc::IN_MOVED_TO));
        watches.forget(&[1]);
        assert_eq!(watches.table().len(), 0);
        while !watches.next().await.unwrap().contains(&gone()) {}
    }

    /// Marks of the group, of which the kernel tells (proc_pid_fdinfo(5)).
    fn marks(watches: &Watches) -> usize {
        let number = std::os::fd::AsRawFd::as_raw_fd(watches.group.get_ref());
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap();
        info.lines().filter(|line| line.starts_with("fanotify ino:")).count()
    }

    #[tokio::test]
    async fn the_marks_of_a_volume_are_taken_back_when_it_goes() {
        let directory = tempfile::tempdir().unwrap();
        let volumes = directory.path().join(protocol::VOLUMES);
        fs::create_dir_all(volumes.join("1/sub/deep")).unwrap();
        fs::create_dir_all(volumes.join("2")).unwrap();
        fs::write(volumes.join("3"), "a file").unwrap();
        let watches = Watches::new(directory.path()).unwrap();
        for volume in [1, 2, 3] {
            watches.add(volume);
        }
        assert_eq!(marks(&watches), 5);
        // As where it has been unmounted.
        fs::rename(volumes.join("1"), directory.path().join("elsewhere")).unwrap();
        watches.forget(&[1]);
        assert_eq!(marks(&watches), 2);
        watches.forget(&[2, 3]);
        assert_eq!(marks(&watches), 0);
        assert!(watches.roots().is_empty());
    }

    #[tokio::test]
    async fn more_directories_than_may_be_watched_are_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join(protocol::VOLUMES).join("1");
        for number in 0..MOST_DIRECTORIES + 50 {
            fs::create_dir_all(root.join(format!("{}/{number}", number % 7))).unwrap();
        }
        let watches = Watches::new(directory.path()).unwrap();
        watches.add(1);
        assert_eq!(marks(&watches), MOST_DIRECTORIES);
        watches.forget(&[1]);
        assert_eq!(marks(&watches), 0);
    }

    #[tokio::test]
    async fn the_marks_of_a_directory_that_is_moved_away_are_taken_back() {
        let directory = tempfile::tempdir().unwrap();
        let volumes = directory.path().join(protocol::VOLUMES);
        fs::create_dir_all(volumes.join("1/sub/deep")).unwrap();
        fs::create_dir_all(volumes.join("2")).unwrap();
        let watches = Watches::new(directory.path()).unwrap();
        for volume in [1, 2] {
            watches.add(volume);
        }
        assert_eq!(marks(&watches), 4);
        let told = async |script: &str, last: &[u8]| {
            host(script, &volumes);
            fs::remove_file(volumes.join("../gate")).unwrap();
            let mut names = Vec::new();
            while names.last().is_none_or(|name| name != last) {
                names.extend(watches.next().await.unwrap().into_iter().map(|change| change.name));
            }
        };
        // Into another volume: it is watched there.
        told("mv 1/sub 2/sub; echo x > 2/first", b"first").await;
        assert_eq!((marks(&watches), watches.table().len()), (4, 4));
        told("mv 2/sub ../outside; echo x > 2/second", b"second").await;
        assert_eq!((marks(&watches), watches.table().len()), (2, 2));
        // What is written below it before it is marked is told by nobody: the file is elsewhere.
        told("mv ../outside 1/back; echo x > 1/third", b"third").await;
        assert_eq!((marks(&watches), watches.table().len()), (4, 4));
    }

    #[tokio::test]
    async fn a_link_that_the_guest_puts_in_the_place_of_a_directory_leads_nowhere() {
        let directory = tempfile::tempdir().unwrap();
        let (shared, outside) = (directory.path().join("shared"), directory.path().join("outside"));
        let root = shared.join(protocol::VOLUMES).join("1");
        fs::create_dir_all(root.join("a")).unwrap();
        fs::create_dir_all(outside.join("new/below")).unwrap();
        let watches = Watches::new(&shared).unwrap();
        watches.add(1);
        assert_eq!(watches.table().len(), 2);
        // The directory is `b` by now, which nobody told us, as it was the guest that did it.
        fs::rename(root.join("a"), root.join("b")).unwrap();
        std::os::unix::fs::symlink(&outside, root.join("a")).unwrap();
        host("mkdir b/new; echo x > last", &root);
        let mut names = Vec::new();
        while names.last().is_none_or(|name| name != b"last") {
            names.extend(watches.next().await.unwrap().into_iter().map(|change| change.name));
        }
        assert!(names.contains(&b"new".to_vec()));
        assert_eq!(watches.table().len(), 2, "what the link leads to is not watched");
    }
}
