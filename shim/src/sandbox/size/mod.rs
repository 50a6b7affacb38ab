//! Changes the VM's size when containers are created, updated and removed (docs/sizing.md).
//!
//! ```text
//! create, update   limits are counted ─► the host's limit ─► the VM grows, waited for ─► the guest applies the limits
//! update, exit     limits are not counted any more ─► the VM shrinks, not waited for ─► the host's limit
//! ```
//! The host's limit is that of the sandbox's cgroup. It is never less than the VM may use at that moment. If a guest
//! takes long to give memory back, the host's limit follows whenever memory is returned.
//!
//! Beyond the limits there is what containers without one need: [`crate::sandbox::size::growth`] has it counted here.
//!
//! There is one change at a time. Each uses the size that is wanted when its turn comes, so the last one leaves the right
//! size. A shrink that waits for the guest does not block the next change.

mod growth;
pub(super) mod sizes;

use std::sync::Arc;
use std::time::Duration;

use base::chain;
use config::Mebibytes;
use guest::agent_client::AgentClient;
use guest::vm::RunningVm;
use guest::{info_rate_limited, warn_rate_limited};
use hypervisor::{MemoryError, Size};
use node::sizing::Limits;

use crate::id::ContainerId;
use crate::sandbox::Sandbox;
use crate::sandbox::error::Error;
use crate::sandbox::size::sizes::ResizeTarget;

/// When it is worth a line in the log that the guest gives nothing back.
const SLOW: Duration = Duration::from_secs(15);

impl Sandbox {
    /// Counts a container's limits, and gives the VM what it lacks for them. Memory that cannot be had is an error: the
    /// container would be killed where it may use it. A vCPU that cannot be had is a warning: it is slower.
    pub(super) async fn grow(
        self: &Arc<Self>,
        agent: &AgentClient,
        container: &ContainerId,
        limits: Limits,
    ) -> Result<(), Error> {
        self.sizes.count(container, limits);
        let Some(vm) = self.running_vm() else { return Ok(()) };
        let mut target = self.sizes.turn().await;
        let wanted = self.sizes.wanted();
        if let Some(host) = self.sizes.host(wanted.size) {
            vm.raise_host(host).await;
        }
        if let Some(beyond) = wanted.beyond {
            tracing::warn!(
                %container,
                vcpus = beyond.vcpus,
                memory = %beyond.memory,
                "the limits of the containers are more than the VM gets: {} vCPUs, {} (default_maxvcpus, \
                 default_maxmemory, static_sandbox_resource_mgmt, the host)",
                wanted.size.vcpus,
                wanted.size.memory
            );
        }
        if self.sizes.is_fixed() {
            return Ok(());
        }
        let wanted = wanted.size;
        if wanted.memory > target.confirmed.memory {
            // Also if it fails: what the guest was told, it may still do.
            target.vm.memory = wanted.memory;
            let grown = vm.set_memory(wanted.memory).await;
            target.beyond = grown.map_err(|source| Error::Memory {
                subject: format!("container {container}"),
                source,
            })?;
            target.confirmed.memory = wanted.memory;
            tracing::info!(%container, memory = %wanted.memory, "the VM has more memory");
        }
        if wanted.vcpus > target.confirmed.vcpus {
            target.vm.vcpus = wanted.vcpus;
            match vm.set_vcpus(wanted.vcpus).await {
                Ok(()) => {
                    // What the guest makes of them is its own: it is asked once, and does not hold up each later container.
                    target.confirmed.vcpus = wanted.vcpus;
                    tracing::info!(%container, vcpus = wanted.vcpus, "the VM has more vCPUs");
                    self.tell_guest(agent, wanted).await;
                }
                Err(error) => {
                    let error = chain(&error);
                    tracing::warn!(%container, vcpus = wanted.vcpus, error, "the VM has not the vCPUs that it should")
                }
            }
        }
        if target.beyond.0 > 0 {
            // Whoever waited for that has given up its turn.
            self.shrink_to_target();
        }
        Ok(())
    }

    /// Takes back what nothing is counted for any more: from the VM, as far as the guest can do without it, and then from what
    /// the host allows it. Returns at once.
    pub(super) fn shrink_to_target(self: &Arc<Self>) {
        if !self.is_ready() {
            return;
        }
        let sandbox = Arc::clone(self);
        tokio::spawn(async move { sandbox.shrink().await });
    }

    async fn shrink(&self) {
        let mut target = self.sizes.turn().await;
        let wanted = self.sizes.wanted().size;
        let (Some(vm), Ok(agent)) = (self.running_vm(), self.agent("resize", "the VM")) else {
            return;
        };
        if wanted.memory < target.vm.memory || target.beyond.0 > 0 {
            // Whoever needs more is counted already, and waits for a turn of its own.
            let less = Size {
                vcpus: wanted.vcpus.min(target.vm.vcpus),
                memory: wanted.memory.min(target.vm.memory),
            };
            self.take_vcpus(&*vm, &mut target, less).await;
            self.take_memory(&*vm, &agent, &mut target, less).await;
            return;
        }
        if wanted.vcpus < target.vm.vcpus {
            self.take_vcpus(&*vm, &mut target, wanted).await;
            self.tell_guest(&agent, target.present(wanted)).await;
        } else if self.sizes.growth_is_untold() {
            // Who could have it grow is gone, or has a limit now, or has none any more.
            self.tell_guest(&agent, target.present(target.vm)).await;
        }
        self.limit_host(&*vm, wanted, Mebibytes(0)).await;
    }

    async fn limit_host(&self, vm: &dyn RunningVm, size: Size, beyond: Mebibytes) {
        let memory = Mebibytes(size.memory.0.saturating_add(beyond.0));
        if let Some(host) = self.sizes.host(Size { memory, ..size }) {
            vm.limit_host(host).await;
        }
    }

    /// It renews what it keeps for itself of its memory.
    async fn tell_guest(&self, agent: &AgentClient, size: Size) {
        if let Err(error) = agent.resize(&self.sizes.resized(size)).await {
            warn_rate_limited!(sandbox = %self.id, %error, "the guest does not take note of the VM's size");
        }
    }

    async fn take_vcpus(&self, vm: &dyn RunningVm, target: &mut ResizeTarget, wanted: Size) {
        if wanted.vcpus < target.vm.vcpus {
            target.vm.vcpus = wanted.vcpus;
            target.confirmed.vcpus = target.confirmed.vcpus.min(wanted.vcpus);
            match vm.set_vcpus(wanted.vcpus).await {
                Ok(()) => target.confirmed.vcpus = wanted.vcpus,
                Err(error) => {
                    info_rate_limited!(sandbox = %self.id, error = chain(&error), "the guest keeps a vCPU that it should give back")
                }
            }
        }
    }

    /// Asks the guest for the memory that it should give back, and has the host's limit follow what it does give back, until nothing
    /// is missing or somebody else wants a turn.
    async fn take_memory(&self, vm: &dyn RunningVm, agent: &AgentClient, target: &mut ResizeTarget, wanted: Size) {
        // Also if it fails: what the guest was told, it may still do.
        let before = target.vm.memory.0.saturating_add(target.beyond.0);
        target.vm.memory = wanted.memory;
        target.confirmed.memory = target.confirmed.memory.min(wanted.memory);
        target.beyond = Mebibytes(before.saturating_sub(wanted.memory.0));
        let mut asked = vm.set_memory(wanted.memory).await;
        loop {
            match asked {
                Ok(beyond) => target.beyond = beyond,
                Err(error) => {
                    info_rate_limited!(sandbox = %self.id, error = chain(&error), "the guest keeps memory that it should give back");
                    return;
                }
            }
            self.tell_guest(agent, target.present(wanted)).await;
            self.limit_host(vm, wanted, target.beyond).await;
            if target.beyond.0 == 0 {
                info_rate_limited!(sandbox = %self.id, memory = %wanted.memory, "the VM has given memory back");
                return;
            }
            asked = tokio::select! {
                asked = self.surplus(vm, target.beyond) => asked,
                () = self.sizes.another_waits() => return,
            };
        }
    }

    async fn surplus(&self, vm: &dyn RunningVm, before: Mebibytes) -> Result<Mebibytes, MemoryError> {
        let change = vm.surplus_other_than(before);
        tokio::pin!(change);
        if let Ok(changed) = tokio::time::timeout(SLOW, &mut change).await {
            return changed;
        }
        info_rate_limited!(sandbox = %self.id, beyond = %before, "the guest keeps memory that it should give back: it is waited for");
        change.await
    }
}
