//! The copies of directories that the kubelet updates: which containers have them, and when the host's have changed.
//!
//! It watches by inotify(7), and knows neither the agent nor containerd.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lifecycle::id::ContainerId;
use protocol::agent::{Storage, UpdateStorageRequest};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use super::Volumes;
use super::copied::{self, CURRENT, Copied};
use super::error::VolumeError;
use crate::host::host_ns::HostNamespace;
use crate::spec::guest_spec::{BindSource, PlacedBind};

/// The kubelet removes the old directory right after it has exchanged the link: both are one change.
const TOGETHER: Duration = Duration::from_millis(100);

/// Bytes read at once: some hundred events.
const BUFFER: usize = 8 << 10;

/// What the containers of one sandbox have copies of. Clones share it.
#[derive(Debug, Clone)]
pub struct Copies {
    host: HostNamespace,
    group: Arc<AsyncFd<OwnedFd>>,
    followed: Arc<Mutex<Followed>>,
}

#[derive(Debug, Default)]
struct Followed {
    /// Keyed by inotify watch descriptor.
    watched: HashMap<i32, Watched>,
    /// How many watches are being added. inotify gives the same number for the same directory, so none is removed meanwhile.
    adding: usize,
}

/// A directory that is followed.
#[derive(Debug, Clone)]
struct Watched {
    storage: String,
    root: PathBuf,
    users: BTreeSet<ContainerId>,
}

impl Copies {
    /// Nothing is followed yet. To be called within a runtime.
    ///
    /// # Errors
    /// All of the user's inotify instances are taken (`fs.inotify.max_user_instances`).
    pub fn new(host: HostNamespace) -> io::Result<Self> {
        let group = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        Ok(Self {
            host,
            group: Arc::new(crate::host::sys::watch(group)?),
            followed: Arc::default(),
        })
    }

    fn followed(&self) -> MutexGuard<'_, Followed> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies the sources of a container's binds into storages of the guest, and follows those that the kubelet updates. Blocks.
    ///
    /// # Errors
    /// One of them cannot be copied; it is named.
    pub fn add(
        &self,
        container: &ContainerId,
        binds: &[BindSource],
        volumes: &mut Volumes,
    ) -> Result<Vec<PlacedBind>, VolumeError> {
        let mut placed = Vec::new();
        for bind in binds {
            let mut copied = copied::copy(&self.host, bind)?;
            if copied::is_updated(&copied.storage) && self.follow(container, &copied) {
                // It may have changed before it was watched.
                copied = copied::copy(&self.host, bind)?;
            }
            placed.push(copied.placed);
            match volumes
                .storages
                .iter_mut()
                .find(|(one, _)| one.name == copied.storage.name)
            {
                // Another part of it has to be there as well.
                Some((storage, _)) => require(storage, &copied.storage),
                None => volumes.storages.push((copied.storage, Vec::new())),
            }
        }
        copied::check_sum(volumes.storages.iter().map(|(storage, _)| storage))?;
        Ok(placed)
    }

    /// Whether it is followed. The container has what is there now in any case.
    fn follow(&self, container: &ContainerId, copied: &Copied) -> bool {
        let (group, root) = (Arc::clone(&self.group), copied.root.clone());
        let flags = WatchFlags::MOVED_TO | WatchFlags::DELETE | WatchFlags::ONLYDIR;
        self.followed().adding += 1;
        let watch = self.host.run(move || inotify::add_watch(group.get_ref(), &root, flags));
        let mut followed = self.followed();
        followed.adding -= 1;
        let is_followed = match watch.map_err(io::Error::other).and_then(|watch| Ok(watch?)) {
            Ok(watch) => {
                let one = followed.watched.entry(watch).or_insert_with(|| Watched {
                    storage: copied.storage.name.clone(),
                    root: copied.root.clone(),
                    users: BTreeSet::new(),
                });
                one.users.insert(container.clone());
                true
            }
            Err(error) => {
                tracing::warn!(%container, directory = %copied.root.display(), %error, "changes of this directory are not copied");
                false
            }
        };
        self.remove_unused(&mut followed);
        is_followed
    }

    /// The container is gone: what no other one has is not followed any longer.
    pub fn forget(&self, container: &ContainerId) {
        let mut followed = self.followed();
        for one in followed.watched.values_mut() {
            one.users.remove(container);
        }
        self.remove_unused(&mut followed);
    }

    fn remove_unused(&self, followed: &mut Followed) {
        if followed.adding > 0 {
            return;
        }
        followed.watched.retain(|watch, one| {
            if one.users.is_empty() {
                // The directory may be gone, and the watch with it.
                let _ = inotify::remove_watch(self.group.get_ref(), *watch);
            }
            !one.users.is_empty()
        });
    }

    /// Whether any container uses this storage.
    #[must_use]
    pub fn has(&self, storage: &str) -> bool {
        let followed = self.followed();
        followed
            .watched
            .values()
            .any(|one| one.storage == storage && !one.users.is_empty())
    }

    /// Reads what there is now for storages that containers have.
    ///
    /// # Errors
    /// There can be no thread for it.
    pub async fn read(&self, storages: &BTreeSet<String>) -> io::Result<Vec<UpdateStorageRequest>> {
        let all: Vec<Watched> = self.followed().watched.values().cloned().collect();
        self.requests(all.into_iter().filter(|one| storages.contains(&one.storage)).collect())
            .await
    }

    async fn requests(&self, found: Vec<Watched>) -> io::Result<Vec<UpdateStorageRequest>> {
        let host = self.host.clone();
        let read =
            tokio::task::spawn_blocking(move || found.into_iter().filter_map(|one| request(&host, one)).collect());
        read.await.map_err(io::Error::other)
    }

    /// Waits for changes of the kubelet's, and reads what there is then. Not to be dropped while more is to be waited for.
    ///
    /// # Errors
    /// They cannot be waited for any more.
    pub async fn next(&self) -> io::Result<Vec<UpdateStorageRequest>> {
        let mut changed = BTreeSet::new();
        while changed.is_empty() {
            self.read_events(&mut changed).await?;
        }
        tokio::time::sleep(TOGETHER).await;
        // Those that came meanwhile.
        let more = tokio::time::timeout(Duration::ZERO, self.read_events(&mut changed));
        if let Ok(read) = more.await {
            read?;
        }
        let found: Vec<Watched> = {
            let watched = &self.followed().watched;
            changed.iter().filter_map(|watch| watched.get(watch).cloned()).collect()
        };
        self.requests(found).await
    }

    async fn read_events(&self, changed: &mut BTreeSet<i32>) -> io::Result<()> {
        let mut ready = self.group.readable().await?;
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        let mut reader = inotify::Reader::new(self.group.get_ref(), &mut buffer);
        loop {
            match reader.next() {
                Ok(event) if event.events().contains(ReadFlags::QUEUE_OVERFLOW) => {
                    changed.extend(self.followed().watched.keys());
                }
                Ok(event) => {
                    let name = event.file_name().map(std::ffi::CStr::to_bytes).unwrap_or_default();
                    let exchanged = event.events().contains(ReadFlags::MOVED_TO) && name == CURRENT.as_bytes();
                    if exchanged || event.events().contains(ReadFlags::DELETE) {
                        changed.insert(event.wd());
                    }
                }
                Err(Errno::AGAIN) => {
                    ready.clear_ready();
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// What two binds of one storage require of it.
fn require(storage: &mut Storage, other: &Storage) {
    for entry in &mut storage.entries {
        entry.required |= other
            .entries
            .iter()
            .any(|other| other.required && other.path == entry.path);
    }
}

fn request(host: &HostNamespace, one: Watched) -> Option<UpdateStorageRequest> {
    let too_much = "it has more than is copied into the guest".to_owned();
    let read = copied::read(host, &one.root, std::path::Path::new(""));
    let read = read
        .map_err(|error| base::chain(&error))
        .and_then(|read| read.ok_or(too_much));
    match read {
        Ok(entries) => Some(UpdateStorageRequest {
            name: one.storage,
            entries,
            ..UpdateStorageRequest::default()
        }),
        Err(error) => {
            let directory = one.root.display().to_string();
            tracing::warn!(
                directory,
                error,
                "a changed directory is not copied: containers keep what they have"
            );
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;

    fn bind(source: &Path) -> BindSource {
        BindSource::read_only(source, "/config")
    }

    /// One step of the kubelet's atomic writer.
    fn publish(directory: &Path, version: &str, content: &str) {
        fs::create_dir(directory.join(version)).unwrap();
        fs::write(directory.join(version).join("key"), content).unwrap();
        let old = fs::read_link(directory.join(CURRENT)).ok();
        symlink(version, directory.join("..data_tmp")).unwrap();
        fs::rename(directory.join("..data_tmp"), directory.join(CURRENT)).unwrap();
        match old {
            Some(old) => fs::remove_dir_all(directory.join(old)).unwrap(),
            None => symlink("..data/key", directory.join("key")).unwrap(),
        }
    }

    #[tokio::test]
    async fn a_change_is_read_as_long_as_a_container_has_the_directory() {
        let directory = tempfile::tempdir().unwrap();
        publish(directory.path(), "..1", "old");
        let copies = Copies::new(HostNamespace::start_thread().unwrap()).unwrap();
        let [one, two] = ["c1", "c2"].map(|id| ContainerId::new(id).unwrap());
        let mut names = BTreeSet::new();
        for id in [&one, &two] {
            let mut volumes = Volumes::default();
            copies.add(id, &[bind(directory.path())], &mut volumes).unwrap();
            names.extend(volumes.storages.into_iter().map(|(storage, _)| storage.name));
        }
        assert_eq!(names.len(), 1);
        copies.forget(&one);
        publish(directory.path(), "..2", "new");
        let changed = copies.next().await.unwrap();
        let [request] = &changed[..] else { panic!("{changed:?}") };
        assert!(names.contains(&request.name));
        let entry = |path: &str| request.entries.iter().find(|entry| entry.path == path.as_bytes());
        assert_eq!(entry("..data").unwrap().content, b"..2");
        assert_eq!(entry("..2/key").unwrap().content, b"new");
        assert!(entry("..1").is_none());
        copies.forget(&two);
        assert!(copies.followed().watched.is_empty());
    }

    #[tokio::test]
    async fn two_parts_of_a_directory_are_one_storage() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("kubernetes.io~empty-dir/v");
        for part in ["a", "b"] {
            fs::create_dir_all(root.join(part)).unwrap();
        }
        let copies = Copies::new(HostNamespace::start_thread().unwrap()).unwrap();
        let id = ContainerId::new("c").unwrap();
        let mut volumes = Volumes::default();
        let binds = [bind(&root.join("a")), bind(&root.join("b"))];
        let placed = copies.add(&id, &binds, &mut volumes).unwrap();
        let [(storage, _)] = &volumes.storages[..] else {
            panic!("{volumes:?}")
        };
        assert!(storage.keep && storage.entries.iter().all(|entry| entry.required));
        assert!(placed[0].source.ends_with("a") && placed[1].source.ends_with("b"));
    }
}
