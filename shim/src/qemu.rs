//! The real VM: [`crate::vm`]'s traits on top of the hypervisor.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use hypervisor::{Cause, GuestListener, Vm, VmRequest};

use crate::error::chain;
use crate::host_cgroup::HostCgroup;
use crate::process::ProcessRef;
use crate::run_dir::{RunDir, SandboxState};
use crate::vm::{Connection, Connections, Ending, LaunchError, Launcher, Machine};

/// Starts QEMU once.
pub struct QemuLauncher {
    /// How; or why it cannot be done, which the Create that waits for it reports.
    pub plan: Result<config::Hypervisor, LaunchError>,
    /// Where and with what.
    pub request: VmRequest,
    /// The sandbox's cgroup.
    pub cgroup: HostCgroup,
    /// Where the VM's processes are written down for `delete`.
    pub run_dir: RunDir,
    /// What is written down already.
    pub state: SandboxState,
}

#[async_trait]
impl Launcher for QemuLauncher {
    async fn launch(&self) -> Result<(Box<dyn Machine>, Box<dyn Connections>), LaunchError> {
        let config = self.plan.as_ref().map_err(Clone::clone)?;
        let booted = Box::pin(hypervisor::boot(config, self.request.clone())).await;
        let (vm, listener) = booted.map_err(|error| LaunchError { message: chain(&error) })?;
        let mut state = self.state.clone();
        let pids = vm.pids().filter_map(|pid| i32::try_from(pid).ok());
        state.vm = pids.filter_map(ProcessRef::of).collect();
        if let Err(error) = self.run_dir.write_state(&state) {
            vm.stop().await;
            return Err(LaunchError { message: chain(&error) });
        }
        let machine = QemuMachine {
            vm,
            cgroups: self.cgroup.directories().to_vec(),
        };
        Ok((Box::new(machine), Box::new(QemuConnections(listener))))
    }
}

struct QemuMachine {
    vm: Vm,
    cgroups: Vec<PathBuf>,
}

#[async_trait]
impl Machine for QemuMachine {
    fn pid(&self) -> u32 {
        self.vm.pid()
    }

    async fn ended(&self) -> Ending {
        let ended = self.vm.ended().await;
        let killed = matches!(&ended.cause, Cause::ChildDied(death) if death.signal() == Some(libc::SIGKILL));
        Ending {
            reason: ended.to_string(),
            out_of_memory: killed && oom_killed(&self.cgroups),
        }
    }

    async fn console_tail(&self) -> String {
        self.vm.console_tail()
    }

    async fn stop(&self, grace: Duration) {
        // Over already, or not within its time: both are followed by the stop.
        let _ = tokio::time::timeout(grace, self.vm.ended()).await;
        self.vm.stop().await;
    }
}

/// Whether the kernel has killed for want of memory in one of the cgroups: `oom_kill` in v2's memory.events and v1's
/// memory.oom_control (the kernel's cgroup-v2.rst and cgroup-v1/memory.rst).
fn oom_killed(cgroups: &[PathBuf]) -> bool {
    let files = cgroups
        .iter()
        .flat_map(|cgroup| ["memory.events", "memory.oom_control"].map(|file| cgroup.join(file)));
    files.filter_map(|file| std::fs::read_to_string(file).ok()).any(|text| {
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.is_some_and(|count| count.trim() != "0")
    })
}

struct QemuConnections(GuestListener);

#[async_trait]
impl Connections for QemuConnections {
    async fn accept(&mut self) -> io::Result<Connection> {
        Ok(Box::new(self.0.accept().await?))
    }
}
