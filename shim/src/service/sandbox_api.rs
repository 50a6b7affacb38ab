//! The sandbox service: containerd 2 uses it where its sandboxer is the shim. The VM is the sandbox.

use std::time::SystemTime;

use async_trait::async_trait;
use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, CreateSandboxResponse, PingRequest, PingResponse, PlatformRequest, PlatformResponse,
    SandboxMetricsRequest, SandboxMetricsResponse, SandboxStatusRequest, SandboxStatusResponse, ShutdownSandboxRequest,
    ShutdownSandboxResponse, StartSandboxRequest, StartSandboxResponse, StopSandboxRequest, StopSandboxResponse,
    WaitSandboxRequest, WaitSandboxResponse,
};
use containerd_shim_protos::sandbox_async::Sandbox as SandboxApi;
use containerd_shim_protos::types::platform::Platform;
use ttrpc::r#async::TtrpcContext;

use super::Service;
use crate::error::Error;
use crate::events::timestamp;
use crate::id::ContainerId;

impl Service {
    fn check(&self, id: &str) -> Result<(), Error> {
        if id == self.sandbox.id.as_str() {
            return Ok(());
        }
        Err(Error::NotFound {
            subject: format!("sandbox {id:?}"),
        })
    }
}

#[async_trait]
impl SandboxApi for Service {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: CreateSandboxRequest,
    ) -> ttrpc::Result<CreateSandboxResponse> {
        // It has been booting since the server was started.
        self.check(&request.sandbox_id)?;
        Ok(CreateSandboxResponse::new())
    }

    async fn start_sandbox(
        &self,
        _: &TtrpcContext,
        request: StartSandboxRequest,
    ) -> ttrpc::Result<StartSandboxResponse> {
        self.check(&request.sandbox_id)?;
        self.sandbox.ready().await?;
        Ok(StartSandboxResponse {
            pid: self.sandbox.pid(),
            created_at: Some(timestamp(self.sandbox.created_at)).into(),
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
        self.sandbox.stop().await;
        Ok(StopSandboxResponse::new())
    }

    async fn wait_sandbox(&self, _: &TtrpcContext, request: WaitSandboxRequest) -> ttrpc::Result<WaitSandboxResponse> {
        self.check(&request.sandbox_id)?;
        let exit = self.sandbox.ended().await;
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
        let state = if self.sandbox.is_ready() {
            "SANDBOX_READY"
        } else {
            "SANDBOX_NOTREADY"
        };
        Ok(SandboxStatusResponse {
            sandbox_id: request.sandbox_id,
            pid: self.sandbox.pid(),
            state: state.to_owned(),
            created_at: Some(timestamp(self.sandbox.created_at)).into(),
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
        self.shutdown.notify_one();
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
        metrics.data = Some(self.metrics(&id).await?).into();
        metrics.id = request.sandbox_id;
        Ok(response)
    }
}
