//! The `Agent` service: decodes and checks a request, calls the sandbox, encodes the answer. No policy.

mod status;
mod traced;

use std::sync::Arc;

use async_trait::async_trait;
use protocol::agent::{
    CloseStdinRequest, ContainerCreated, ContainerId as ContainerRequest, CreateContainerRequest, DeleteResponse,
    Empty, ExecRequest, GrowStorageRequest, GuestMetricsResponse, HostChanges, MemlockReport, MemlockRequest,
    NameServer, Network, ProcessId, ProcessStarted, ResizeRequest, ResizeTerminalRequest, SignalRequest, StatsResponse,
    StorageName, StorageStatsResponse, UpdateRequest, UpdateStorageRequest,
};
use protocol::agent_ttrpc::Agent;
use serde::de::DeserializeOwned;
use ttrpc::r#async::TtrpcContext;

use crate::cgroup;
use crate::common::blocking;
use crate::common::ids::{ContainerId, ExecId};
use crate::container::Container;
use crate::error::{Error, ResizeError};
use crate::files::tmpfs;
use crate::network::GuestNetwork;
use crate::server::sandbox::{Deleted, Sandbox, Wanted};

pub(crate) use self::traced::trace;

#[derive(Debug)]
pub(crate) struct Service(Arc<Sandbox>, Arc<GuestNetwork>);

impl Service {
    pub(crate) fn new(sandbox: Arc<Sandbox>, network: Arc<GuestNetwork>) -> Self {
        Self(sandbox, network)
    }

    fn container(&self, id: &str) -> Result<Arc<Container>, Error> {
        self.0.container(&ContainerId::new(id)?)
    }

    fn process(&self, process: &ProcessId) -> Result<(Arc<Container>, ExecId), Error> {
        let exec = ExecId::new(&process.exec_id)?;
        Ok((self.container(&process.container_id)?, exec))
    }

    async fn try_create(&self, request: &CreateContainerRequest) -> Result<ContainerCreated, Error> {
        let id = ContainerId::new(&request.container_id)?;
        let mut spec = json(&id, "the specification", &request.spec)?;
        let stdio = request.stdio.clone().unwrap_or_default();
        cgroup::grows_to(request.memory_grows_to_bytes);
        tmpfs::size(&mut spec, request.memory_grows_to_bytes);
        let wanted = Wanted {
            id,
            spec,
            stdio,
            storages: request.storages.clone(),
            devices: request.devices.clone(),
            covers: request.covers.clone(),
            sockets: request.sockets.clone(),
            bundle: request.bundle.clone().into(),
            device_names: request.device_names.clone(),
        };
        let created = self.0.create(wanted, &request.join_namespaces).await?;
        Ok(ContainerCreated {
            pid: created.pid,
            covered: created.covered,
            ..ContainerCreated::default()
        })
    }

    async fn try_exec(&self, request: &ExecRequest) -> Result<u32, Error> {
        let id = ContainerId::new(&request.container_id)?;
        let exec = ExecId::new(&request.exec_id)?;
        if exec == ExecId::Init {
            return Err(Error::ProcessExists(id, exec));
        }
        let process = json(&id, "the process", &request.process)?;
        self.0.container(&id)?.exec(exec, process, &request.stdio).await
    }

    async fn try_update(&self, request: &UpdateRequest) -> Result<(), Error> {
        let id = ContainerId::new(&request.container_id)?;
        let resources = json(&id, "resources", &request.resources)?;
        self.0.container(&id)?.update(resources).await
    }

    async fn try_delete(&self, request: &ProcessId) -> Result<Deleted, Arc<Error>> {
        let id = ContainerId::new(&request.container_id).map_err(Error::from)?;
        match ExecId::new(&request.exec_id).map_err(Error::from)? {
            ExecId::Init => self.0.delete(&id).await,
            exec @ ExecId::Exec(_) => {
                self.0.container(&id)?.delete_exec(&exec)?;
                Ok(Deleted::All)
            }
        }
    }
}

impl Service {
    /// One after the other, and in the order in which the host made them.
    async fn try_report(&self, request: HostChanges) -> Result<(), Error> {
        let volumes = self.0.volumes().clone();
        // Each may ask the host's file system.
        let telling = blocking::run(move || request.changes.iter().try_for_each(|change| volumes.tell(change)));
        telling.await.flatten().map_err(Error::NoChanges)
    }
}

fn json<T: DeserializeOwned>(id: &ContainerId, what: &'static str, bytes: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|source| Error::Json {
        id: id.clone(),
        what,
        source,
    })
}

fn started(pid: u32) -> ProcessStarted {
    ProcessStarted {
        pid,
        ..ProcessStarted::default()
    }
}

fn done(verb: &'static str, result: Result<(), Error>) -> ttrpc::Result<Empty> {
    answer(verb, result.map(|()| Empty::default()))
}

fn answer<T>(verb: &'static str, result: Result<T, Error>) -> ttrpc::Result<T> {
    result.map_err(|error| refused(verb, &error))
}

fn refused(verb: &'static str, error: &Error) -> ttrpc::Error {
    let message = base::chain(error);
    tracing::warn!(verb, error = message, "refused");
    ttrpc::Error::RpcStatus(ttrpc::get_status(status::code(error), message))
}

#[async_trait]
impl Agent for Service {
    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> ttrpc::Result<ContainerCreated> {
        answer("create", Box::pin(self.try_create(&request)).await)
    }

    async fn start_container(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<Empty> {
        let result = match self.container(&request.container_id) {
            Ok(container) => container.start().await,
            Err(error) => Err(error),
        };
        done("start", result)
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecRequest) -> ttrpc::Result<ProcessStarted> {
        answer("exec", Box::pin(self.try_exec(&request)).await.map(started))
    }

    async fn report_changes(&self, _: &TtrpcContext, request: HostChanges) -> ttrpc::Result<Empty> {
        done("report changes", self.try_report(request).await)
    }

    async fn signal(&self, _: &TtrpcContext, request: SignalRequest) -> ttrpc::Result<Empty> {
        let result = self
            .process(&request.process)
            .and_then(|(container, exec)| container.signal(&exec, request.signal, request.all));
        done("signal", result)
    }

    async fn resize_terminal(&self, _: &TtrpcContext, request: ResizeTerminalRequest) -> ttrpc::Result<Empty> {
        let result = self
            .process(&request.process)
            .and_then(|(container, exec)| container.resize(&exec, request.columns, request.rows));
        done("resize", result)
    }

    async fn close_stdin(&self, _: &TtrpcContext, request: CloseStdinRequest) -> ttrpc::Result<Empty> {
        let result = self
            .process(&request.process)
            .and_then(|(container, exec)| container.close_stdin(&exec, request.length));
        done("close stdin", result)
    }

    async fn stats(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<StatsResponse> {
        let stats = match self.container(&request.container_id) {
            Ok(container) => container.stats().await,
            Err(error) => Err(error),
        };
        answer("stats", stats)
    }

    async fn pause(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<Empty> {
        let result = match self.container(&request.container_id) {
            Ok(container) => container.pause().await,
            Err(error) => Err(error),
        };
        done("pause", result)
    }

    async fn resume(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<Empty> {
        let result = match self.container(&request.container_id) {
            Ok(container) => container.resume().await,
            Err(error) => Err(error),
        };
        done("resume", result)
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateRequest) -> ttrpc::Result<Empty> {
        done("update", self.try_update(&request).await)
    }

    async fn delete(&self, _: &TtrpcContext, request: ProcessId) -> ttrpc::Result<DeleteResponse> {
        match self.try_delete(&request).await {
            Ok(Deleted::All) => Ok(DeleteResponse {
                finished: true,
                ..DeleteResponse::default()
            }),
            Ok(Deleted::NotYet { progress, waits_for }) => Ok(DeleteResponse {
                progress,
                waits_for: waits_for.to_owned(),
                ..DeleteResponse::default()
            }),
            Err(error) => Err(refused("delete", &error)),
        }
    }

    async fn guest_metrics(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<GuestMetricsResponse> {
        Ok(crate::guest::metrics::guest())
    }

    async fn memlock(&self, _: &TtrpcContext, request: MemlockRequest) -> ttrpc::Result<MemlockReport> {
        let report = match self.container(&request.container_id) {
            Ok(container) => container.memlock(request.pid, request.pages).await,
            Err(error) => Err(error),
        };
        answer("memlock", report)
    }

    async fn shutdown(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Empty> {
        self.0.shut_down().await;
        Ok(Empty::default())
    }

    async fn resize(&self, _: &TtrpcContext, request: ResizeRequest) -> ttrpc::Result<Empty> {
        cgroup::grows_to(request.memory_grows_to_bytes);
        // Memory first: it is there already, and CPUs may take their time.
        let kept = blocking::run(|| {
            crate::guest::inherited::renew();
            cgroup::renew_reserve()
        })
        .await;
        let result = match kept {
            Ok(Ok(())) => crate::guest::cpus::online(request.cpus)
                .await
                .map_err(ResizeError::from),
            Ok(Err(error)) => Err(error.into()),
            Err(error) => Err(ResizeError::Thread(error)),
        };
        done("resize", result.map_err(Error::Resize))
    }

    async fn update_network(&self, _: &TtrpcContext, request: Network) -> ttrpc::Result<Empty> {
        done("update the network", self.1.apply(&request).await.map_err(Error::from))
    }

    async fn serve_names(&self, _: &TtrpcContext, request: NameServer) -> ttrpc::Result<Empty> {
        let served = self.0.names().serve(&request).await;
        done("serve names", served.map_err(Error::from))
    }

    async fn storage_stats(&self, _: &TtrpcContext, request: StorageName) -> ttrpc::Result<StorageStatsResponse> {
        let stats = self.0.storages().stats(&request.name).await;
        answer("ask for the use of a storage", stats.map_err(Error::Volume))
    }

    async fn update_storage(&self, _: &TtrpcContext, request: UpdateStorageRequest) -> ttrpc::Result<Empty> {
        let updated = self.0.storages().update(&request.name, request.entries).await;
        done("update a storage", updated.map_err(Error::Volume))
    }

    async fn grow_storage(&self, _: &TtrpcContext, request: GrowStorageRequest) -> ttrpc::Result<StorageStatsResponse> {
        let grown = self.0.storages().grow(&request.name, request.bytes).await;
        answer("grow a storage", grown.map_err(Error::Volume))
    }
}
