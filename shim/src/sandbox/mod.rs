//! The sandbox: one VM, its agent, its containers.
//!
//! ```text
//!            boot                      the VM ends
//! Booting ──────────► Ready ───────────────────────────► Ended
//!    └──────────────► Failed            or is stopped
//! ```
//! The VM boots in a task of its own and under no lock. The map's lock is held for a look-up only; what takes time
//! is serialized per container. After the end every call is answered from the record.
//!
//! It knows neither containerd's messages nor QEMU.

pub mod boot;
mod changes;
pub mod connections;
pub mod console;
mod create;
mod delete;
mod disks;
mod doom;
mod exits;
mod forward;
mod health;
pub mod host;
mod life;
mod line;
mod network;
mod noise;
pub mod process;
mod size;
mod stand_in;
mod start;
mod verbs;
mod volumes;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use containerd_shim_protos::types::mount::Mount;
use tokio::sync::{oneshot, watch};

use self::boot::{BootError, BootPlan, Booted};
use self::connections::Expected;
use self::disks::Disks;
use self::host::{ContainerHooks, HostSide};
use self::process::{Exit, Process, ProcessName};
use self::size::Sizes;
use self::stand_in::StandIn;
use crate::agent_client::AgentClient;
use crate::error::Error;
use crate::events::Publisher;
use crate::id::{ContainerId, ExecId, Namespace, SandboxId};
use crate::memlock::ContainerPolicy;
use crate::sizing::Sizing;
use crate::vm::{Ending, Machine};
use crate::volumes::DirectVolume;

pub use self::create::CreateRequest;
pub use self::disks::DiskError;

/// For the guest to power itself off.
const GRACE: Duration = Duration::from_secs(2);

/// The status of what ended with the VM: as if killed (128 + SIGKILL).
const KILLED: u32 = 137;

/// The VM's life.
#[derive(Clone)]
enum Vm {
    Booting,
    Failed(BootError),
    Ready(Arc<Booted>),
    Ended { pid: u32, ending: Ending, exit: Exit },
}

/// A container.
pub struct Container {
    /// Its id.
    pub id: ContainerId,
    /// Its bundle on the host.
    pub bundle: PathBuf,
    /// Its first process.
    pub init: Arc<Process>,
    execs: Mutex<HashMap<ExecId, Arc<Process>>>,
    hooks: Option<ContainerHooks>,
    memlock: ContainerPolicy,
    /// Serializes start, pause, resume and delete.
    changes: tokio::sync::Mutex<()>,
    paused: AtomicBool,
    /// SIGKILL has been sent to its first process.
    doomed: AtomicBool,
    /// The guest has refused to forget it.
    undeletable: AtomicBool,
    /// The pid of a container that is not the sandbox's first.
    stand_in: Option<StandIn>,
}

impl Container {
    fn execs(&self) -> MutexGuard<'_, HashMap<ExecId, Arc<Process>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Slot {
    /// Somebody creates it.
    Creating(Arc<Process>),
    Ready(Arc<Container>),
}

/// A sandbox.
pub struct Sandbox {
    /// Its id.
    pub id: SandboxId,
    /// When it began.
    pub created_at: SystemTime,
    namespace: Namespace,
    host: Arc<dyn HostSide>,
    events: Publisher,
    expected: Expected,
    slots: Mutex<HashMap<ContainerId, Slot>>,
    /// The programs that run for `kata-ctl exec`: containerd does not know them.
    consoles: Mutex<HashMap<ContainerId, Arc<Process>>>,
    debug_console: bool,
    kernel: PathBuf,
    disks: Arc<Disks>,
    sizes: Sizes,
    /// Held by who makes the guest's network what the host's is: whether the guest has failed to follow the last time.
    network: tokio::sync::Mutex<bool>,
    vm: watch::Sender<Vm>,
    machine: Mutex<Option<Arc<dyn Machine>>>,
    stopping: watch::Sender<bool>,
    /// Why the VM has been given up, once it has been.
    given_up: watch::Sender<Option<String>>,
    patience: Duration,
    /// Direct-assigned volumes that have been given to a container, by their paths.
    direct_volumes: Mutex<HashMap<PathBuf, DirectVolume>>,
    /// The processes of forwarded connections, which containerd does not know.
    forwards: Mutex<HashMap<ExecId, oneshot::Sender<forward::Length>>>,
    next_forward: AtomicU64,
}

/// What a sandbox is made of.
pub struct Parts {
    /// Its id.
    pub id: SandboxId,
    /// containerd's namespace.
    pub namespace: Namespace,
    /// The host's side of its containers.
    pub host: Arc<dyn HostSide>,
    /// containerd's events.
    pub events: Publisher,
    /// Longest time without progress that the output of an ended process is waited for.
    pub patience: Duration,
    /// Whether programs may be run in the guest's own namespaces.
    pub debug_console: bool,
    /// The guest's kernel.
    pub kernel: PathBuf,
    /// How big the VM has to be.
    pub sizing: Sizing,
}

impl Sandbox {
    /// Begins to boot, and returns at once.
    #[must_use]
    pub fn start(parts: Parts, plan: BootPlan) -> Arc<Self> {
        let sandbox = Arc::new(Self {
            id: parts.id,
            created_at: SystemTime::now(),
            namespace: parts.namespace,
            host: parts.host,
            events: parts.events,
            expected: Expected::default(),
            slots: Mutex::default(),
            consoles: Mutex::default(),
            debug_console: parts.debug_console,
            kernel: parts.kernel,
            disks: Arc::default(),
            sizes: Sizes::new(parts.sizing),
            network: tokio::sync::Mutex::default(),
            vm: watch::Sender::new(Vm::Booting),
            machine: Mutex::default(),
            stopping: watch::Sender::new(false),
            given_up: watch::Sender::new(None),
            patience: parts.patience,
            direct_volumes: Mutex::default(),
            forwards: Mutex::default(),
            next_forward: AtomicU64::new(0),
        });
        tokio::spawn(Arc::clone(&sandbox).live(plan));
        sandbox
    }

    fn machine(&self) -> Option<Arc<dyn Machine>> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<ContainerId, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forwards(&self) -> MutexGuard<'_, HashMap<ExecId, oneshot::Sender<forward::Length>>> {
        self.forwards.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The VMM's pid; 0 before it runs. It stands for the sandbox: the guest's own pids mean nothing on the host.
    #[must_use]
    pub fn pid(&self) -> u32 {
        match &*self.vm.borrow() {
            Vm::Ended { pid, .. } => *pid,
            Vm::Ready(booted) => booted.machine.pid(),
            Vm::Booting | Vm::Failed(_) => self.machine().map_or(0, |machine| machine.pid()),
        }
    }

    /// The pid that stands for a container's processes: the VMM's, or one of its own for a further container of a pod.
    #[must_use]
    pub fn pid_of(&self, container: &Container) -> u32 {
        container.stand_in.as_ref().map_or_else(|| self.pid(), StandIn::pid)
    }

    /// Waits until the VM is up.
    ///
    /// # Errors
    /// It did not come up, or has ended.
    pub async fn ready(&self) -> Result<AgentClient, Error> {
        let mut vm = self.vm.subscribe();
        if vm.wait_for(|vm| !matches!(vm, Vm::Booting)).await.is_err() {
            return Err(self.boot_error(BootError::Stopped));
        }
        self.agent("create a container in", &format!("sandbox {}", self.id))
    }

    fn boot_error(&self, source: BootError) -> Error {
        Error::Boot {
            sandbox: self.id.to_string(),
            source,
        }
    }

    /// The agent, for a verb on a subject.
    fn agent(&self, operation: &'static str, subject: &str) -> Result<AgentClient, Error> {
        match &*self.vm.borrow() {
            Vm::Ready(booted) => Ok(booted.agent.clone()),
            Vm::Failed(error) => Err(self.boot_error(error.clone())),
            Vm::Booting => Err(Error::State {
                operation,
                subject: subject.to_owned(),
                state: "booting",
            }),
            Vm::Ended { ending, .. } => Err(Error::VmEnded {
                operation,
                subject: subject.to_owned(),
                reason: ending.reason.clone(),
            }),
        }
    }

    /// containerd's namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The containers that have been created, in the order of their ids.
    #[must_use]
    pub fn container_ids(&self) -> Vec<ContainerId> {
        let slots = self.slots();
        let made = slots.iter().filter(|(_, slot)| matches!(slot, Slot::Ready(_)));
        let mut ids: Vec<_> = made.map(|(id, _)| id.clone()).collect();
        ids.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        ids
    }

    /// A container that has been created.
    ///
    /// # Errors
    /// There is none of this id.
    pub fn container(&self, id: &ContainerId) -> Result<Arc<Container>, Error> {
        match self.slots().get(id) {
            Some(Slot::Ready(container)) => Ok(Arc::clone(container)),
            Some(Slot::Creating(_)) | None => Err(Error::NotFound {
                subject: format!("container {id}"),
            }),
        }
    }

    /// A process of a container.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn process(&self, name: &ProcessName) -> Result<(Arc<Container>, Arc<Process>), Error> {
        let container = self.container(&name.container)?;
        let process = match &name.exec {
            None => Some(Arc::clone(&container.init)),
            Some(exec) => container.execs().get(exec).cloned(),
        };
        match process {
            Some(process) => Ok((container, process)),
            None => Err(Error::NotFound {
                subject: name.to_string(),
            }),
        }
    }

    /// Whether it has no container. One that is in the making counts for nothing: it may wait for its mounts for ever.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let slots = self.slots();
        slots.values().all(|slot| matches!(slot, Slot::Creating(_)))
    }

    /// Whether the VM is up.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        matches!(&*self.vm.borrow(), Vm::Ready(_))
    }
}

fn ended(reason: &str) -> Ending {
    Ending {
        reason: reason.to_owned(),
        out_of_memory: false,
    }
}
