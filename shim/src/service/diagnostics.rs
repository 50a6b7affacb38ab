//! The diagnostics service for `kata-ctl`. Its requests change nothing, except through a console, for which the caller is
//! responsible, and the resize of a volume.

use std::path::Path;

use async_trait::async_trait;
use protocol::agent::{MemlockRequest, StorageStatsResponse};
use protocol::diagnostics::{
    ConsoleRequest, ConsoleResponse, HealthRequest, HealthResponse, MemlockResponse, MetricsRequest, MetricsResponse,
    ResizeConsoleRequest, ResizeConsoleResponse, ResizeVolumeRequest, SandboxInfo, SandboxRequest, VcpusRequest,
    VcpusResponse, VolumeRequest, VolumeStatsResponse,
};
use protocol::diagnostics_ttrpc::Diagnostics;
use ttrpc::r#async::TtrpcContext;

use super::{Service, inspect};
use crate::id::ContainerId;
use crate::metrics::{self, Scraper};
use crate::sandbox::error::Error;

#[async_trait]
impl Diagnostics for Service {
    async fn sandbox(&self, _: &TtrpcContext, _: SandboxRequest) -> ttrpc::Result<SandboxInfo> {
        Ok(SandboxInfo {
            namespace: self.sandbox()?.namespace().to_string(),
            sandbox_id: self.sandbox()?.id.to_string(),
            container_ids: self
                .sandbox()?
                .container_ids()
                .iter()
                .map(ToString::to_string)
                .collect(),
            ..Default::default()
        })
    }

    async fn health(&self, _: &TtrpcContext, _: HealthRequest) -> ttrpc::Result<HealthResponse> {
        Ok(inspect::health(self.sandbox()?).await)
    }

    async fn vcpus(&self, _: &TtrpcContext, _: VcpusRequest) -> ttrpc::Result<VcpusResponse> {
        inspect::vcpus(self.sandbox()?).await
    }

    async fn metrics(&self, _: &TtrpcContext, _: MetricsRequest) -> ttrpc::Result<MetricsResponse> {
        Ok(MetricsResponse {
            text: metrics::render(self.sandbox()?, Scraper::Ctl).await,
            ..Default::default()
        })
    }

    async fn console(&self, _: &TtrpcContext, request: ConsoleRequest) -> ttrpc::Result<ConsoleResponse> {
        inspect::console(self.sandbox()?, request).await
    }

    async fn resize_console(
        &self,
        _: &TtrpcContext,
        request: ResizeConsoleRequest,
    ) -> ttrpc::Result<ResizeConsoleResponse> {
        let ResizeConsoleRequest {
            console_id,
            columns,
            rows,
            ..
        } = request;
        self.sandbox()?.resize_console(&console_id, columns, rows).await?;
        Ok(ResizeConsoleResponse::new())
    }

    async fn volume_stats(&self, _: &TtrpcContext, request: VolumeRequest) -> ttrpc::Result<VolumeStatsResponse> {
        let stats = self.sandbox()?.volume_stats(Path::new(&request.path)).await?;
        Ok(volume(stats))
    }

    async fn resize_volume(
        &self,
        _: &TtrpcContext,
        request: ResizeVolumeRequest,
    ) -> ttrpc::Result<VolumeStatsResponse> {
        let ResizeVolumeRequest { path, size, .. } = request;
        let stats = self.sandbox()?.resize_volume(Path::new(&path), size).await?;
        Ok(volume(stats))
    }

    async fn memlock(&self, _: &TtrpcContext, request: MemlockRequest) -> ttrpc::Result<MemlockResponse> {
        let id = ContainerId::new(&request.container_id).map_err(Error::from)?;
        let (report, policy) = self.sandbox()?.memlock(&id, request).await?;
        Ok(MemlockResponse {
            report: Some(report).into(),
            policy: Some(policy).into(),
            ..Default::default()
        })
    }
}

fn volume(stats: StorageStatsResponse) -> VolumeStatsResponse {
    VolumeStatsResponse {
        stats: Some(stats).into(),
        ..Default::default()
    }
}
