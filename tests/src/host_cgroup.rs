//! Cgroups of the host: the memory that a sandbox, or a pod, has there, of either version, and slices for sandboxes.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{Error, Result, leftovers, locate};

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

    /// In bytes.
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

/// A slice in a slice, as the kubelet has for its pods where systemd is the cgroup driver. Where systemd is not the first
/// process, whoever makes a sandbox in it makes its directories.
#[derive(Debug)]
pub struct Slice {
    outer: String,
    inner: String,
    systemd: bool,
}

impl Slice {
    /// Has systemd, if it runs this machine, make it. Fails if it does not and `TATAMI_TEST_INIT` says so.
    pub fn new(tag: &str) -> Result<Self> {
        // sd_booted(3)
        let systemd = Path::new("/run/systemd/system").is_dir();
        if !systemd && env::var("TATAMI_TEST_INIT").as_deref() == Ok("systemd") {
            return Err(Error::unexpected("systemd is not the first process of this machine"));
        }
        let slice = Self {
            outer: format!("{tag}.slice"),
            inner: format!("{tag}-pod.slice"),
            systemd,
        };
        slice.systemctl(&["start", &slice.inner])?;
        Ok(slice)
    }

    /// Its name, as a specification's cgroupsPath begins.
    pub fn name(&self) -> &str {
        &self.inner
    }

    /// Its path in a hierarchy.
    pub fn path(&self) -> String {
        format!("/{}/{}", self.outer, self.inner)
    }

    /// Has systemd look at its cgroups anew.
    pub fn reload(&self) -> Result<()> {
        self.systemctl(&["daemon-reload"])
    }

    /// Removes it. systemd does not remove what it has not made, so what is left in it is an error.
    pub fn remove(self) -> Result<()> {
        self.systemctl(&["stop", &self.inner])?;
        self.systemctl(&["stop", &self.outer])?;
        let root = Path::new("/sys/fs/cgroup");
        // Itself a hierarchy, or the directory of several.
        let several = fs::read_dir(root).map_err(Error::io("reading /sys/fs/cgroup"))?;
        let roots = several.filter_map(|entry| Some(entry.ok()?.path()));
        for outer in roots.chain([root.to_owned()]).map(|root| root.join(&self.outer)) {
            for dir in [outer.join(&self.inner), outer] {
                if self.systemd && dir.exists() {
                    return Err(Error::unexpected(format!("systemd has left {}", dir.display())));
                }
                if dir.exists() {
                    fs::remove_dir(&dir).map_err(Error::io(format!("removing {}", dir.display())))?;
                }
            }
        }
        Ok(())
    }

    fn systemctl(&self, words: &[&str]) -> Result<()> {
        if !self.systemd {
            return Ok(());
        }
        let output = Command::new(locate::program("systemctl")?)
            .args(words)
            .output()
            .map_err(Error::io(format!("running systemctl {words:?}")))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(Error::unexpected(format!(
            "systemctl {words:?}: {}, {said}",
            output.status
        )))
    }
}

/// What the first of these files says that is in the one among `cgroups` that is named after the sandbox `id`.
pub(crate) fn own_file(cgroups: &[PathBuf], id: &str, files: &[&str]) -> Result<String> {
    let name = format!("kata_{id}");
    let own = |path: &&PathBuf| path.file_name().is_some_and(|file| *file == *name);
    let own: Vec<_> = cgroups.iter().filter(own).collect();
    let mut paths = own.iter().flat_map(|cgroup| files.iter().map(|file| cgroup.join(file)));
    let path = paths.find(|path| path.exists());
    let path = path.ok_or_else(|| Error::unexpected(format!("none of {files:?} in {own:?}")))?;
    Ok(read(&path)?.trim().to_owned())
}

/// What the first of these files says that is in a cgroup whose path has `id` in it: v1 and v2 have names of their own.
pub(crate) fn file(id: &str, files: &[&str]) -> Result<String> {
    let cgroups = leftovers::cgroups(id);
    let mut paths = cgroups
        .iter()
        .flat_map(|cgroup| files.iter().map(|file| cgroup.join(file)));
    let path = paths.find(|path| path.exists());
    let path = path.ok_or_else(|| Error::unexpected(format!("none of {files:?} in {cgroups:?}")))?;
    Ok(read(&path)?.trim().to_owned())
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(Error::io(format!("reading {}", path.display())))
}
