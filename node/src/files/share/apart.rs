//! Mounts of the host below a source whose attributes are not recursive (`rbind` with `ro`, without `rro`): they keep their own attributes,
//! as with runc. In the guest everything inside a mount has that mount's attributes, so each of them is bound separately.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::host::mountinfo::MountLine;
use crate::spec::guest_spec::BindSource;

/// File systems that stay as the source is: those in which a kernel shows itself or its devices, which are of no use in a guest, and those
/// that a look changes.
const NEVER: [&str; 15] = [
    "proc",
    "sysfs",
    "devtmpfs",
    "devpts",
    "mqueue",
    "cgroup",
    "cgroup2",
    "debugfs",
    "tracefs",
    "securityfs",
    "configfs",
    "efivarfs",
    "pstore",
    "bpf",
    "autofs",
];

/// How many of them: a node has thousands of mounts below its root. Those beyond are as the source is.
const MOST: usize = 64;

/// The mounts below a source, `inside` it by their places, that are bound by themselves.
pub(super) fn sources(bind: &BindSource, inside: &BTreeMap<PathBuf, &MountLine>) -> Vec<(PathBuf, BindSource)> {
    if !bind.apart {
        return Vec::new();
    }
    let never: Vec<_> = inside
        .iter()
        .filter(|(_, line)| NEVER.contains(&line.kind.as_str()))
        .collect();
    let below_never = |at: &PathBuf| never.iter().any(|(above, _)| at.starts_with(above));
    let mut apart: Vec<_> = inside
        .iter()
        .filter(|(at, _)| !below_never(at))
        .map(|(at, line)| {
            let own = BindSource {
                source: line.mountpoint.clone(),
                destination: bind.destination.join(at),
                read_only: line.read_only || bind.read_only_below,
                recursive: false,
                apart: false,
                id_map: bind.id_map.clone().filter(|map| map.recursive),
                ..bind.clone()
            };
            (at.clone(), own)
        })
        .collect();
    if apart.len() > MOST {
        let (source, count) = (bind.source.display(), apart.len());
        tracing::warn!(%source, count, most = MOST, "too many mounts below a source to have attributes of their own: the rest has the source's");
        apart.truncate(MOST);
    }
    apart
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn line(point: &str, kind: &str, read_only: bool) -> MountLine {
        MountLine {
            id: 1,
            parent: 0,
            device: (0, 1),
            root: "/".into(),
            mountpoint: point.into(),
            read_only,
            receives: false,
            shared: false,
            unbindable: false,
            kind: kind.to_owned(),
            super_options: String::new(),
        }
    }

    #[test]
    fn only_ordinary_mounts_are_apart_and_what_the_host_has_read_only_stays_so() {
        let bind = BindSource {
            receives: true,
            apart: true,
            ..BindSource::read_only(Path::new("/"), "/host")
        };
        let lines = [
            line("/proc", "proc", false),
            line("/proc/sys/fs/binfmt_misc", "binfmt_misc", false),
            line("/run", "tmpfs", false),
            line("/usr", "ext4", true),
        ];
        let inside = lines
            .iter()
            .map(|line| (line.mountpoint.strip_prefix("/").unwrap().to_owned(), line))
            .collect();
        let found: Vec<_> = sources(&bind, &inside)
            .into_iter()
            .map(|(at, own)| {
                (
                    at.display().to_string(),
                    own.destination.display().to_string(),
                    own.read_only,
                    own.recursive,
                )
            })
            .collect();
        let wanted = [("run", "/host/run", false, false), ("usr", "/host/usr", true, false)];
        assert_eq!(
            found,
            wanted.map(|(at, on, read_only, recursive)| (at.to_owned(), on.to_owned(), read_only, recursive))
        );
        let recursive = BindSource { apart: false, ..bind };
        assert!(sources(&recursive, &inside).is_empty());
    }
}
