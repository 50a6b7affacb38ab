//! Calls of containerd's gRPC services over its socket. Knows no service; of tasks the calls that `ctr` does not make.

use std::{collections::HashMap, path::Path, time::Duration};

use prost::Message;
use serde_json::Value;
use tokio::runtime::Runtime;
use tonic::{
    Request, Status,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use crate::{Error, Result, wait};

/// How long a call may take: a boot, on a machine that boots others as well.
const LIMIT: Duration = Duration::from_secs(120);
/// ExecSync answers with up to 16 MiB of each stream (api.proto).
const LARGEST: usize = 40 << 20;

/// A connection. Its calls block; any number of threads may make some.
#[derive(Debug)]
pub(crate) struct Connection {
    runtime: Runtime,
    channel: Channel,
}

impl Connection {
    /// Connects to the socket at `address`, at the first call.
    pub(crate) fn new(address: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(Error::io("starting the client's runtime"))?;
        let endpoint = Endpoint::from_shared(format!("unix://{}", address.display()))
            .map_err(|error| Error::unexpected(format!("{}: {error}", address.display())))?;
        let channel = {
            let _entered = runtime.enter();
            endpoint.connect_lazy()
        };
        Ok(Self { runtime, channel })
    }

    /// Calls `/service/method`.
    pub(crate) fn call<Q, A>(&self, service: &str, method: &str, request: Request<Q>) -> Result<A>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let path = PathAndQuery::try_from(format!("/{service}/{method}"))
            .map_err(|error| Error::unexpected(format!("{method}: {error}")))?;
        let answered = self.runtime.block_on(async {
            let mut grpc = Grpc::new(self.channel.clone()).max_decoding_message_size(LARGEST);
            let unary = async {
                let ready = grpc.ready().await;
                ready.map_err(|error| Status::unavailable(error.to_string()))?;
                let codec: ProstCodec<Q, A> = ProstCodec::default();
                grpc.unary(request, path, codec).await
            };
            tokio::time::timeout(wait::patience(LIMIT), unary).await
        });
        match answered {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(Error::Rpc {
                method: method.to_owned(),
                code: status.code(),
                message: status.message().to_owned(),
            }),
            Err(_) => Err(Error::Timeout {
                what: format!("{method} answers"),
                limit: LIMIT,
            }),
        }
    }

    /// Changes the limits of a container's task: `linux.resources` of the OCI specification.
    pub(crate) fn update_task(&self, namespace: &str, container: &str, resources: &Value) -> Result<()> {
        let request = UpdateTaskRequest {
            container_id: container.to_owned(),
            resources: Some(Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".to_owned(),
                value: resources.to_string().into_bytes(),
            }),
            annotations: HashMap::new(),
        };
        let _: Empty = self.task("Update", namespace, request)?;
        Ok(())
    }

    /// Creates and starts the task of a container on a rootfs of these mounts, whatever its snapshot is.
    pub(crate) fn start_task(&self, namespace: &str, container: &str, rootfs: Vec<Mount>) -> Result<()> {
        let container_id = container.to_owned();
        let create = CreateTaskRequest {
            container_id: container_id.clone(),
            rootfs,
        };
        let _: Empty = self.task("Create", namespace, create)?;
        let _: Empty = self.task("Start", namespace, StartRequest { container_id })?;
        Ok(())
    }

    fn task<Q, A>(&self, method: &str, namespace: &str, request: Q) -> Result<A>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let mut request = Request::new(request);
        let namespace = namespace
            .parse()
            .map_err(|_| Error::unexpected("a namespace that is no header"))?;
        request.metadata_mut().insert("containerd-namespace", namespace);
        self.call("containerd.services.tasks.v1.Tasks", method, request)
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct UpdateTaskRequest {
    #[prost(string, tag = "1")]
    container_id: String,
    #[prost(message, optional, tag = "2")]
    resources: Option<Any>,
    #[prost(map = "string, string", tag = "3")]
    annotations: HashMap<String, String>,
}

/// A mount of a rootfs, as snapshotters describe it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Mount {
    /// Its file system.
    #[prost(string, tag = "1")]
    pub kind: String,
    /// What is mounted.
    #[prost(string, tag = "2")]
    pub source: String,
    /// As for mount(8).
    #[prost(string, repeated, tag = "4")]
    pub options: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct CreateTaskRequest {
    #[prost(string, tag = "1")]
    container_id: String,
    #[prost(message, repeated, tag = "3")]
    rootfs: Vec<Mount>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StartRequest {
    #[prost(string, tag = "1")]
    container_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Empty {}
