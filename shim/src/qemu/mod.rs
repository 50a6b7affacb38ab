//! The real VM: implements the traits of [`guest::vm`] with the hypervisor.

pub(crate) mod debug_image;
pub(crate) mod guest_kernel;
pub mod parked;
pub(crate) mod saved;

use std::io;
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use base::chain;
use base::spawn::Score;
use config::Mebibytes;
use guest::accept;
use guest::vm::{Connection, Connections, Ending, Launcher, RunningVm, VmLaunchError};
use hypervisor::{
    Cause, CpuError, Disk, GuestListener, GuestStream, HotplugError, MemoryError, NetworkNamespace, Sample, Vm,
    VmRequest,
};
use node::host_cgroup::{Allowance, HostCgroup};
use node::network::{NetworkPlan, PodNetwork, PodNetworkError, VmNetwork};
use node::process::ProcessRef;
use node::run_dir::{RunDir, SandboxState};
use node::sizing::{HostLimits, NumberSet};
use protocol::agent::Network;

use crate::qemu::debug_image::DebugImage;
use crate::qemu::parked::Parked;
use crate::qemu::saved::Saved;

/// Launches the VM of one sandbox, once.
pub struct QemuLauncher {
    /// How; or why it cannot be done, which the Create that waits for it reports.
    pub plan: Result<config::Hypervisor, VmLaunchError>,
    pub request: VmRequest,
    pub network: NetworkPlan,
    pub cgroup: HostCgroup,
    /// What it is limited to before anything runs in it.
    pub limits: HostLimits,
    /// Where the VM's processes are written down for `delete`.
    pub run_dir: RunDir,
    /// What is written down already.
    pub state: SandboxState,
    /// Whether each vCPU gets a CPU of its own, if the sandbox's set has as many.
    pub pin_vcpus: bool,
    /// Whether the guest gets the programs of the debug console.
    pub debug_console: bool,
    /// A VM that has booted already, and is taken instead.
    pub parked: Mutex<Option<Parked>>,
    /// A saved VM, of which this one is to be a copy.
    pub(crate) saved: Mutex<Option<Saved>>,
}

impl QemuLauncher {
    /// The image with the console's programs, if it is wanted and can be had: a guest without them is better than none.
    fn image(&self, config: &config::Hypervisor) -> Option<DebugImage> {
        if !self.debug_console {
            return None;
        }
        DebugImage::make(config, self.run_dir.path())
            .inspect_err(|error| tracing::warn!(error = chain(error), "the debug console has no programs"))
            .ok()
    }

    /// A VM that is a copy of the saved one if there is one, with the guest's first connection then, and else boots.
    async fn copy_or_boot(
        &self,
        config: &config::Hypervisor,
        request: VmRequest,
    ) -> Result<(Vm, GuestListener, Option<GuestStream>), VmLaunchError> {
        let saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(saved) = saved
            && let Some((vm, listener, first)) = saved.copy(config, request.clone()).await
        {
            for nic in request.nics {
                let attached = vm.nics().attach(nic).await;
                attached.map_err(|error| VmLaunchError::Failed(chain(&error)))?;
            }
            return Ok((vm, listener, Some(first)));
        }
        let booted = Box::pin(hypervisor::boot(config, request)).await;
        let (vm, listener) = booted.map_err(|error| VmLaunchError::Failed(chain(&error)))?;
        Ok((vm, listener, None))
    }

    /// Makes a VM that has booted for nobody this sandbox's: its processes join the sandbox's cgroups, and it gets its network devices.
    async fn adopt(
        &self,
        parked: Parked,
        network: &mut PodNetwork,
        state: &mut SandboxState,
    ) -> Result<(Vm, GuestListener, Option<GuestStream>), VmLaunchError> {
        let failed = |error: &dyn std::error::Error| VmLaunchError::Failed(chain(error));
        let procs = self.request.cgroup_procs.clone();
        let score = match self.request.score {
            Score::Of(score) => score,
            Score::Inherited | Score::NotSpared | Score::BeforeCaller => 0,
        };
        let moved = tokio::task::spawn_blocking(move || {
            let left = parked.join(&procs, score);
            (parked, left)
        });
        let (parked, left) = moved.await.map_err(|error| failed(&error))?;
        state.cgroups = self.cgroup.directories().iter().cloned().chain(left).collect();
        parked.vm.rename(&self.request.id);
        let nics = network.wire().await.map_err(|error| failed(&error))?;
        for nic in nics {
            parked.vm.nics().attach(nic).await.map_err(|error| failed(&error))?;
        }
        Ok((parked.vm, parked.listener, Some(parked.first)))
    }
}

#[async_trait]
impl Launcher for QemuLauncher {
    async fn launch(&self) -> Result<(Box<dyn RunningVm>, Box<dyn Connections>), VmLaunchError> {
        let config = self.plan.as_ref().map_err(Clone::clone)?;
        let image = self.image(config);
        let config = image.as_ref().map_or(config, |image| &image.config);
        let failed = |error: &dyn std::error::Error| VmLaunchError::Failed(chain(error));
        let allowance = Allowance::new(self.cgroup.clone());
        allowance.limit(self.limits).await;
        let network = PodNetwork::open(self.network.clone()).await;
        let mut network = network.map_err(|error| failed(&error))?;
        let mut state = self.state.clone();
        state.network = network.record();
        if state.network.is_some() {
            // Before anything is changed: whoever removes the sandbox finds it here.
            self.run_dir.write_state(&state).map_err(|error| failed(&error))?;
        }
        let parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (vm, listener, first) = match parked {
            Some(parked) => self.adopt(parked, &mut network, &mut state).await?,
            None => {
                let request = VmRequest {
                    nics: network.wire().await.map_err(|error| failed(&error))?,
                    netns: network.vm_namespace(),
                    ..self.request.clone()
                };
                self.copy_or_boot(config, request).await?
            }
        };
        // QEMU first: its pid stands for the sandbox.
        let helpers = vm.pids().filter(|pid| *pid != vm.pid());
        let pids = std::iter::once(vm.pid()).chain(helpers);
        let pids = pids.filter_map(|pid| i32::try_from(pid).ok());
        state.vm = pids.filter_map(ProcessRef::of).collect();
        state.vsock = Some(vm.vsock().as_str().to_owned());
        match vm.accelerator().await {
            Ok(accelerator) => state.accelerator = Some(accelerator.as_str().to_owned()),
            // It has ended: why, is told to whoever waits for its end.
            Err(error) => tracing::warn!(error = chain(&error), "QEMU does not say what runs the guest"),
        }
        if let Err(error) = self.run_dir.write_state(&state) {
            vm.stop().await;
            return Err(failed(&error));
        }
        let vm = QemuVm {
            at_boot: network.guest(),
            namespace: network.vm_namespace(),
            network: VmNetwork::new(network, vm.nics()),
            vm,
            allowance,
            pinned: self.pin_vcpus.then(tokio::sync::Mutex::default),
        };
        vm.pin_vcpus().await;
        Ok((Box::new(vm), Box::new(QemuConnections { first, listener })))
    }
}

/// Added to the reason of an end.
const OUT_OF_MEMORY: &str = "; the host has killed it for want of memory: the limit of the pod, or the host, is too small for \
                             the VM's memory and what QEMU needs itself";

struct QemuVm {
    vm: Vm,
    at_boot: Option<Network>,
    namespace: NetworkNamespace,
    network: VmNetwork,
    allowance: Allowance,
    /// Whether the vCPUs are pinned; none if they never are to be.
    pinned: Option<tokio::sync::Mutex<bool>>,
}

impl QemuVm {
    /// After each change of the CPUs or of the vCPUs. One that fails costs speed only, and is tried again with the next change.
    async fn pin_vcpus(&self) {
        let Some(pinned) = &self.pinned else { return };
        let mut pinned = pinned.lock().await;
        let cpus: Vec<usize> = self
            .allowance
            .cpus()
            .await
            .iter()
            .flat_map(NumberSet::numbers)
            .collect();
        let done = match self.vm.pin_vcpus(&cpus).await {
            Ok(false) if *pinned => self.vm.unpin_vcpus().await.map(|()| false),
            done => done,
        };
        match done {
            Ok(now) => *pinned = now,
            Err(error) => {
                // Some may be pinned.
                *pinned = true;
                tracing::warn!(error = chain(&error), "the vCPUs are not pinned as they should be");
            }
        }
    }
}

#[async_trait]
impl RunningVm for QemuVm {
    fn pid(&self) -> u32 {
        self.vm.pid()
    }

    async fn ended(&self) -> Ending {
        let ended = self.vm.ended().await;
        let killed = matches!(&ended.cause, Cause::ChildDied(death) if death.signal() == Some(libc::SIGKILL));
        let out_of_memory = killed && oom_killed(self.allowance.cgroup().directories());
        let why = if out_of_memory { OUT_OF_MEMORY } else { "" };
        Ending {
            reason: format!("{ended}{why}"),
            out_of_memory,
        }
    }

    fn pids(&self) -> Vec<u32> {
        self.vm.pids().collect()
    }

    fn cgroup_members(&self) -> Vec<PathBuf> {
        self.allowance.cgroup().procs_files()
    }

    async fn status(&self) -> Result<String, String> {
        self.vm.status().await.map_err(|error| chain(&error))
    }

    async fn sample(&self) -> Result<Sample, String> {
        self.vm.sample().await.map_err(|error| chain(&error))
    }

    async fn console_tail(&self) -> String {
        self.vm.console_tail()
    }

    fn network(&self) -> Option<Network> {
        self.at_boot.clone()
    }

    fn network_namespace(&self) -> Option<Arc<OwnedFd>> {
        match &self.namespace {
            NetworkNamespace::Empty => None,
            NetworkNamespace::Of(namespace) => Some(Arc::clone(namespace)),
        }
    }

    async fn refresh_network(&self, again: bool) -> Result<Option<Network>, PodNetworkError> {
        self.network.refresh(again).await
    }

    async fn network_changed(&self) {
        self.network.changed().await;
    }

    async fn stop(&self, grace: Duration) {
        // Over already, or not within its time: both are followed by the stop.
        let _ = tokio::time::timeout(grace, self.vm.ended()).await;
        self.vm.stop().await;
    }

    async fn attach_disk(&self, disk: Disk) -> Result<String, HotplugError> {
        self.vm.attach_disk(disk).await
    }

    async fn detach_disk(&self, serial: &str) -> Result<(), HotplugError> {
        self.vm.detach_disk(serial).await
    }

    async fn resize_disk(&self, serial: &str, bytes: u64) -> Result<(), HotplugError> {
        self.vm.resize_disk(serial, bytes).await
    }

    async fn set_vcpus(&self, count: NonZeroU32) -> Result<(), CpuError> {
        let set = self.vm.set_vcpus(count).await;
        self.pin_vcpus().await;
        set
    }

    async fn follow_late_vcpus(&self) {
        loop {
            self.vm.vcpus_came_late().await;
            self.pin_vcpus().await;
        }
    }

    async fn set_memory(&self, memory: Mebibytes) -> Result<Mebibytes, MemoryError> {
        self.vm.set_memory(memory).await
    }

    async fn surplus_other_than(&self, before: Mebibytes) -> Result<Mebibytes, MemoryError> {
        self.vm.surplus_other_than(before).await
    }

    async fn limit_host(&self, limits: HostLimits) {
        self.allowance.limit(limits).await;
        self.pin_vcpus().await;
    }

    async fn raise_host(&self, limits: HostLimits) {
        self.allowance.raise(limits).await;
        self.pin_vcpus().await;
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

struct QemuConnections {
    /// One that has arrived before anybody asked.
    first: Option<GuestStream>,
    listener: GuestListener,
}

#[async_trait]
impl Connections for QemuConnections {
    async fn accept(&mut self) -> io::Result<Connection> {
        if let Some(first) = self.first.take() {
            return Ok(Box::new(first));
        }
        let stream = accept::next("a connection of the guest", &mut self.listener).await;
        Ok(Box::new(stream))
    }
}
