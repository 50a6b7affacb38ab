//! What a node's containers are on the host: processes, memory, files, and what must be gone at the end.

use std::{path::PathBuf, time::Duration};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::Node;
use crate::{
    Error, Result,
    host_cgroup::{self, HostMemory},
    leftovers, wait,
};

/// How long what ends by itself after its container may take: the shim, the VMM, its helpers.
const ENDS: Duration = Duration::from_secs(20);

impl Node {
    /// The processes on the host that belong to a container or its sandbox.
    pub fn processes(&self, name: &str) -> Vec<leftovers::Process> {
        leftovers::processes(&self.id(name))
    }

    /// The memory that a container's sandbox has on the host.
    pub fn host_memory(&self, name: &str) -> Result<HostMemory> {
        HostMemory::find(&leftovers::cgroups(&self.tag), &self.id(name))
    }

    /// What the first of these files says that is in the cgroup of a container's sandbox on the host.
    pub fn host_limit(&self, name: &str, files: &[&str]) -> Result<String> {
        host_cgroup::own_file(&leftovers::cgroups(&self.tag), &self.id(name), files)
    }

    /// Where the snapshotter `blockfile` keeps its files.
    pub fn block_files(&self) -> PathBuf {
        self.dir().join("root/io.containerd.snapshotter.v1.blockfile/snapshots")
    }

    /// Kills, as a crash would, every process of a container's sandbox whose program's name has `program` in it.
    pub fn kill_process(&self, name: &str, program: &str) -> Result<()> {
        self.signal_process(name, program, Signal::SIGKILL)
    }

    /// Sends a signal to every process of a container's sandbox whose program's name has `program` in it.
    pub fn signal_process(&self, name: &str, program: &str, signal: Signal) -> Result<()> {
        let targets: Vec<_> = self
            .processes(name)
            .into_iter()
            .filter(|process| process.program().contains(program))
            .collect();
        if targets.is_empty() {
            return Err(Error::unexpected(format!(
                "no {program} among {:?}",
                self.processes(name)
            )));
        }
        for target in targets {
            let pid = i32::try_from(target.pid).map_err(|_| Error::unexpected("a pid that is no pid"))?;
            match kill(Pid::from_raw(pid), signal) {
                // It went with one that has had the signal already.
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => return Err(Error::io(format!("signalling {}", target.command))(error.into())),
            }
        }
        Ok(())
    }

    /// The bundle directory of a container's task.
    pub fn bundle(&self, name: &str) -> PathBuf {
        self.containerd.bundles(&self.tag).join(self.id(name))
    }

    /// Fails unless everything that the node's containers used is gone from the machine.
    pub fn nothing_left(&self) -> Result<()> {
        if let Some(pool) = &self.pool {
            pool.empty()?;
        }
        leftovers::await_ends(&self.tag, wait::patience(ENDS))?;
        let mut left = leftovers::all(&self.tag, &self.dir().join("state"));
        left.extend(leftovers::entries(&self.containerd.bundles(&self.tag)));
        left.extend(leftovers::entries(
            &self.dir().join("root/io.containerd.runtime.v2.task").join(&self.tag),
        ));
        if left.is_empty() {
            return Ok(());
        }
        Err(Error::unexpected(format!("left behind:\n{}", left.join("\n"))))
    }
}
