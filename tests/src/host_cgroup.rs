//! The memory that a sandbox, or a pod, has on the host: its cgroup, of either version.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{Error, Result};

/// The files of a version of cgroups: what is used, what may be, and where it is told how often the kernel has killed.
const VERSIONS: [[&str; 3]; 2] = [
    ["memory.usage_in_bytes", "memory.limit_in_bytes", "memory.oom_control"],
    ["memory.current", "memory.max", "memory.events"],
];
/// Where the hierarchy that counts memory is: v1's, or v2 alone.
const ROOTS: [&str; 2] = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"];

/// Where a sandbox's memory is counted on the host.
#[derive(Debug)]
pub struct HostMemory {
    used: PathBuf,
    limit: PathBuf,
    kills: PathBuf,
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

    /// Makes a cgroup of this path, as the kubelet does for a pod.
    pub fn make(path: &str) -> Result<Self> {
        let root = ROOTS.iter().map(Path::new).find(|root| root.exists());
        let mut directory = root.ok_or_else(|| Error::unexpected("no cgroups"))?.to_owned();
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let control = directory.join("cgroup.subtree_control");
            if control.exists() {
                // Whoever makes a cgroup of v2 hands the controllers down to it.
                fs::write(&control, "+memory").map_err(Error::io(format!("writing {}", control.display())))?;
            }
            directory.push(name);
            fs::create_dir_all(&directory).map_err(Error::io(format!("making {}", directory.display())))?;
        }
        Self::of(&directory).ok_or_else(|| Error::unexpected(format!("{} counts no memory", directory.display())))
    }

    fn of(cgroup: &Path) -> Option<Self> {
        VERSIONS.iter().find_map(|[used, limit, kills]| {
            let (used, limit, kills) = (cgroup.join(used), cgroup.join(limit), cgroup.join(kills));
            (used.exists() && limit.exists()).then_some(Self { used, limit, kills })
        })
    }

    /// Limits it to what it has now and `bytes` more.
    pub fn leave(&self, bytes: u64) -> Result<()> {
        self.allow(self.used()? + bytes)
    }

    /// Bytes that it has.
    pub fn used(&self) -> Result<u64> {
        let used = read(&self.used)?;
        let parsed = used.trim().parse();
        parsed.map_err(|error| Error::unexpected(format!("{}: {error}", self.used.display())))
    }

    /// Limits it.
    pub fn allow(&self, bytes: u64) -> Result<()> {
        fs::write(&self.limit, bytes.to_string()).map_err(Error::io(format!("writing {}", self.limit.display())))
    }

    /// Bytes that it is limited to; none if it is not. v1 has the largest number of pages for that.
    pub fn limit(&self) -> Result<Option<u64>> {
        let text = read(&self.limit)?;
        Ok(text.trim().parse().ok().filter(|bytes| *bytes < 1 << 60))
    }

    /// How many processes the kernel has killed in it for want of memory.
    pub fn oom_kills(&self) -> Result<u64> {
        let text = read(&self.kills)?;
        let kills = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        kills
            .and_then(|kills| kills.trim().parse().ok())
            .ok_or_else(|| Error::unexpected(format!("{}: {text}", self.kills.display())))
    }
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(Error::io(format!("reading {}", path.display())))
}
