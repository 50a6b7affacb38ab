//! The sandbox service: containerd 2 uses it if its sandboxer is the shim. The VM is the sandbox.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use base::chain;
use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, CreateSandboxResponse, PingRequest, PingResponse, PlatformRequest, PlatformResponse,
    SandboxMetricsRequest, SandboxMetricsResponse, SandboxStatusRequest, SandboxStatusResponse, ShutdownSandboxRequest,
    ShutdownSandboxResponse, StartSandboxRequest, StartSandboxResponse, StopSandboxRequest, StopSandboxResponse,
    WaitSandboxRequest, WaitSandboxResponse,
};
use containerd_shim_protos::sandbox_async::Sandbox as SandboxApi;
use containerd_shim_protos::types::platform::Platform;
use guest::streams::StdioPaths;
use ttrpc::r#async::TtrpcContext;

use super::{Awaited, Service};
use crate::events::timestamp;
use crate::id::ContainerId;
use crate::sandbox::CreateRequest;
use crate::sandbox::error::Error;
use crate::sandbox::host::HostError;
use crate::sandbox::process::ProcessName;
use crate::service::pod_config;

/// How long the server's connections outlive its answer to ShutdownSandbox. A client that finds an answer and its connection's
/// end at the same time takes either (`dispatch` in containerd/ttrpc's client.go), and for the end of this one containerd fails the
/// pod's removal. A client that has its answer closes the connection itself.
const LINGER: Duration = Duration::from_secs(2);

impl Service {
    fn check(&self, id: &str) -> Result<(), Error> {
        if id == self.id.as_str() {
            return Ok(());
        }
        Err(Error::NotFound {
            subject: format!("sandbox {id:?}"),
        })
    }

    /// The id of the container that keeps the pod's namespaces: the sandbox's own.
    fn pause(&self) -> Result<ProcessName, Error> {
        Ok(ProcessName {
            container: ContainerId::new(self.id.as_str())?,
            exec: None,
        })
    }

    /// Leaves the sandbox's specification in the bundle, as containerd's own sandboxer would have done, and begins it.
    fn begin(&self, awaited: &Awaited, request: &CreateSandboxRequest) -> Result<(), Error> {
        let subject = || format!("sandbox {}", self.id);
        let invalid = |reason: String| Error::Invalid {
            what: "the configuration",
            subject: subject(),
            reason,
        };
        let _one = awaited.beginning.lock().unwrap_or_else(PoisonError::into_inner);
        if self.cell.get().is_some() {
            return Err(Error::Exists { subject: subject() });
        }
        let options = request
            .options
            .as_ref()
            .ok_or_else(|| invalid("it is missing".to_owned()))?;
        let spec = pod_config::specification(options, &request.netns_path, &self.id);
        let spec = spec.map_err(|error| invalid(chain(&error)))?;
        let path = awaited.bundle.join("config.json");
        std::fs::write(&path, spec.to_string()).map_err(|source| Error::Host {
            operation: "write the specification of",
            subject: subject(),
            source: HostError::Other(Box::new(source)),
        })?;
        let sandbox = (awaited.begin)()?;
        self.cell.set(sandbox).map_err(|_| Error::Exists { subject: subject() })
    }
}

#[async_trait]
impl SandboxApi for Service {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: CreateSandboxRequest,
    ) -> ttrpc::Result<CreateSandboxResponse> {
        self.check(&request.sandbox_id)?;
        // A sandbox that a bundle describes has been booting since the server was started.
        if let Some(awaited) = &self.awaited {
            self.begin(awaited, &request)?;
        }
        Ok(CreateSandboxResponse::new())
    }

    async fn start_sandbox(
        &self,
        _: &TtrpcContext,
        request: StartSandboxRequest,
    ) -> ttrpc::Result<StartSandboxResponse> {
        self.check(&request.sandbox_id)?;
        let sandbox = self.sandbox()?;
        sandbox.ready().await?;
        if let Some(awaited) = &self.awaited {
            let pause = self.pause()?;
            sandbox
                .create(CreateRequest {
                    id: pause.container.clone(),
                    bundle: awaited.bundle.clone(),
                    rootfs: Vec::new(),
                    stdio: StdioPaths::default(),
                })
                .await?;
            sandbox.start_process(&pause).await?;
        }
        Ok(StartSandboxResponse {
            pid: sandbox.pid(),
            created_at: Some(timestamp(sandbox.created_at)).into(),
            ..Default::default()
        })
    }

    async fn platform(&self, _: &TtrpcContext, request: PlatformRequest) -> ttrpc::Result<PlatformResponse> {
        self.check(&request.sandbox_id)?;
        let platform = Platform {
            os: "linux".to_owned(),
            // Go's names for architectures.
            architecture: match std::env::consts::ARCH {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                other => other,
            }
            .to_owned(),
            ..Default::default()
        };
        Ok(PlatformResponse {
            platform: Some(platform).into(),
            ..Default::default()
        })
    }

    async fn stop_sandbox(&self, _: &TtrpcContext, request: StopSandboxRequest) -> ttrpc::Result<StopSandboxResponse> {
        self.check(&request.sandbox_id)?;
        // One that never began has stopped.
        if let Some(sandbox) = self.cell.get() {
            sandbox.stop().await;
        }
        Ok(StopSandboxResponse::new())
    }

    async fn wait_sandbox(&self, _: &TtrpcContext, request: WaitSandboxRequest) -> ttrpc::Result<WaitSandboxResponse> {
        self.check(&request.sandbox_id)?;
        let sandbox = self.sandbox()?;
        // A pod without the process that keeps its namespaces is no pod: the first end of the two counts.
        let pause = sandbox.process(&self.pause()?).ok();
        let paused = async {
            match &pause {
                Some((_, pause)) => pause.stopped().await,
                None => std::future::pending().await,
            }
        };
        let exit = tokio::select! {
            exit = sandbox.ended() => exit,
            // Where the VM has ended, that is why the process has.
            exit = paused => if sandbox.is_ready() { exit } else { sandbox.ended().await },
        };
        Ok(WaitSandboxResponse {
            exit_status: exit.status,
            exited_at: Some(timestamp(exit.at)).into(),
            ..Default::default()
        })
    }

    async fn sandbox_status(
        &self,
        _: &TtrpcContext,
        request: SandboxStatusRequest,
    ) -> ttrpc::Result<SandboxStatusResponse> {
        self.check(&request.sandbox_id)?;
        let sandbox = self.sandbox()?;
        let state = if sandbox.is_ready() {
            "SANDBOX_READY"
        } else {
            "SANDBOX_NOTREADY"
        };
        Ok(SandboxStatusResponse {
            sandbox_id: request.sandbox_id,
            pid: sandbox.pid(),
            state: state.to_owned(),
            created_at: Some(timestamp(sandbox.created_at)).into(),
            ..Default::default()
        })
    }

    async fn ping_sandbox(&self, _: &TtrpcContext, request: PingRequest) -> ttrpc::Result<PingResponse> {
        self.check(&request.sandbox_id)?;
        Ok(PingResponse::new())
    }

    async fn shutdown_sandbox(
        &self,
        _: &TtrpcContext,
        request: ShutdownSandboxRequest,
    ) -> ttrpc::Result<ShutdownSandboxResponse> {
        self.check(&request.sandbox_id)?;
        let shutdown = Arc::clone(&self.shutdown);
        tokio::spawn(async move {
            tokio::time::sleep(LINGER).await;
            shutdown.notify_one();
        });
        Ok(ShutdownSandboxResponse::new())
    }

    async fn sandbox_metrics(
        &self,
        _: &TtrpcContext,
        request: SandboxMetricsRequest,
    ) -> ttrpc::Result<SandboxMetricsResponse> {
        self.check(&request.sandbox_id)?;
        // The figures of a pod's sandbox are those of its first container, which has its id, as they are where
        // containerd's own sandboxer asks for them.
        let id = ContainerId::new(&request.sandbox_id).map_err(Error::from)?;
        let mut response = SandboxMetricsResponse::new();
        // The crate does not export this message's type.
        let metrics = response.metrics.mut_or_insert_default();
        metrics.timestamp = Some(timestamp(SystemTime::now())).into();
        metrics.data = Some(self.cgroup_metrics(&id).await?).into();
        metrics.id = request.sandbox_id;
        Ok(response)
    }
}
