//! Requests to a sandbox's shim over its socket. Each has a time limit: a shim that hangs is reported.

use std::time::Duration;

use protocol::agent::StorageStatsResponse;
use protocol::diagnostics::{
    ConsoleRequest, HealthRequest, HealthResponse, MetricsRequest, ResizeConsoleRequest, ResizeVolumeRequest,
    VcpusRequest, VcpusResponse, VolumeRequest, VolumeStatsResponse,
};
use protocol::diagnostics_ttrpc::DiagnosticsClient;
use ttrpc::Code;
use ttrpc::r#async::Client;
use ttrpc::context::{self, Context};

use super::Found;

/// Timeout for an answer: the shim itself waits for the guest for 4 s and, meanwhile, for QEMU for 3.
const ANSWER: Duration = Duration::from_secs(6);

/// Timeout for all figures: the shim waits for the guest for 4 s. With the connection it is less than the 10 s that Prometheus waits
/// (`scrape_timeout`), so that one shim that hangs costs the figures of no other sandbox.
const FIGURES: Duration = Duration::from_secs(7);

/// Timeout for a file system to grow: the shim gives the guest two minutes.
const GROWTH: Duration = Duration::from_secs(150);

/// Timeout for a connection.
const CONNECT: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub(crate) enum ShimError {
    #[error("the shim of sandbox {sandbox} cannot be asked: {reason}")]
    Gone { sandbox: String, reason: String },
    #[error("{0}")]
    Refused(String),
    #[error("the shim of sandbox {sandbox} has not answered for {} s: it hangs", limit.as_secs())]
    Hung { sandbox: String, limit: Duration },
}

#[derive(Clone)]
pub(crate) struct Shim {
    sandbox: String,
    client: DiagnosticsClient,
}

impl Shim {
    /// Connects. A socket that nobody serves is an error at once.
    pub(crate) async fn connect(found: &Found) -> Result<Self, ShimError> {
        let sandbox = found.id().to_owned();
        let gone = |reason| ShimError::Gone {
            sandbox: sandbox.clone(),
            reason,
        };
        found.shim().map_err(gone)?;
        let address = format!("unix://{}", found.socket().display());
        let connecting = tokio::time::timeout(CONNECT, Client::connect(&address)).await;
        let client = connecting
            .map_err(|_| ShimError::Hung {
                sandbox: sandbox.clone(),
                limit: CONNECT,
            })?
            .map_err(|error| gone(format!("{}: {error}", found.socket().display())))?;
        Ok(Self {
            sandbox,
            client: DiagnosticsClient::new(client),
        })
    }

    pub(crate) fn sandbox(&self) -> &str {
        &self.sandbox
    }

    async fn bounded<T>(&self, limit: Duration, call: impl Future<Output = ttrpc::Result<T>>) -> Result<T, ShimError> {
        let answer = tokio::time::timeout(limit, call).await;
        let answer = answer.map_err(|_| ShimError::Hung {
            sandbox: self.sandbox.clone(),
            limit,
        })?;
        answer.map_err(|error| self.failed(error))
    }

    fn failed(&self, error: ttrpc::Error) -> ShimError {
        match error {
            // A method, or the whole service, that it does not have (`handle_msg` of ttrpc's server).
            ttrpc::Error::RpcStatus(status) if matches!(status.code(), Code::UNIMPLEMENTED) => ShimError::Gone {
                sandbox: self.sandbox.clone(),
                reason: "it is of an older version, which cannot tell this".to_owned(),
            },
            ttrpc::Error::RpcStatus(status) => ShimError::Refused(status.message().to_owned()),
            other => ShimError::Gone {
                sandbox: self.sandbox.clone(),
                reason: other.to_string(),
            },
        }
    }

    /// Whether VMM and agent answer.
    pub(crate) async fn health(&self) -> Result<HealthResponse, ShimError> {
        self.bounded(ANSWER, self.client.health(Context::default(), &HealthRequest::new()))
            .await
    }

    /// Where the vCPUs are.
    pub(crate) async fn vcpus(&self) -> Result<VcpusResponse, ShimError> {
        self.bounded(ANSWER, self.client.vcpus(Context::default(), &VcpusRequest::new()))
            .await
    }

    /// Prometheus text.
    pub(crate) async fn metrics(&self) -> Result<String, ShimError> {
        let request = MetricsRequest::new();
        let call = self.client.metrics(Context::default(), &request);
        self.bounded(FIGURES, call).await.map(|answer| answer.text)
    }

    /// How full a direct-assigned volume is.
    pub(crate) async fn volume_stats(&self, path: &str) -> Result<StorageStatsResponse, ShimError> {
        let mut request = VolumeRequest::new();
        path.clone_into(&mut request.path);
        let call = self.client.volume_stats(context::with_duration(GROWTH), &request);
        self.bounded(GROWTH, call).await.map(usage)
    }

    /// Makes a direct-assigned volume larger.
    pub(crate) async fn resize_volume(&self, path: &str, size: u64) -> Result<StorageStatsResponse, ShimError> {
        let request = ResizeVolumeRequest {
            path: path.to_owned(),
            size,
            ..ResizeVolumeRequest::default()
        };
        let call = self.client.resize_volume(context::with_duration(GROWTH), &request);
        self.bounded(GROWTH, call).await.map(usage)
    }

    /// Runs a program in the guest to its end, however long that takes.
    pub(crate) async fn console(&self, request: &ConsoleRequest) -> Result<u32, ShimError> {
        let ended = self
            .client
            .console(context::with_duration(Duration::ZERO), request)
            .await;
        ended.map(|ended| ended.status).map_err(|error| self.failed(error))
    }

    /// Sets the size of a console's terminal.
    pub(crate) async fn resize_console(&self, request: &ResizeConsoleRequest) -> Result<(), ShimError> {
        let call = self.client.resize_console(Context::default(), request);
        self.bounded(ANSWER, call).await.map(drop)
    }
}

fn usage(answer: VolumeStatsResponse) -> StorageStatsResponse {
    answer.stats.into_option().unwrap_or_default()
}
