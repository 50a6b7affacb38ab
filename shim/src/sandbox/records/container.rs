//! The record of one container: what it was created from, its processes, and what later steps need.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use containerd_shim_protos::types::mount::Mount;
use guest::rate_limited::Window;
use guest::streams::StdioPaths;
use node::guest_spec::Inherited;
use node::memlock::ContainerPolicy;
use protocol::agent::CreateContainerRequest;

use crate::id::{ContainerId, ExecId};
use crate::sandbox::host::{ContainerHooks, GuestContainer};
use crate::sandbox::records::process::{Process, ProcessName};
use crate::sandbox::records::stand_in::StandIn;

#[derive(Debug, Clone)]
pub struct CreateRequest {
    pub id: ContainerId,
    /// Its bundle on the host.
    pub bundle: PathBuf,
    /// How its rootfs is mounted; empty if the bundle has it.
    pub rootfs: Vec<Mount>,
    pub stdio: StdioPaths,
}

/// What the steps of a creation leave for the next one.
#[derive(Default)]
pub(in crate::sandbox) struct Making {
    pub(in crate::sandbox) guest: Option<GuestContainer>,
    pub(in crate::sandbox) call: Option<Box<CreateContainerRequest>>,
}

pub struct Container {
    pub id: ContainerId,
    /// Its bundle on the host.
    pub bundle: PathBuf,
    pub init: Arc<Process>,
    pub(in crate::sandbox) rootfs: Vec<Mount>,
    pub(in crate::sandbox) execs: Mutex<HashMap<ExecId, Arc<Process>>>,
    pub(in crate::sandbox) making: Mutex<Making>,
    pub(in crate::sandbox) hooks: OnceLock<Option<ContainerHooks>>,
    pub(in crate::sandbox) memlock: OnceLock<ContainerPolicy>,
    /// What its execs have of its process.
    pub(in crate::sandbox) inherited: OnceLock<Inherited>,
    /// The host's file that it has for its resolv.conf.
    pub(in crate::sandbox) resolv_conf: OnceLock<Option<PathBuf>>,
    /// The pid of a container that is not the sandbox's first.
    pub(in crate::sandbox) stand_in: OnceLock<StandIn>,
    /// Its OOM kills, of which the guest may report any number.
    ooms: Mutex<Window>,
}

impl Container {
    pub(in crate::sandbox) fn new(request: CreateRequest) -> Self {
        let name = ProcessName::init(request.id.clone());
        Self {
            id: request.id,
            bundle: request.bundle,
            init: Arc::new(Process::new(name, request.stdio, Vec::new())),
            rootfs: request.rootfs,
            execs: Mutex::default(),
            making: Mutex::default(),
            hooks: OnceLock::new(),
            memlock: OnceLock::new(),
            inherited: OnceLock::new(),
            resolv_conf: OnceLock::new(),
            stand_in: OnceLock::new(),
            ooms: Mutex::new(Window::new(Instant::now())),
        }
    }

    pub(in crate::sandbox) fn execs(&self) -> MutexGuard<'_, HashMap<ExecId, Arc<Process>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether containerd is told of one more OOM kill. It logs each, and knows of the kill already if there were many.
    pub(in crate::sandbox) fn tells_of_oom(&self) -> bool {
        let mut ooms = self.ooms.lock().unwrap_or_else(PoisonError::into_inner);
        ooms.admits(Instant::now())
    }

    pub(in crate::sandbox) fn making(&self) -> MutexGuard<'_, Making> {
        self.making.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(in crate::sandbox) fn hooks(&self) -> Option<&ContainerHooks> {
        self.hooks.get().and_then(Option::as_ref)
    }

    pub(in crate::sandbox) fn find(&self, exec: Option<&ExecId>) -> Option<Arc<Process>> {
        match exec {
            None => Some(Arc::clone(&self.init)),
            Some(exec) => self.execs().get(exec).cloned(),
        }
    }

    pub(in crate::sandbox) fn subject(&self) -> String {
        self.init.name.to_string()
    }
}
