//! The files that the host has in a volume which is a tmpfs of the guest: what the kubelet has put into an emptyDir in memory, for
//! example the directory of a subPath, or whatever is not shared with the guest. The tmpfs starts with a copy of them.

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use protocol::agent::StorageEntry;

use super::source::EmptyDir;
use crate::host::host_ns::{HostNamespace, HostNamespaceError};
use crate::host::openat_beneath;

/// Most entries, and bytes of all files, that are copied: it is for what a kubelet prepares, not for data.
const MOST_ENTRIES: usize = 512;
const MOST_BYTES: u64 = 1 << 20;

/// The bounds, as error messages give them.
pub(super) const BOUNDS: &str = "512 files and directories, 1 MiB";

/// Everything in it, parents first; none if it is too much. Blocks.
pub(super) fn read(host: &HostNamespace, of: &EmptyDir) -> Result<Option<Vec<StorageEntry>>, HostNamespaceError> {
    let (root, part) = (of.root.clone(), of.part.clone());
    let read = host.run(move || {
        let mut copy = Copy {
            entries: Vec::new(),
            bytes: 0,
        };
        let whole = copy.directory(&root, Path::new(""), &part)?;
        Ok(whole.then_some(copy.entries))
    })?;
    read.map_err(|source: io::Error| HostNamespaceError::Open {
        path: of.root.clone(),
        source,
    })
}

/// A file alone, under another name; none if it is too much. Blocks.
pub(super) fn file(host: &HostNamespace, path: &Path, name: &str) -> Result<Option<StorageEntry>, HostNamespaceError> {
    let file = path.to_owned();
    let read = host.run(move || -> io::Result<_> {
        let metadata = file.metadata()?;
        if metadata.len() > MOST_BYTES {
            return Ok(None);
        }
        let mut content = Vec::new();
        fs::File::open(&file)?.take(MOST_BYTES + 1).read_to_end(&mut content)?;
        Ok((content.len() as u64 <= MOST_BYTES).then_some((metadata, content)))
    })?;
    let read = read.map_err(|source| HostNamespaceError::Open {
        path: path.to_owned(),
        source,
    })?;
    Ok(read.map(|(metadata, content)| StorageEntry {
        path: name.as_bytes().to_owned(),
        mode: metadata.mode(),
        uid: metadata.uid(),
        gid: metadata.gid(),
        content,
        required: true,
        ..StorageEntry::default()
    }))
}

struct Copy {
    entries: Vec<StorageEntry>,
    bytes: u64,
}

impl Copy {
    /// Returns false if the tree exceeds the bounds.
    fn directory(&mut self, root: &Path, directory: &Path, required: &Path) -> io::Result<bool> {
        let opened = openat_beneath::open(root, directory)?;
        for entry in fs::read_dir(openat_beneath::name_of(&opened))? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            let path = directory.join(entry.file_name());
            let kind = metadata.file_type();
            let content = if kind.is_symlink() {
                fs::read_link(entry.path())?.as_os_str().as_bytes().to_owned()
            } else if kind.is_file() {
                self.bytes += metadata.len();
                if self.bytes > MOST_BYTES {
                    return Ok(false);
                }
                fs::read(entry.path())?
            } else if kind.is_dir() {
                Vec::new()
            } else {
                // Nothing of the host's listens to a socket of the guest's.
                continue;
            };
            if self.entries.len() >= MOST_ENTRIES {
                return Ok(false);
            }
            self.entries.push(StorageEntry {
                path: path.as_os_str().as_bytes().to_owned(),
                mode: metadata.mode(),
                uid: metadata.uid(),
                gid: metadata.gid(),
                content,
                required: required.starts_with(&path),
                ..StorageEntry::default()
            });
            if kind.is_dir() && !self.directory(root, &path, required)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
