//! Writes limits into a sandbox's cgroup directories, of either version: the kernel's cgroup-v2.rst, and memory.rst,
//! sched-design, cpusets.rst and pids.rst of cgroup-v1. It does not decide the limits.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::limits::sizing::{HostLimits, NumberSet};

/// Why a limit is not in force.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what they are")]
pub enum LimitError {
    #[error("cannot write {value:?} into {}", path.display())]
    Write {
        path: PathBuf,
        value: String,
        #[source]
        source: io::Error,
    },
    /// What the parent has is not known.
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("no cgroup of the sandbox has the controller {controller}")]
    NoController { controller: &'static str },
    /// What is in use cannot be reclaimed: the limit would kill the VMM.
    #[error("{} has {used} bytes in use that cannot be reclaimed, more than {wanted}", path.display())]
    InUse {
        path: PathBuf,
        /// Memory in use, in bytes.
        used: u64,
        /// The limit that was to be set, in bytes.
        wanted: u64,
    },
}

/// A limit, as each version names and writes it.
struct Limit {
    controller: &'static str,
    v1: (&'static str, String),
    v2: (&'static str, String),
}

/// Puts those limits in force that are not. Each is tried; what failed is in the answer.
pub(super) fn apply(directories: &[PathBuf], limits: &HostLimits, in_force: &mut HostLimits) -> Vec<LimitError> {
    let mut failed = Vec::new();
    let mut keep = |result: Result<(), LimitError>| result.map_err(|error| failed.push(error)).is_ok();
    if limits.memory != in_force.memory && keep(memory(directories, limits.memory)) {
        in_force.memory = limits.memory;
    }
    if limits.shares != in_force.shares && keep(shares(directories, limits.shares)) {
        in_force.shares = limits.shares;
    }
    if limits.pids != in_force.pids && keep(pids(directories, limits.pids)) {
        in_force.pids = limits.pids;
    }
    for (file, set, in_force) in [
        ("cpuset.cpus", limits.cpus, &mut in_force.cpus),
        ("cpuset.mems", limits.mems, &mut in_force.mems),
    ] {
        if set != *in_force && keep(numbers(directories, file, set)) {
            *in_force = set;
        }
    }
    failed
}

/// Writes a set, or takes it away: then it is what the cgroup above has, as it is now. Neither version lets a cgroup with processes in
/// it have an empty set (`validate_change` in the kernel's cpuset.c: ENOSPC).
fn numbers(directories: &[PathBuf], file: &str, set: Option<NumberSet>) -> Result<(), LimitError> {
    let mut found = false;
    for directory in directories.iter().filter(|directory| directory.join(file).exists()) {
        found = true;
        let value = match set {
            Some(set) => set.to_string(),
            None => above(directory, file)?,
        };
        write_file(directory.join(file), &value)?;
    }
    let controller = "cpuset";
    if found {
        Ok(())
    } else {
        Err(LimitError::NoController { controller })
    }
}

/// v1's is never empty. v2's may be, where nobody has set it.
fn above(directory: &Path, file: &str) -> Result<String, LimitError> {
    let unified = directory.join("cgroup.controllers").exists();
    let effective = format!("{file}.effective");
    let path = directory
        .parent()
        .unwrap_or(directory)
        .join(if unified { &effective } else { file });
    fs::read_to_string(&path).map_err(|source| LimitError::Read { path, source })
}

fn write_file(path: PathBuf, value: &str) -> Result<(), LimitError> {
    fs::write(&path, value).map_err(|source| LimitError::Write {
        path,
        value: value.to_owned(),
        source,
    })
}

/// v1's, where nobody says.
const DEFAULT_SHARES: u64 = 1024;

fn shares(directories: &[PathBuf], shares: Option<u64>) -> Result<(), LimitError> {
    let shares = shares.unwrap_or(DEFAULT_SHARES);
    let limit = Limit {
        controller: "cpu",
        v1: ("cpu.shares", shares.to_string()),
        v2: ("cpu.weight", protocol::cpu_weight(shares).to_string()),
    };
    write(directories, &limit)
}

/// Of both versions (the kernel's pids.rst of cgroup-v1).
fn pids(directories: &[PathBuf], most: Option<u64>) -> Result<(), LimitError> {
    let value = most.map_or_else(|| "max".to_owned(), |most| most.to_string());
    let limit = Limit {
        controller: "pids",
        v1: ("pids.max", value.clone()),
        v2: ("pids.max", value),
    };
    write(directories, &limit)
}

fn memory(directories: &[PathBuf], bytes: Option<u64>) -> Result<(), LimitError> {
    if let Some(bytes) = bytes {
        for directory in directories
            .iter()
            .filter(|directory| directory.join("memory.max").exists())
        {
            // v2 kills for a limit that is below what is used; v1 refuses it.
            let used = unreclaimable(directory).unwrap_or(0);
            if used > bytes {
                return Err(LimitError::InUse {
                    path: directory.clone(),
                    used,
                    wanted: bytes,
                });
            }
        }
    }
    let value = |none: &str| bytes.map_or_else(|| none.to_owned(), |bytes| bytes.to_string());
    let limit = Limit {
        controller: "memory",
        v1: ("memory.limit_in_bytes", value("-1")),
        v2: ("memory.max", value("max")),
    };
    write(directories, &limit)
}

/// What a cgroup of v2 uses besides the cache of files.
fn unreclaimable(directory: &Path) -> Option<u64> {
    let current: u64 = fs::read_to_string(directory.join("memory.current"))
        .ok()?
        .trim()
        .parse()
        .ok()?;
    let stat = fs::read_to_string(directory.join("memory.stat")).ok()?;
    let of = |name: &str| -> u64 {
        let mut lines = stat.lines().filter_map(|line| line.split_once(' '));
        let value = lines.find_map(|(key, value)| (key == name).then(|| value.parse().ok())?);
        value.unwrap_or(0)
    };
    // A memfd's pages are counted as a file's, and are not on any disk.
    let cache = of("file")
        .saturating_sub(of("shmem"))
        .saturating_add(of("slab_reclaimable"));
    Some(current.saturating_sub(cache))
}

/// Writes it wherever its file is; on a hybrid host a controller is in one hierarchy only.
fn write(directories: &[PathBuf], limit: &Limit) -> Result<(), LimitError> {
    let mut found = false;
    let files = directories
        .iter()
        .flat_map(|directory| [&limit.v1, &limit.v2].map(|(file, value)| (directory.join(file), value)));
    for (path, value) in files.filter(|(path, _)| path.exists()) {
        found = true;
        write_file(path, value)?;
    }
    let controller = limit.controller;
    if found {
        Ok(())
    } else {
        Err(LimitError::NoController { controller })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Directories with files in them, as the hierarchies of a host would have them.
    fn tree(root: &Path, hierarchies: &[&[(&str, &str)]]) -> Vec<PathBuf> {
        let mut directories = Vec::new();
        for (number, files) in hierarchies.iter().enumerate() {
            let directory = root.join(number.to_string());
            fs::create_dir(&directory).unwrap();
            for (file, text) in *files {
                fs::write(directory.join(file), text).unwrap();
            }
            directories.push(directory);
        }
        directories
    }

    fn read(directory: &Path, file: &str) -> String {
        fs::read_to_string(directory.join(file)).unwrap()
    }

    fn all() -> HostLimits {
        HostLimits {
            memory: Some(500 * MIB),
            shares: Some(512),
            cpus: NumberSet::parse("0-1"),
            mems: NumberSet::parse("0"),
            pids: Some(150),
        }
    }

    const V1: [&[(&str, &str)]; 4] = [
        &[("memory.limit_in_bytes", "")],
        &[("cpu.shares", "")],
        &[("cpuset.cpus", ""), ("cpuset.mems", "")],
        &[("pids.max", "")],
    ];
    const V2: &[(&str, &str)] = &[
        ("cgroup.controllers", "cpuset cpu io memory pids"),
        ("memory.max", ""),
        ("memory.current", "314572800"),
        (
            "memory.stat",
            "anon 104857600\nfile 209715200\nshmem 104857600\nslab_reclaimable 0\n",
        ),
        ("cpu.weight", ""),
        ("cpuset.cpus", ""),
        ("cpuset.mems", ""),
        ("pids.max", ""),
    ];

    #[test]
    fn v1_has_each_limit_in_its_own_hierarchy() {
        let root = tempfile::tempdir().unwrap();
        let directories = tree(root.path(), &V1);
        assert!(apply(&directories, &all(), &mut HostLimits::default()).is_empty());
        assert_eq!(read(&directories[0], "memory.limit_in_bytes"), "524288000");
        assert_eq!(read(&directories[1], "cpu.shares"), "512");
        assert_eq!(read(&directories[2], "cpuset.cpus"), "0-1");
        assert_eq!(read(&directories[2], "cpuset.mems"), "0");
        assert_eq!(read(&directories[3], "pids.max"), "150");
        // All hierarchies of this test have one parent.
        fs::write(root.path().join("cpuset.cpus"), "0-7\n").unwrap();
        fs::write(root.path().join("cpuset.mems"), "0-1\n").unwrap();
        assert!(apply(&directories, &HostLimits::default(), &mut all()).is_empty());
        assert_eq!(read(&directories[0], "memory.limit_in_bytes"), "-1");
        assert_eq!(read(&directories[1], "cpu.shares"), "1024");
        assert_eq!(read(&directories[2], "cpuset.cpus"), "0-7\n");
        assert_eq!(read(&directories[2], "cpuset.mems"), "0-1\n");
        assert_eq!(read(&directories[3], "pids.max"), "max");
    }

    #[test]
    fn v2_has_them_in_one() {
        let root = tempfile::tempdir().unwrap();
        let directories = tree(root.path(), &[V2]);
        assert!(apply(&directories, &all(), &mut HostLimits::default()).is_empty());
        for (file, text) in [
            ("memory.max", "524288000"),
            ("cpu.weight", "59"),
            ("cpuset.cpus", "0-1"),
            ("cpuset.mems", "0"),
            ("pids.max", "150"),
        ] {
            assert_eq!(read(&directories[0], file), text);
        }
        fs::write(root.path().join("cpuset.cpus.effective"), "0-3\n").unwrap();
        fs::write(root.path().join("cpuset.mems.effective"), "0\n").unwrap();
        assert!(apply(&directories, &HostLimits::default(), &mut all()).is_empty());
        assert_eq!(read(&directories[0], "memory.max"), "max");
        assert_eq!(read(&directories[0], "cpu.weight"), "100");
        assert_eq!(read(&directories[0], "cpuset.cpus"), "0-3\n");
    }

    #[test]
    fn a_hybrid_host_has_them_where_the_controllers_are() {
        let root = tempfile::tempdir().unwrap();
        let unified: &[(&str, &str)] = &[("cgroup.procs", "")];
        let directories = tree(root.path(), &[unified, V1[0], V1[1], V1[2], V1[3]]);
        assert!(apply(&directories, &all(), &mut HostLimits::default()).is_empty());
        assert_eq!(read(&directories[1], "memory.limit_in_bytes"), "524288000");
        assert_eq!(fs::read_dir(&directories[0]).unwrap().count(), 1);
    }

    #[test]
    fn a_controller_that_is_nowhere_is_told() {
        let root = tempfile::tempdir().unwrap();
        let directories = tree(root.path(), &[V1[0]]);
        let mut in_force = HostLimits::default();
        let failed = apply(&directories, &all(), &mut in_force);
        let told: Vec<_> = failed.iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), 4, "{told:?}");
        assert!(
            told.iter().any(|error| error.ends_with("the controller cpuset")),
            "{told:?}"
        );
        // What could be limited is.
        assert_eq!(
            in_force,
            HostLimits {
                memory: all().memory,
                ..HostLimits::default()
            }
        );
        assert!(apply(&directories, &HostLimits::default(), &mut HostLimits::default()).is_empty());
    }

    #[test]
    fn v2_is_given_no_limit_that_would_kill() {
        let root = tempfile::tempdir().unwrap();
        let directories = tree(root.path(), &[V2]);
        // 300 MiB in use, of which 100 are a cache.
        let limits = |bytes| HostLimits {
            memory: Some(bytes),
            ..HostLimits::default()
        };
        let failed = apply(&directories, &limits(199 * MIB), &mut HostLimits::default());
        assert!(
            matches!(failed[..], [LimitError::InUse { used, .. }] if used == 200 * MIB),
            "{failed:?}"
        );
        assert_eq!(read(&directories[0], "memory.max"), "");
        assert!(apply(&directories, &limits(200 * MIB), &mut HostLimits::default()).is_empty());
    }
}
