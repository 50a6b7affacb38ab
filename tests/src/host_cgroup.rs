//! The memory that a sandbox has on the host: its cgroup, of either version.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{Error, Result};

/// The files of a version of cgroups: what is used, and what may be.
const VERSIONS: [(&str, &str); 2] = [
    ("memory.usage_in_bytes", "memory.limit_in_bytes"),
    ("memory.current", "memory.max"),
];

/// Where a sandbox's memory is counted on the host.
#[derive(Debug)]
pub struct HostMemory {
    used: PathBuf,
    limit: PathBuf,
}

impl HostMemory {
    /// That of the one among `cgroups` that is named after the sandbox `id` and counts memory.
    pub(crate) fn find(cgroups: &[PathBuf], id: &str) -> Result<Self> {
        let name = format!("kata_{id}");
        let own = |path: &&PathBuf| path.file_name().is_some_and(|file| *file == *name);
        cgroups
            .iter()
            .filter(own)
            .find_map(|cgroup| Self::of(cgroup))
            .ok_or_else(|| Error::unexpected(format!("no cgroup {name} counts memory: {cgroups:?}")))
    }

    fn of(cgroup: &Path) -> Option<Self> {
        VERSIONS.iter().find_map(|(used, limit)| {
            let (used, limit) = (cgroup.join(used), cgroup.join(limit));
            (used.exists() && limit.exists()).then_some(Self { used, limit })
        })
    }

    /// Limits it to what it has now and `bytes` more.
    pub fn leave(&self, bytes: u64) -> Result<()> {
        let used = fs::read_to_string(&self.used).map_err(Error::io(format!("reading {}", self.used.display())))?;
        let used: u64 = used
            .trim()
            .parse()
            .map_err(|error| Error::unexpected(format!("{}: {error}", self.used.display())))?;
        fs::write(&self.limit, (used + bytes).to_string())
            .map_err(Error::io(format!("writing {}", self.limit.display())))
    }
}
