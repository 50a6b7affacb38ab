//! The sandbox: one VM, its agent, its containers.
//!
//! ```text
//!            boot                      the VM ends
//! Booting ──────────► Ready ───────────────────────────► Ended
//!    └──────────────► Failed            or is stopped
//! ```
//! The VM boots in a separate task ([`vm::life`]). The state machine in `lifecycle` decides the lifecycle of containers and
//! execs. One task ([`driver`]) carries it out and is the only one that writes their records. The records' lock is held
//! only for a lookup. After the VM's end every call is answered from the record.
//!
//! It knows neither containerd's messages nor QEMU.

pub mod connections;
mod driver;
pub mod error;
pub mod host;
mod programs;
mod records;
mod size;
mod verbs;
mod vm;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use guest::agent_client::AgentClient;
use guest::names::NameRelay;
use guest::relays::Relays;
use guest::streams::StreamRegistry;
use guest::vm::{Ending, RunningVm};
use lifecycle::Timeouts;
use node::volumes::DirectVolume;
use scrape::durations::Durations;
use tokio::sync::{mpsc, watch};

use self::driver::message::Message;
use self::host::HostSide;
use self::host::disks::Disks;
use self::programs::forwards::Forwards;
use self::records::process::{Exit, Process, ProcessName, is_created};
use self::records::stand_in::StandIn;
use self::size::sizes::Sizes;
use self::vm::boot::{Booted, GuestBootError};
use crate::events::Publisher;
use crate::id::{ContainerId, Namespace, SandboxId};
use crate::sandbox::error::Error;
use crate::spans::Tracing;

pub use self::host::disks::DiskError;
pub use self::programs::console;
pub use self::records::container::{Container, CreateRequest};
pub use self::records::process;
pub use self::vm::boot;
pub use self::vm::life::Parts;

#[derive(Clone)]
enum VmState {
    Booting,
    Failed(GuestBootError),
    Ready(Arc<Booted>),
    Ended { ending: Ending, exit: Exit },
}

pub struct Sandbox {
    pub id: SandboxId,
    pub created_at: SystemTime,
    namespace: Namespace,
    host: Arc<dyn HostSide>,
    events: Publisher,
    streams: StreamRegistry,
    relays: Relays,
    /// Whether the guest has the network of the container's namespace.
    networked: bool,
    /// Docker's name server, as long as a container asks it.
    names: tokio::sync::Mutex<Option<NameRelay>>,
    /// Written by the driver alone.
    records: Mutex<HashMap<ContainerId, Arc<Container>>>,
    /// Inputs for the driver.
    inputs: mpsc::UnboundedSender<Message>,
    next_reply: AtomicU64,
    /// Whether a process of a container has been started.
    first_start: watch::Sender<bool>,
    /// The programs that run for `kata-ctl exec`: containerd does not know them.
    consoles: Mutex<HashMap<ContainerId, Arc<Process>>>,
    debug_console: bool,
    kernel: PathBuf,
    disks: Arc<Disks>,
    sizes: Sizes,
    /// Held by who makes the guest's network what the host's is: whether the guest has failed to follow the last time.
    network: tokio::sync::Mutex<bool>,
    vm_state: watch::Sender<VmState>,
    running: Mutex<Option<Arc<dyn RunningVm>>>,
    /// Whether the file server sees from now on what is mounted in the shared directory.
    serves_mounts: watch::Sender<bool>,
    /// The sandbox's pid on the host, from the VMM's start on.
    stand_in: Mutex<Option<StandIn>>,
    /// That pid's process was killed, and the VM lives on for other containers.
    stand_in_killed: AtomicBool,
    stopping: watch::Sender<bool>,
    /// Why the VM has been given up, once it has been.
    given_up: watch::Sender<Option<String>>,
    timeouts: Timeouts,
    /// Direct-assigned volumes that have been given to a container, by their paths.
    direct_volumes: Mutex<HashMap<PathBuf, DirectVolume>>,
    /// Set once the archive of programs is unpacked for the guest.
    programs: tokio::sync::OnceCell<()>,
    /// Where its spans go; None: nothing is traced.
    tracing: Option<Tracing>,
    pub(crate) call_durations: Durations,
    /// The processes of forwarded connections, which containerd does not know.
    forwards: Forwards,
    /// How many questions for figures the guest has not answered in time, nor since.
    unanswered_stats: Arc<AtomicUsize>,
}

impl Sandbox {
    /// What the guest may be connected with.
    #[must_use]
    pub fn relays(&self) -> &Relays {
        &self.relays
    }

    #[must_use]
    pub fn tracing(&self) -> Option<&Tracing> {
        self.tracing.as_ref()
    }

    fn running_vm(&self) -> Option<Arc<dyn RunningVm>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn direct_volumes(&self) -> MutexGuard<'_, HashMap<PathBuf, DirectVolume>> {
        self.direct_volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn records(&self) -> MutexGuard<'_, HashMap<ContainerId, Arc<Container>>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The containers that have been created. One that is in the making may wait for its mounts for ever.
    fn created(&self) -> Vec<Arc<Container>> {
        let records = self.records();
        let created = records.values().filter(|container| is_created(container.init.view()));
        created.cloned().collect()
    }

    /// The pid that stands for the sandbox; 0 before the VMM runs. The guest's own pids mean nothing on the host.
    #[must_use]
    pub fn pid(&self) -> u32 {
        let stand_in = self.stand_in.lock().unwrap_or_else(PoisonError::into_inner);
        stand_in.as_ref().map_or(0, StandIn::pid)
    }

    /// The VMM's pid; 0 before it runs.
    fn vmm_pid(&self) -> u32 {
        self.running_vm().map_or(0, |vm| vm.pid())
    }

    /// The pid that stands for a container's processes: the sandbox's, or one of its own for a further container of a pod.
    #[must_use]
    pub fn pid_of(&self, container: &Container) -> u32 {
        container.stand_in.get().map_or_else(|| self.pid(), StandIn::pid)
    }

    /// Waits until the VM is up.
    ///
    /// # Errors
    /// It did not come up, or has ended.
    pub async fn ready(&self) -> Result<AgentClient, Error> {
        let mut vm = self.vm_state.subscribe();
        if vm.wait_for(|vm| !matches!(vm, VmState::Booting)).await.is_err() {
            return Err(self.boot_error(GuestBootError::Stopped));
        }
        self.agent("create a container in", &format!("sandbox {}", self.id))
    }

    /// Waits until what is mounted in the shared directory reaches the guest.
    ///
    /// virtiofsd makes a mount namespace of its own when it starts: it clones the shared directory, and attaches the clone
    /// afterwards. A mount that is made between these two steps is not in the clone, and the kernel does not pass it on to one
    /// that is attached to nothing (fs/pnode.c, propagate_one). The guest would see an empty directory for ever. QEMU's
    /// monitor answers once all of its devices are there, and that of the share is only after virtiofsd has answered.
    ///
    /// # Errors
    /// There will be no VM.
    async fn mounts_are_served(&self) -> Result<(), Error> {
        let (mut serves, mut vm) = (self.serves_mounts.subscribe(), self.vm_state.subscribe());
        tokio::select! {
            biased;
            _ = serves.wait_for(|serves| *serves) => {}
            _ = vm.wait_for(|vm| !matches!(vm, VmState::Booting)) => {}
        }
        match &*self.vm_state.borrow() {
            VmState::Failed(error) => Err(self.boot_error(error.clone())),
            _ => Ok(()),
        }
    }

    fn boot_error(&self, source: GuestBootError) -> Error {
        Error::Boot {
            sandbox: self.id.to_string(),
            source,
        }
    }

    /// The agent, for a verb on a subject.
    fn agent(&self, operation: &'static str, subject: &str) -> Result<AgentClient, Error> {
        match &*self.vm_state.borrow() {
            VmState::Ready(booted) => Ok(booted.agent.clone()),
            VmState::Failed(error) => Err(self.boot_error(error.clone())),
            VmState::Booting => Err(Error::State {
                operation,
                subject: subject.to_owned(),
                state: "booting",
            }),
            VmState::Ended { ending, .. } => Err(Error::VmEnded {
                operation,
                subject: subject.to_owned(),
                reason: ending.reason.clone(),
            }),
        }
    }

    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The containers that have been created, in the order of their ids.
    #[must_use]
    pub fn container_ids(&self) -> Vec<ContainerId> {
        let mut ids: Vec<_> = self.created().iter().map(|container| container.id.clone()).collect();
        ids.sort();
        ids
    }

    /// A container that has been created.
    ///
    /// # Errors
    /// There is none of this id.
    pub fn container(&self, id: &ContainerId) -> Result<Arc<Container>, Error> {
        let container = self.records().get(id).cloned();
        let created = container.filter(|container| is_created(container.init.view()));
        created.ok_or_else(|| Error::NotFound {
            subject: format!("container {id}"),
        })
    }

    /// A process of a container.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn process(&self, name: &ProcessName) -> Result<(Arc<Container>, Arc<Process>), Error> {
        let container = self.container(&name.container)?;
        match container.find(name.exec.as_ref()) {
            Some(process) => Ok((container, process)),
            None => Err(Error::NotFound {
                subject: name.to_string(),
            }),
        }
    }

    /// Whether it has no container that has been created.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.created().is_empty()
    }

    #[must_use]
    pub fn is_ready(&self) -> bool {
        matches!(&*self.vm_state.borrow(), VmState::Ready(_))
    }
}

fn ended(reason: &str) -> Ending {
    Ending {
        reason: reason.to_owned(),
        out_of_memory: false,
    }
}
