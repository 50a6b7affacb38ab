//! One container: its processes, its cgroup, and its phase, which decides the allowed requests.
//!
//! ```text
//!            launch            Start          execve
//!  Creating ───────► Created ───────► Starting ─────► Running ◄──► Paused
//!                       │                │               │            │
//!                       └────────────────┴───────────────┴────────────┴──► Stopped ──► Delete
//!                                     the first process ends
//! ```
//!
//! The lock is never held across an await, so a slow launch blocks no other request.

mod control;
pub(crate) mod events;
mod launching;
mod memlock;
pub(crate) mod oom;
mod phase;
pub(crate) mod process;
pub(crate) mod reaper;
mod supervise;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use oci_spec::runtime::{LinuxResources, Spec};
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

use self::events::Events;
use self::oom::OomReporter;
use self::process::Process;
use self::reaper::Reaper;
use crate::cgroup::{self, Cgroup};
use crate::common::blocking;
use crate::common::ids::{ContainerId, ExecId};
use crate::connections::dial::Dialer;
use crate::error::Error;
use crate::files::storage::{Plugged, rewrite_limits};
pub(crate) use launching::Joined;
use phase::Life;
pub(crate) use protocol::phase::Verb;

#[derive(Debug, Clone)]
pub(crate) struct Services {
    pub(crate) dialer: Dialer,
    pub(crate) events: Events,
    pub(crate) reaper: Reaper,
}

/// A name that is taken, and the process once there is one.
#[derive(Debug)]
enum Slot {
    /// The launch ends when this is notified.
    Launching(Arc<Notify>),
    Process(Box<Process>),
}

#[derive(Debug)]
struct State {
    life: Life,
    processes: HashMap<ExecId, Slot>,
}

/// One container. Shared by the requests for it and the supervisors of its processes.
#[derive(Debug)]
pub(crate) struct Container {
    id: ContainerId,
    spec: Box<Spec>,
    /// Those that limits may name.
    disks: Vec<Plugged>,
    cgroup: Arc<Cgroup>,
    oom: Arc<OomReporter>,
    oom_task: AbortHandle,
    services: Services,
    state: Mutex<State>,
    /// Whether its first process has ended: no exec may be under way any longer then.
    stopped: watch::Sender<bool>,
}

impl Drop for Container {
    fn drop(&mut self) {
        self.oom_task.abort();
    }
}

impl Container {
    /// A container with its cgroup and limits, without a process.
    ///
    /// # Errors
    /// The cgroup cannot be made as the specification asks.
    pub(crate) async fn new(
        id: ContainerId,
        mut spec: Spec,
        disks: Vec<Plugged>,
        services: Services,
    ) -> Result<Self, Error> {
        let linux = spec.linux_mut().as_mut();
        let mut resources = linux.and_then(|linux| linux.resources_mut().as_mut());
        if let Some(resources) = &mut resources {
            limit_own_disks(&id, resources, &disks);
        }
        let in_cgroup = |source| Error::Cgroup { id: id.clone(), source };
        let (owner, resources) = (id.clone(), resources.cloned());
        // The kernel may have to reclaim memory for a limit.
        let made = blocking::run(move || {
            let cgroup = Cgroup::create(&owner)?;
            let limited = limit(&cgroup, resources.as_ref());
            Ok((Arc::new(cgroup), limited))
        });
        let made = made.await.map_err(|source| Error::System {
            id: id.clone(),
            what: "make the cgroup",
            source,
        })?;
        let (cgroup, limited) = made.map_err(in_cgroup)?;
        let changes = match limited.and_then(|()| cgroup.oom_changes()) {
            Ok(changes) => changes,
            Err(source) => {
                // What failed first is the better thing to say.
                let _ = cgroup.remove().await;
                return Err(in_cgroup(source));
            }
        };
        let oom = Arc::new(OomReporter::new(
            id.clone(),
            Arc::clone(&cgroup),
            services.events.clone(),
        ));
        let oom_task = tokio::spawn(Arc::clone(&oom).run(changes)).abort_handle();
        Ok(Self {
            id,
            spec: Box::new(spec),
            disks,
            cgroup,
            oom,
            oom_task,
            services,
            state: Mutex::new(State {
                life: Life::Creating,
                processes: HashMap::new(),
            }),
            stopped: watch::Sender::new(false),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn in_cgroup(&self, source: cgroup::Error) -> Error {
        Error::Cgroup {
            id: self.id.clone(),
            source,
        }
    }

    fn system(&self, what: &'static str) -> impl FnOnce(std::io::Error) -> Error {
        let id = self.id.clone();
        move |source| Error::System { id, what, source }
    }

    fn check(&self, state: &State, verb: Verb) -> Result<(), Error> {
        let phase = state.life.phase();
        if phase.allows(verb) {
            return Ok(());
        }
        Err(Error::Phase {
            id: self.id.clone(),
            verb,
            phase,
        })
    }

    fn process<'a>(&self, state: &'a State, exec: &ExecId) -> Result<&'a Process, Error> {
        match state.processes.get(exec) {
            Some(Slot::Process(process)) => Ok(process),
            Some(Slot::Launching(_)) | None => Err(Error::NoProcess(self.id.clone(), exec.clone())),
        }
    }
}

/// Sets what the specification limits, and the devices that it allows. Blocks.
fn limit(cgroup: &Cgroup, resources: Option<&LinuxResources>) -> Result<(), cgroup::Error> {
    if let Some(resources) = resources {
        cgroup.apply(resources)?;
    }
    let devices = resources.and_then(|resources| resources.devices().as_deref());
    cgroup.restrict_devices(devices.unwrap_or_default())
}

/// Gives limits of I/O the guest's numbers of the container's disks. For files that the host shares there is nothing to limit here.
fn limit_own_disks(id: &ContainerId, resources: &mut LinuxResources, disks: &[Plugged]) {
    let missing = rewrite_limits(resources, disks);
    if !missing.is_empty() {
        tracing::warn!(
            container = %id,
            devices = missing.join(" "),
            "limits of I/O are left out: these devices of the host are no disks of the container in the guest"
        );
    }
}

impl State {
    fn live(&self) -> impl Iterator<Item = (&ExecId, &Process)> {
        self.processes.iter().filter_map(|(exec, slot)| match slot {
            Slot::Process(process) if !process.ended => Some((exec, &**process)),
            Slot::Process(_) | Slot::Launching(_) => None,
        })
    }
}
