//! Where an emptyDir that is not in memory is on the host.

use std::ffi::OsStr;
use std::path::{Component, PathBuf};

use super::source::EMPTY_DIR;
use crate::host::host_ns::{HostNamespace, HostNamespaceError, HostTree};
use crate::host::mountinfo::{self, MountLine};

/// A part of an emptyDir.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EmptyDirPlace {
    pub(super) root: PathBuf,
    /// The part, without leading slash; empty for all of it.
    pub(super) part: PathBuf,
    /// What makes two of them the same: its file system, and its place there.
    pub(super) identity: Vec<u8>,
}

impl EmptyDirPlace {
    /// The emptyDir that a path is in, by whatever mount: for a subPath the kubelet makes one elsewhere. None if it is in none. Blocks.
    pub(super) fn find(host: &HostNamespace, found: &HostTree) -> Result<Option<Self>, HostNamespaceError> {
        let mounts = host.run(mountinfo::read)?.map_err(|source| HostNamespaceError::Open {
            path: "/proc/self/mountinfo".into(),
            source,
        })?;
        Ok(locate(&mounts, found))
    }
}

fn locate(mounts: &[MountLine], found: &HostTree) -> Option<EmptyDirPlace> {
    let own = mounts.iter().find(|line| line.id == found.mount)?;
    // In its file system.
    let whole = own.root.join(found.path.strip_prefix(&own.mountpoint).ok()?);
    let components: Vec<Component<'_>> = whole.components().collect();
    let named = Component::Normal(OsStr::new(EMPTY_DIR));
    let kind = components.iter().position(|part| *part == named)?;
    // Its name follows.
    let volume: PathBuf = components.get(..kind + 2)?.iter().collect();
    let root = mounts.iter().find_map(|line| {
        let inside = volume.strip_prefix(&line.root).ok()?;
        (line.device == own.device).then(|| line.mountpoint.iter().chain(inside).collect())
    })?;
    let (major, minor) = own.device;
    let identity = format!("{major}:{minor} {}", volume.display());
    Some(EmptyDirPlace {
        root,
        part: components[kind + 2..].iter().collect(),
        identity: identity.into_bytes(),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn an_empty_dir_is_one_whichever_part_of_it_is_asked_for() {
        let line = |id, root: &str, mountpoint: &str| MountLine {
            id,
            parent: 0,
            device: (8, 1),
            root: root.into(),
            mountpoint: mountpoint.into(),
            read_only: false,
            receives: false,
            shared: false,
            unbindable: false,
            kind: "ext4".to_owned(),
            super_options: String::new(),
        };
        let volume = "/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/v";
        let mounts = [
            line(1, "/", "/var"),
            line(
                2,
                &format!("{volume}/sub"),
                "/var/lib/kubelet/pods/u/volume-subpaths/v/c/0",
            ),
        ];
        let found = |mount, path: &str| HostTree {
            tree: fs::File::open("/").unwrap().into(),
            mount,
            path: path.into(),
        };
        let all = locate(&mounts, &found(1, &format!("/var{volume}"))).unwrap();
        assert_eq!(
            (all.root, all.part),
            (PathBuf::from(format!("/var{volume}")), PathBuf::new())
        );
        let part = locate(&mounts, &found(2, "/var/lib/kubelet/pods/u/volume-subpaths/v/c/0/file")).unwrap();
        assert_eq!(part.identity, all.identity);
        assert_eq!(part.part, Path::new("sub/file"));
        assert_eq!(part.root, Path::new(&format!("/var{volume}")));
        assert_eq!(locate(&mounts, &found(1, "/var/lib/other")), None);
    }
}
