//! A VM that has booted before the sandbox was asked for, and what becomes of its processes when a sandbox takes it.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use hypervisor::{GuestListener, GuestStream, Vm};
use node::host_cgroup::HostCgroup;
use node::process::ProcessRef;

#[derive(Debug)]
pub struct Parked {
    /// The VM, whose network namespace has nothing in it.
    pub(crate) vm: Vm,
    /// Where the guest's further connections arrive.
    pub(crate) listener: GuestListener,
    /// The agent's first connection. It waits for the answer to its hello.
    pub(crate) first: GuestStream,
    /// The shared directory, mounted nowhere yet.
    pub(crate) shared: OwnedFd,
    /// Where its processes were until now.
    pub(crate) cgroup: HostCgroup,
}

impl Parked {
    /// Its processes; QEMU first, whose pid stands for the sandbox.
    pub(crate) fn processes(&self) -> Vec<ProcessRef> {
        let helpers = self.vm.pids().filter(|pid| *pid != self.vm.pid());
        let pids = std::iter::once(self.vm.pid()).chain(helpers);
        pids.filter_map(|pid| ProcessRef::of(i32::try_from(pid).ok()?))
            .collect()
    }

    /// All processes in its cgroup: those that it was started with, and their children (virtiofsd has one in its namespaces).
    fn members(&self) -> BTreeSet<i32> {
        let files = self.cgroup.procs_files();
        let texts = files.iter().filter_map(|file| fs::read_to_string(file).ok());
        let in_cgroup = texts.flat_map(|text| text.lines().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>());
        let started = self.processes().into_iter().map(|process| process.pid);
        started.chain(in_cgroup).collect()
    }

    /// Moves its processes into these cgroups (`cgroup.procs`), gives them their score for the OOM killer, and removes the cgroup where they were. The
    /// answer is what is left of that: a process that cannot be moved stays in it, which is logged. It works, and whoever removes the sandbox is to
    /// remove the cgroup.
    pub(crate) fn join(&self, procs: &[PathBuf], oom_score_adj: i32) -> Vec<PathBuf> {
        for pid in self.members() {
            for file in procs {
                if let Err(error) = fs::write(file, pid.to_string()) {
                    tracing::warn!(%error, file = %file.display(), pid, "a process of the VM stays where it is");
                }
            }
            let score = fs::write(format!("/proc/{pid}/oom_score_adj"), oom_score_adj.to_string());
            if let Err(error) = score {
                // Without CAP_SYS_RESOURCE nobody goes below what was inherited: then that is what it gets.
                tracing::debug!(%error, pid, "a process of the VM keeps its score for the OOM killer");
            }
        }
        self.cgroup.remove();
        self.cgroup.left()
    }
}
