//! The services for containerd and `kata-ctl`: decode, check, call the sandbox, encode. They hold no state of containers.

mod diagnostics;
mod inspect;
pub mod pod_config;
mod sandbox_api;
pub mod stats;
mod status;
mod task;
mod timed;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::sandbox_async::create_sandbox;
use containerd_shim_protos::shim_async::create_task;
use protocol::diagnostics_ttrpc::create_diagnostics;
use tokio::sync::Notify;
use ttrpc::r#async::Service as Methods;

use crate::id::{ContainerId, SandboxId};
use crate::sandbox::Sandbox;
use crate::sandbox::error::Error;
use crate::service::stats::{CgroupMode, metrics};

const TASK_V2: &str = "containerd.task.v2.Task";

pub type SandboxCell = Arc<OnceLock<Arc<Sandbox>>>;

/// Begins a sandbox whose bundle has its specification now.
pub type Begin = Box<dyn Fn() -> Result<Arc<Sandbox>, Error> + Send + Sync>;

/// What it takes to begin a sandbox when containerd says what it is: by CreateSandbox, and not by a bundle.
pub struct Awaited {
    /// The bundle that the specification is written into.
    pub bundle: PathBuf,
    pub begin: Begin,
    /// Held while it is begun: a second request finds that there is one.
    pub beginning: Mutex<()>,
}

pub struct Service {
    id: SandboxId,
    cell: SandboxCell,
    awaited: Option<Awaited>,
    /// The server is to end.
    shutdown: Arc<Notify>,
}

impl Service {
    /// Serves the sandbox; `shutdown` is notified when containerd wants the server to end.
    #[must_use]
    pub fn new(sandbox: Arc<Sandbox>, shutdown: Arc<Notify>) -> Self {
        Self {
            id: sandbox.id.clone(),
            cell: Arc::new(OnceLock::from(sandbox)),
            awaited: None,
            shutdown,
        }
    }

    /// Serves a sandbox that containerd will describe by CreateSandbox; it is in `cell` from then on.
    #[must_use]
    pub fn awaiting(id: SandboxId, cell: SandboxCell, awaited: Awaited, shutdown: Arc<Notify>) -> Self {
        Self {
            id,
            cell,
            awaited: Some(awaited),
            shutdown,
        }
    }

    fn sandbox(&self) -> Result<&Arc<Sandbox>, Error> {
        self.cell.get().ok_or_else(|| Error::State {
            operation: "use",
            subject: format!("sandbox {}", self.id),
            state: "not created yet",
        })
    }

    /// A container's figures in the form of the host's version of cgroups.
    async fn cgroup_metrics(&self, id: &ContainerId) -> ttrpc::Result<Any> {
        let stats = self.sandbox()?.stats(id).await?;
        metrics(&stats, CgroupMode::of_host()).map_err(|error| ttrpc::Error::Others(error.to_string()))
    }

    /// The method tables. The task service has both of its names: version 3 of it has the same methods and messages as
    /// version 2, and which one is called depends on containerd's version.
    #[must_use]
    pub fn methods(self) -> HashMap<String, Methods> {
        let service = Arc::new(self);
        let mut methods = create_task(Arc::clone(&service) as Arc<_>);
        for table in methods.values_mut() {
            timed::measure(table, &service.cell);
        }
        methods.extend(
            create_task(Arc::clone(&service) as Arc<_>)
                .into_values()
                .map(|mut table| {
                    timed::measure(&mut table, &service.cell);
                    (TASK_V2.to_owned(), table)
                }),
        );
        methods.extend(create_diagnostics(Arc::clone(&service) as Arc<_>));
        methods.extend(create_sandbox(service));
        methods
    }
}
