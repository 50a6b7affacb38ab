//! Calls of containerd's gRPC services over its socket. Knows no service.

use std::{path::Path, time::Duration};

use prost::Message;
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
}
