//! What bind mounts become where nothing is shared with the guest (`shared_fs = "none"`): file systems in its memory, which start with
//! a copy of what the host has there.
//!
//! It reads the host's files and mounts nothing. A directory that the kubelet updates (a ConfigMap or the like) is followed by
//! [`super::copies`].

use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use protocol::agent::{Storage, StorageEntry};

use super::entries;
use super::error::VolumeError;
use super::guest_path;
use super::located::EmptyDirPlace;
use super::name::name;
use super::source::{EmptyDir, Source};
use crate::host::host_ns::{HostNamespace, HostNamespaceError, HostTree};
use crate::spec::guest_spec::{BindSource, HostOptions, PlacedBind};

/// What a user has to change, for errors.
const KEY: &str = "hypervisor.qemu.shared_fs = \"none\"";

/// Bytes of all that is copied for one container: with the specification it is one message.
const MOST_BYTES: usize = protocol::MAX_MESSAGE - (1 << 20);

/// The link that the kubelet exchanges when the files of a volume change: to a directory beside it, whose name begins with two dots, too
/// (its pkg/volume/util/atomic_writer.go).
pub(super) const CURRENT: &str = "..data";

/// The name of a copied file in its storage.
const FILE: &str = "file";

/// The source of a bind as it is to be in the guest.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Copied {
    pub(super) storage: Storage,
    pub(super) placed: PlacedBind,
    /// The directory on the host.
    pub(super) root: PathBuf,
}

/// What is copied of the host for one source.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    /// The directory of the volume, or the file.
    root: PathBuf,
    /// What is bound of it; empty for all of it.
    part: PathBuf,
    /// What makes two sources the same.
    identity: Vec<u8>,
    /// It keeps what containers write as long as the pod lives.
    keep: bool,
}

/// Copies the source of a bind. Blocks.
///
/// # Errors
/// It is not there, is no directory and no file, or is too much.
pub(super) fn copy(host: &HostNamespace, bind: &BindSource) -> Result<Copied, VolumeError> {
    let refused = |reason: String| VolumeError::Mount {
        destination: bind.destination.clone(),
        reason: format!("{KEY}, and {reason}"),
    };
    if bind.id_map.is_some() {
        let reason = "its files cannot be given to other owners (uidMappings, gidMappings)";
        return Err(refused(reason.to_owned()));
    }
    if bind.overlay.is_some() {
        return Err(refused(
            "an overlay of the host's directories has to be shared".to_owned(),
        ));
    }
    let missing = |source: HostNamespaceError| VolumeError::Missing {
        path: bind.source.clone(),
        source: Box::new(source),
    };
    let found = host.find_tree(&bind.source, false).map_err(missing)?;
    let place = locate(host, &found).map_err(missing)?;
    let (kind, source) = (
        kind(host, &place.root).map_err(missing)?,
        Source::examine(host, &place.root).map_err(missing)?,
    );
    let too_much = || {
        refused(format!(
            "{} has more than is copied into the guest ({}): put it on a disk (docs/volumes.md), or set shared_fs = \"virtio-fs\"",
            place.root.display(),
            entries::BOUNDS
        ))
    };
    let (entries, part) = match kind {
        Kind::Directory => {
            let all = read(host, &place.root, &place.part).map_err(missing)?;
            (all.ok_or_else(too_much)?, place.part.clone())
        }
        Kind::File => {
            let file = entries::file(host, &place.root, FILE).map_err(missing)?;
            (vec![file.ok_or_else(too_much)?], PathBuf::from(FILE))
        }
        Kind::Other(what) => return Err(refused(format!("{} is {what}", place.root.display()))),
    };
    let (mode, (uid, gid)) = match kind {
        Kind::Directory => (source.mode, source.owner),
        Kind::File | Kind::Other(_) => (0o755, (0, 0)),
    };
    let storage = Storage {
        name: name("copy", &place.identity),
        fstype: "tmpfs".to_owned(),
        options: vec![
            format!("mode={mode:o}"),
            format!("uid={uid}"),
            format!("gid={gid}"),
            "nodev".to_owned(),
            "nosuid".to_owned(),
        ],
        keep: place.keep,
        entries,
        ..Storage::default()
    };
    let placed = PlacedBind {
        position: bind.position,
        // Joined with nothing it would end with a slash.
        source: guest_path(&storage).components().chain(part.components()).collect(),
        options: HostOptions::default(),
        over: Vec::new(),
    };
    Ok(Copied {
        storage,
        placed,
        root: place.root,
    })
}

/// Whether all of them fit into one message.
///
/// # Errors
/// They do not.
pub(super) fn check_sum<'a>(storages: impl Iterator<Item = &'a Storage>) -> Result<(), VolumeError> {
    let bytes: usize = storages
        .flat_map(|storage| &storage.entries)
        .map(|entry| entry.content.len() + entry.path.len() + 32)
        .sum();
    if bytes <= MOST_BYTES {
        return Ok(());
    }
    Err(VolumeError::Copies {
        key: KEY,
        bytes,
        most: MOST_BYTES,
    })
}

/// Everything in a directory; none if it is too much. Of one that the kubelet updates only what is current: what it is still
/// writing is left out. Blocks.
pub(super) fn read(
    host: &HostNamespace,
    root: &Path,
    part: &Path,
) -> Result<Option<Vec<StorageEntry>>, HostNamespaceError> {
    /// An update may take away what is being read. The next one comes a minute later (the kubelet's syncFrequency).
    const ATTEMPTS: u32 = 3;
    let of = EmptyDir {
        root: root.to_owned(),
        part: part.to_owned(),
    };
    let mut attempt = 1;
    loop {
        match entries::read(host, &of) {
            Ok(read) => return Ok(read.map(current)),
            Err(HostNamespaceError::Open { source, .. })
                if source.kind() == io::ErrorKind::NotFound && attempt < ATTEMPTS =>
            {
                attempt += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Leaves out what the kubelet's writer has beside the current directory.
fn current(mut entries: Vec<StorageEntry>) -> Vec<StorageEntry> {
    let link = entries.iter().find(|entry| entry.path == CURRENT.as_bytes());
    let Some(target) = link.map(|link| link.content.clone()) else {
        return entries;
    };
    entries.retain(|entry| {
        let top = entry.path.split(|byte| *byte == b'/').next().unwrap_or_default();
        !top.starts_with(b"..") || top == CURRENT.as_bytes() || top == target
    });
    entries
}

/// Whether the kubelet updates what is in it.
pub(super) fn is_updated(storage: &Storage) -> bool {
    storage.entries.iter().any(|entry| entry.path == CURRENT.as_bytes())
}

enum Kind {
    Directory,
    File,
    Other(&'static str),
}

fn kind(host: &HostNamespace, path: &Path) -> Result<Kind, HostNamespaceError> {
    use std::os::unix::fs::FileTypeExt as _;
    let file = path.to_owned();
    let metadata = host.run(move || file.metadata())?;
    let kind = metadata.map_err(|source| HostNamespaceError::Open {
        path: path.to_owned(),
        source,
    })?;
    let kind = kind.file_type();
    Ok(match () {
        () if kind.is_dir() => Kind::Directory,
        () if kind.is_file() => Kind::File,
        () if kind.is_socket() => Kind::Other("a socket, which share_host_sockets does not list"),
        () if kind.is_fifo() => Kind::Other("a FIFO, which has to be shared"),
        () => Kind::Other("a device, which the guest does not have"),
    })
}

/// An emptyDir is copied whole, whichever part of it is asked for, so that all containers of the pod have the same one.
fn locate(host: &HostNamespace, found: &HostTree) -> Result<Place, HostNamespaceError> {
    let place = EmptyDirPlace::find(host, found)?.map(|place| Place {
        root: place.root,
        part: place.part,
        identity: place.identity,
        keep: true,
    });
    Ok(place.unwrap_or_else(|| Place {
        root: found.path.clone(),
        part: PathBuf::new(),
        identity: found.path.as_os_str().as_bytes().to_owned(),
        keep: false,
    }))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn bind(source: &Path) -> BindSource {
        BindSource::read_only(source, "/in/container")
    }

    fn host() -> HostNamespace {
        HostNamespace::start_thread().unwrap()
    }

    fn names(storage: &Storage) -> Vec<String> {
        let paths = storage.entries.iter().map(|entry| entry.path.clone());
        let mut names: Vec<String> = paths.map(|path| String::from_utf8(path).unwrap()).collect();
        names.sort();
        names
    }

    /// As the kubelet's atomic writer leaves it.
    fn config_map(directory: &Path) {
        fs::create_dir(directory.join("..2026_1")).unwrap();
        fs::write(directory.join("..2026_1/key"), "value").unwrap();
        symlink("..2026_1", directory.join("..data")).unwrap();
        symlink("..data/key", directory.join("key")).unwrap();
    }

    #[test]
    fn a_directory_and_a_file_are_file_systems_of_the_guest_with_a_copy() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        fs::create_dir(root.join("sub")).unwrap();
        fs::write(root.join("sub/file"), "content").unwrap();
        let copied = copy(&host(), &bind(&root)).unwrap();
        assert_eq!(names(&copied.storage), ["sub", "sub/file"]);
        assert_eq!(copied.placed.position, 3);
        let place = Path::new(protocol::STORAGE_DIRECTORY).join(&copied.storage.name);
        assert_eq!(copied.placed.source, place);
        // Whoever asks for the same directory has the same file system.
        symlink(&root, root.join("link")).unwrap();
        let again = copy(&host(), &bind(&root.join("link"))).unwrap();
        assert_eq!(again.storage.name, copied.storage.name);
        let file = copy(&host(), &bind(&root.join("sub/file"))).unwrap();
        assert_eq!(file.storage.entries[0].content, b"content");
        assert!(file.placed.source.ends_with(FILE));
        assert_ne!(file.storage.name, copied.storage.name);
    }

    #[test]
    fn of_a_config_map_what_is_current_is_copied() {
        let directory = tempfile::tempdir().unwrap();
        config_map(directory.path());
        fs::create_dir(directory.path().join("..2026_2")).unwrap();
        fs::write(directory.path().join("..2026_2/key"), "half").unwrap();
        let copied = copy(&host(), &bind(directory.path())).unwrap();
        assert_eq!(names(&copied.storage), ["..2026_1", "..2026_1/key", "..data", "key"]);
        assert!(is_updated(&copied.storage));
    }

    #[test]
    fn too_much_and_what_is_no_file_are_refused_by_the_key() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let refused = |source: &Path| copy(&host(), &bind(source)).unwrap_err().to_string();
        fs::write(root.join("large"), vec![0; 2 << 20]).unwrap();
        for source in [root.to_owned(), root.join("large")] {
            let said = refused(&source);
            assert!(
                said.contains("/in/container") && said.contains("shared_fs") && said.contains("1 MiB"),
                "{said}"
            );
        }
        let socket = root.join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert!(refused(&socket).contains("a socket"));
        assert!(refused(Path::new("/dev/null")).contains("a device"));
        let storages = vec![
            Storage {
                entries: vec![StorageEntry {
                    content: vec![0; 1 << 20],
                    ..StorageEntry::default()
                }],
                ..Storage::default()
            };
            3
        ];
        check_sum(storages[..2].iter()).unwrap();
        let said = check_sum(storages.iter()).unwrap_err().to_string();
        assert!(said.contains("shared_fs"), "{said}");
    }
}
