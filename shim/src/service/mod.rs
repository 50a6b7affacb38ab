//! containerd's services: decode, check, call the sandbox, encode. They hold no state of containers.

mod sandbox_api;
mod task;

use std::collections::HashMap;
use std::sync::Arc;

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::sandbox_async::create_sandbox;
use containerd_shim_protos::shim_async::create_task;
use tokio::sync::Notify;
use ttrpc::r#async::Service as Methods;

use crate::id::ContainerId;
use crate::sandbox::Sandbox;
use crate::stats::{CgroupMode, metrics};

const TASK_V2: &str = "containerd.task.v2.Task";

/// The services of one sandbox.
pub struct Service {
    sandbox: Arc<Sandbox>,
    /// The server is to end.
    shutdown: Arc<Notify>,
}

impl Service {
    /// Serves the sandbox; `shutdown` is notified when containerd wants the server to end.
    #[must_use]
    pub fn new(sandbox: Arc<Sandbox>, shutdown: Arc<Notify>) -> Self {
        Self { sandbox, shutdown }
    }

    /// A container's figures in the form of the host's version of cgroups.
    async fn metrics(&self, id: &ContainerId) -> ttrpc::Result<Any> {
        let stats = self.sandbox.stats(id).await?;
        metrics(&stats, CgroupMode::of_host()).map_err(|error| ttrpc::Error::Others(error.to_string()))
    }

    /// The method tables. The task service has both of its names: version 3 of it has the same methods and messages as
    /// version 2, and which one is called depends on containerd's version.
    #[must_use]
    pub fn methods(self) -> HashMap<String, Methods> {
        let service = Arc::new(self);
        let mut methods = create_task(Arc::clone(&service) as Arc<_>);
        methods.extend(
            create_task(Arc::clone(&service) as Arc<_>)
                .into_values()
                .map(|table| (TASK_V2.to_owned(), table)),
        );
        methods.extend(create_sandbox(service));
        methods
    }
}
