//! The guest's cgroup v2 tree: `/agent` for the agent itself, `/containers/<id>` for each container. One file per
//! controller converts the specification's limits to values of cgroup files. This module reads and writes the files.
//! Rules: Documentation/admin-guide/cgroup-v2.rst of the kernel, config-linux.md of the OCI runtime specification.

mod cpu;
mod devices;
mod error;
mod flat;
mod hugetlb;
mod io;
mod memory;
mod paths;
mod pids;
mod read_ahead;
mod reserve;
mod setting;
mod stats;
mod tree;
mod unified;
mod watch;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxResources};
use rustix::fs::{Mode, OFlags, openat};
use rustix::process::Pid;
use tokio::time::timeout;

use crate::common::blocking;
use crate::common::ids::ContainerId;
use crate::common::timeouts::scaled;
pub(crate) use error::Error;
use error::{PATIENCE, failed};
pub(crate) use flat::flat;
use paths::{AGENT, CONTAINERS, ROOT};
pub(crate) use reserve::{
    Usage, grows_to, keep as renew_reserve, limits_changed, may_grow, memory_events, memory_stalls,
    prepare_to_give_back, watch as watch_reserve,
};
use setting::Setting;
pub(crate) use watch::{Stalls, Watch};

/// How many cgroups a container with a writable cgroup may make below its own, and how deep (docs/limits.md). Unified keys may
/// say otherwise.
const MOST_BELOW: &str = "4096";
const DEEPEST: &str = "32";

/// What the files of a cgroup say now that a specification may leave half of as it is.
#[derive(Debug)]
struct Current {
    cpu_max: String,
    memory_max: String,
}

impl Current {
    /// A cgroup without limits, and what is read where the kernel lacks a controller.
    fn unlimited() -> Self {
        Self {
            cpu_max: cpu::UNLIMITED.to_owned(),
            memory_max: "max".to_owned(),
        }
    }

    fn of(cgroup: &Cgroup) -> Self {
        let none = Self::unlimited();
        let read = |file: &str, none| std::fs::read_to_string(cgroup.file(file)).unwrap_or(none);
        Self {
            cpu_max: read("cpu.max", none.cpu_max),
            memory_max: read("memory.max", none.memory_max),
        }
    }
}

/// Everything that the specification asks for, in the order in which it is written.
fn settings(resources: &LinuxResources, current: &Current) -> Result<Vec<Setting>, Error> {
    let mut all = Vec::new();
    if let Some(cpu) = resources.cpu() {
        all.extend(cpu::settings(cpu, &current.cpu_max));
    }
    if let Some(memory) = resources.memory() {
        all.extend(memory::settings(memory, &current.memory_max)?);
    }
    if let Some(pids) = resources.pids() {
        all.extend(pids::settings(*pids));
    }
    if let Some(block) = resources.block_io() {
        all.extend(io::settings(block));
    }
    for page in resources.hugepage_limits().iter().flatten() {
        all.extend(hugetlb::settings(page)?);
    }
    if let Some(unified) = resources.unified() {
        all.extend(unified::settings(unified)?);
    }
    Ok(all)
}

/// Moves this process into a leaf of its own, and passes every controller on to the containers.
///
/// # Errors
/// The tree is not writable.
pub(crate) fn lay_out() -> Result<(), Error> {
    for directory in [AGENT, CONTAINERS] {
        std::fs::create_dir_all(directory).map_err(failed("create", directory))?;
    }
    let procs = Path::new(AGENT).join("cgroup.procs");
    std::fs::write(&procs, "0").map_err(failed("join", &procs))?;
    for directory in [ROOT, CONTAINERS] {
        let available = Path::new(directory).join("cgroup.controllers");
        let controllers = std::fs::read_to_string(&available).map_err(failed("read", &available))?;
        let enable: Vec<String> = controllers.split_whitespace().map(|name| format!("+{name}")).collect();
        let control = Path::new(directory).join("cgroup.subtree_control");
        std::fs::write(&control, enable.join(" ")).map_err(failed("write", &control))?;
    }
    reserve::keep()
}

/// `cgroup.procs` of the agent, open for writing.
///
/// # Errors
/// It cannot be opened.
pub(crate) fn agent_procs() -> Result<OwnedFd, Error> {
    open_procs(Path::new(AGENT))
}

fn open_procs(directory: &Path) -> Result<OwnedFd, Error> {
    let path = directory.join("cgroup.procs");
    let file = File::options().write(true).open(&path).map_err(failed("open", path))?;
    Ok(file.into())
}

#[derive(Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes it, without limits but those on what may be made below it.
    ///
    /// # Errors
    /// It exists, or the kernel has no room for it.
    pub(crate) fn create(id: &ContainerId) -> Result<Self, Error> {
        let path = Path::new(CONTAINERS).join(id.as_str());
        std::fs::create_dir(&path).map_err(failed("create", &path))?;
        let cgroup = Self { path };
        for (file, most) in [("cgroup.max.descendants", MOST_BELOW), ("cgroup.max.depth", DEEPEST)] {
            let path = cgroup.file(file);
            if let Err(error) = std::fs::write(&path, most) {
                // What failed first is what is told.
                let _ = std::fs::remove_dir(&cgroup.path);
                return Err(failed("write", path)(error));
            }
        }
        Ok(cgroup)
    }

    /// `cgroup.procs`, open for writing.
    ///
    /// # Errors
    /// It cannot be opened.
    pub(crate) fn procs(&self) -> Result<OwnedFd, Error> {
        open_procs(&self.path)
    }

    /// The path of one of its files.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Sets what is given and leaves the rest. May block while the kernel reclaims memory.
    ///
    /// # Errors
    /// The first value that is refused; those before it are as they were again.
    pub(crate) fn apply(&self, resources: &LinuxResources) -> Result<(), Error> {
        reserve::keep()?;
        if let Some(memory) = resources.memory() {
            memory::check(memory, &self.file("memory.current"))?;
        }
        let settings = settings(resources, &Current::of(self))?;
        let written = setting::write_all(&self.path, settings);
        // Also where one was refused: those who look at the limits may have seen what was written meanwhile.
        read_ahead::adapt();
        reserve::changed();
        written
    }

    /// Allows the devices that the rules and every container's defaults allow, and no others, from now on.
    ///
    /// # Errors
    /// A rule is none, or the kernel does not take them.
    pub(crate) fn restrict_devices(&self, rules: &[LinuxDeviceCgroup]) -> Result<(), Error> {
        devices::restrict(&self.path, rules)
    }

    /// Kills everything in it and below (cgroup.kill).
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn kill(&self) -> Result<(), Error> {
        let path = self.file("cgroup.kill");
        std::fs::write(&path, "1").map_err(failed("write", path))
    }

    /// Freezes or thaws it, and waits until the kernel says that it is so.
    ///
    /// # Errors
    /// A process does not stop in time; the cgroup is thawed again.
    pub(crate) async fn freeze(&self, frozen: bool) -> Result<(), Error> {
        let path = self.file("cgroup.freeze");
        let write = |on: bool| std::fs::write(&path, if on { "1" } else { "0" }).map_err(failed("write", &path));
        let (value, what) = if frozen { (1, "frozen") } else { (0, "thawed") };
        let watch = self.events()?;
        write(frozen)?;
        let result = self.reached(&watch, "frozen", value, what).await;
        if result.is_err() && frozen {
            write(false)?;
        }
        result
    }

    /// Lets its processes go on, and does not wait for them.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn thaw(&self) -> Result<(), Error> {
        let path = self.file("cgroup.freeze");
        std::fs::write(&path, "0").map_err(failed("write", &path))
    }

    fn events(&self) -> Result<Watch, Error> {
        let path = self.file("cgroup.events");
        Watch::new(&path).map_err(failed("watch", path))
    }

    /// Changes of memory.events.
    ///
    /// # Errors
    /// The kernel has no memory controller.
    pub(crate) fn oom_changes(&self) -> Result<Watch, Error> {
        let path = self.file("memory.events");
        Watch::new(&path).map_err(failed("watch", path))
    }

    /// Waits until `cgroup.events` has `value` for `key`. The watch was made before the change was asked for.
    async fn reached(&self, watch: &Watch, key: &str, value: u64, what: &'static str) -> Result<(), Error> {
        let path = self.file("cgroup.events");
        let wait = async {
            loop {
                let text = std::fs::read_to_string(&path).map_err(failed("read", &path))?;
                if flat(&text).any(|pair| pair == (key, value)) {
                    return Ok(());
                }
                watch.changed().await.map_err(failed("watch", &path))?;
            }
        };
        timeout(scaled(PATIENCE), wait).await.unwrap_or_else(|_| {
            Err(Error::Slow {
                what,
                path: self.path.clone(),
            })
        })
    }

    /// Kills what is left and removes it with everything the container made below it. Done if it is not there.
    ///
    /// # Errors
    /// A process cannot be killed in time.
    pub(crate) async fn remove(&self) -> Result<(), Error> {
        if !self.path.exists() {
            return Ok(());
        }
        let watch = self.events()?;
        self.kill()?;
        self.reached(&watch, "populated", 0, "killed").await?;
        let path = self.path.clone();
        let removing = blocking::run(move || {
            tree::remove(&path)?;
            read_ahead::adapt();
            Ok(())
        });
        removing.await.flatten().map_err(failed("remove", &self.path))
    }

    /// The processes in it and below.
    ///
    /// # Errors
    /// It is gone.
    pub(crate) fn pids(&self) -> Result<Vec<Pid>, Error> {
        let mut pids = Vec::new();
        let read = |directory: &OwnedFd| {
            let procs = openat(
                directory,
                "cgroup.procs",
                OFlags::RDONLY | OFlags::CLOEXEC,
                Mode::empty(),
            )?;
            match std::io::read_to_string(File::from(procs)) {
                Ok(text) => pids.extend(text.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?))),
                // A threaded one: its parent lists its processes.
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
                Err(error) => return Err(error),
            }
            Ok(())
        };
        tree::each(&self.path, read).map_err(failed("list the processes of", &self.path))?;
        Ok(pids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_specification_is_written_controller_by_controller() {
        let resources: LinuxResources = serde_json::from_str(
            r#"{"memory":{"limit":1048576},"cpu":{"shares":1024,"quota":50000,"period":100000},
                "pids":{"limit":10},"unified":{"memory.high":"900000"},
                "hugepageLimits":[{"pageSize":"2MB","limit":0}]}"#,
        )
        .unwrap();
        let lines: Vec<String> = settings(&resources, &Current::unlimited())
            .unwrap()
            .into_iter()
            .map(|set| format!("{} {}", set.file, set.value))
            .collect();
        assert_eq!(
            lines,
            [
                "cpu.weight 100",
                "cpu.max 50000 100000",
                "memory.max 1048576",
                "pids.max 10",
                "hugetlb.2MB.max 0",
                "hugetlb.2MB.rsvd.max 0",
                "memory.high 900000"
            ]
        );
    }
}
