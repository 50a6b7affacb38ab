//! The VM's size as its containers come, change and go (docs/sizing.md).
//!
//! ```text
//! create, update   limits are counted ─► the host's limit ─► the VM grows, waited for ─► the guest applies the limits
//! update, exit     limits are not counted any more ─► the VM shrinks, nobody waits ─► the host's limit
//! ```
//! The host's limit is that of the sandbox's cgroup: at no time does it leave less than the VM may use.
//!
//! One change at a time, each to what is wanted when its turn comes, so that the last one leaves the VM as it has to be.
//! Growing does not wait for a shrinking that is under way: it takes its place.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hypervisor::Size;
use tokio::sync::Notify;

use super::Sandbox;
use crate::agent_client::AgentClient;
use crate::error::{Error, chain};
use crate::id::ContainerId;
use crate::sizing::{HostLimits, Limits, Sizing};
use crate::vm::Machine;

/// Who has which limits, and what was last told.
pub(super) struct Sizes {
    sizing: Sizing,
    limits: Mutex<HashMap<ContainerId, Limits>>,
    told: tokio::sync::Mutex<Told>,
    /// Somebody wants to grow the VM.
    growing: Notify,
}

/// What the VM is to be, and its cgroup on the host.
struct Told {
    vm: Size,
    host: HostLimits,
}

impl Told {
    async fn limit_host(&mut self, machine: &dyn Machine, host: HostLimits) {
        if host != self.host {
            machine.limit_host(host).await;
            self.host = host;
        }
    }
}

impl Sizes {
    pub(super) fn new(sizing: Sizing) -> Self {
        Self {
            sizing,
            limits: Mutex::default(),
            told: tokio::sync::Mutex::new(Told {
                vm: sizing.boot().size,
                host: sizing.host_at_boot(),
            }),
            growing: Notify::new(),
        }
    }

    fn limits(&self) -> MutexGuard<'_, HashMap<ContainerId, Limits>> {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is counted for a container.
    pub(super) fn of(&self, container: &ContainerId) -> Limits {
        self.limits().get(container).copied().unwrap_or_default()
    }

    /// Counts these limits for a container from now on.
    pub(super) fn count(&self, container: &ContainerId, limits: Limits) {
        self.limits().insert(container.clone(), limits);
    }

    /// Counts a container no more.
    pub(super) fn forget(&self, container: &ContainerId) {
        self.limits().remove(container);
    }

    fn wanted(&self) -> crate::sizing::Wanted {
        self.sizing.wanted(self.limits().values().copied())
    }

    /// What the host's cgroup is limited to for a VM of this size; none if there is no container that could say.
    fn host(&self, size: Size, sandbox: &str) -> Option<HostLimits> {
        let limits = self.limits();
        let own = |id: &ContainerId| self.sizing.is_pod() && id.as_str() == sandbox;
        let members = limits.iter().filter(|(id, _)| !own(id));
        self.sizing.host_limits(size, members.map(|(_, limits)| *limits))
    }
}

impl Sandbox {
    /// Counts a container's limits, and gives the VM what it lacks for them. Memory that cannot be had is an error: the
    /// container would be killed where it may use it. A vCPU that cannot be had is a warning: it is slower.
    pub(super) async fn grow(&self, agent: &AgentClient, container: &ContainerId, limits: Limits) -> Result<(), Error> {
        self.sizes.count(container, limits);
        let Some(machine) = self.machine() else { return Ok(()) };
        self.sizes.growing.notify_waiters();
        let mut told = self.sizes.told.lock().await;
        let wanted = self.sizes.wanted();
        if let Some(host) = self.sizes.host(wanted.size, self.id.as_str()) {
            let host = host.with_room_of(told.host);
            told.limit_host(&*machine, host).await;
        }
        if self.sizes.sizing.is_fixed() {
            return Ok(());
        }
        if let Some(beyond) = wanted.beyond {
            tracing::warn!(
                %container,
                vcpus = beyond.vcpus,
                memory = %beyond.memory,
                "the limits of the containers are more than the VM gets: {} vCPUs, {} (default_maxvcpus, \
                 default_maxmemory, the host)",
                wanted.size.vcpus,
                wanted.size.memory
            );
        }
        let wanted = wanted.size;
        if wanted.memory > told.vm.memory {
            // Also if it fails: what the guest was told, it may still do.
            told.vm.memory = wanted.memory;
            let grown = machine.set_memory(wanted.memory).await;
            grown.map_err(|source| Error::Memory {
                subject: format!("container {container}"),
                source,
            })?;
            tracing::info!(%container, memory = %wanted.memory, "the VM has more memory");
        }
        if wanted.vcpus > told.vm.vcpus {
            told.vm.vcpus = wanted.vcpus;
            match grow_vcpus(&*machine, agent, wanted).await {
                Ok(()) => tracing::info!(%container, vcpus = wanted.vcpus, "the VM has more vCPUs"),
                Err(error) => {
                    tracing::warn!(%container, vcpus = wanted.vcpus, error, "the VM has not the vCPUs that it should")
                }
            }
        }
        Ok(())
    }

    /// Takes back what nothing is counted for any more: from the VM, as far as the guest can do without it, and then from what
    /// the host allows it. Returns at once.
    pub(super) fn settle(self: &Arc<Self>) {
        if !self.is_ready() {
            return;
        }
        let sandbox = Arc::clone(self);
        tokio::spawn(async move { sandbox.shrink().await });
    }

    async fn shrink(&self) {
        let mut told = self.sizes.told.lock().await;
        let growing = self.sizes.growing.notified();
        tokio::pin!(growing);
        // From here on, not from when it is first asked: who comes before is counted in what is wanted, who comes after tells.
        growing.as_mut().enable();
        let wanted = self.sizes.wanted().size;
        let (Some(machine), Ok(agent)) = (self.machine(), self.agent("resize", "the VM")) else {
            return;
        };
        if wanted != told.vm {
            self.take_vcpus(&*machine, &mut told.vm, wanted).await;
            let shrunk = tokio::select! {
                shrunk = self.take_memory(&*machine, &mut told.vm, wanted) => shrunk,
                () = growing => false,
            };
            if let Err(error) = agent.resize(&resized(wanted)).await {
                tracing::warn!(sandbox = %self.id, %error, "the guest does not take note of the VM's size");
            }
            if !shrunk {
                return;
            }
        }
        if let Some(host) = self.sizes.host(wanted, self.id.as_str()) {
            told.limit_host(&*machine, host).await;
        }
    }

    async fn take_vcpus(&self, machine: &dyn Machine, told: &mut Size, wanted: Size) {
        if wanted.vcpus < told.vcpus {
            told.vcpus = wanted.vcpus;
            if let Err(error) = machine.set_vcpus(wanted.vcpus).await {
                tracing::info!(sandbox = %self.id, error = chain(&error), "the guest keeps a vCPU that it should give back");
            }
        }
    }

    /// Whether the guest has given back the memory that it should.
    async fn take_memory(&self, machine: &dyn Machine, told: &mut Size, wanted: Size) -> bool {
        if wanted.memory >= told.memory {
            return true;
        }
        told.memory = wanted.memory;
        match machine.set_memory(wanted.memory).await {
            Ok(()) => {
                tracing::info!(sandbox = %self.id, memory = %wanted.memory, "the VM has given memory back");
                true
            }
            Err(error) => {
                // It uses it for itself; what it can do without it has given back.
                tracing::info!(sandbox = %self.id, error = chain(&error), "the guest keeps memory that it should give back");
                false
            }
        }
    }
}

async fn grow_vcpus(machine: &dyn Machine, agent: &AgentClient, wanted: Size) -> Result<(), String> {
    machine.set_vcpus(wanted.vcpus).await.map_err(|error| chain(&error))?;
    let online = agent.resize(&resized(wanted)).await;
    online.map(drop).map_err(|error| chain(&error))
}

fn resized(size: Size) -> protocol::agent::ResizeRequest {
    protocol::agent::ResizeRequest {
        cpus: size.vcpus.get(),
        ..Default::default()
    }
}
