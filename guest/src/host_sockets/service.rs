//! Serves the guest's connections to one socket of the host.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use node::host_ns::HostNamespace;
use relay::frame::{self, Kind};
use relay::{Side, Socket, Traffic};
use rustix::net::SocketType;
use tokio::io::{AsyncRead, BufReader};
use tokio::sync::Semaphore;

use super::find;
use crate::connection::Connection;
use crate::relays::Service;
use crate::warn_rate_limited;

/// Connections that are being made at a time: each has a thread meanwhile.
const CONNECTING: usize = 8;

pub(super) struct HostService {
    host: HostNamespace,
    path: PathBuf,
    kind: SocketType,
    connecting: Arc<Semaphore>,
}

impl HostService {
    pub(super) fn new(host: HostNamespace, path: PathBuf, kind: SocketType) -> Self {
        Self {
            host,
            path,
            kind,
            connecting: Arc::new(Semaphore::new(CONNECTING)),
        }
    }

    async fn connect(&self) -> io::Result<Socket> {
        // It is never closed, and kept by the thread: a caller that gives up does not end that.
        let place = Arc::clone(&self.connecting).acquire_owned().await;
        let (host, path, kind) = (self.host.clone(), self.path.clone(), self.kind);
        let connecting = tokio::task::spawn_blocking(move || -> io::Result<OwnedFd> {
            let _place = place;
            find::connected(&host, &path, kind)
        });
        Socket::new(connecting.await.map_err(io::Error::other)??)
    }

    async fn serve_connection(&self, connection: Connection) -> io::Result<()> {
        let socket = match self.connect().await {
            Ok(socket) => socket,
            Err(error) => {
                warn_rate_limited!(socket = %self.path.display(), %error, "a connection of the guest reaches nobody: its socket on the host cannot be connected to");
                return relay::refuse(self.kind, connection).await;
            }
        };
        relay::relay(&socket, connection, Side::Accepted, &Traffic::default()).await
    }

    /// Datagrams of all senders. A service that is away or has been started again is looked for once for each.
    async fn serve_datagrams(&self, connection: impl AsyncRead + Unpin) -> io::Result<()> {
        let mut connection = BufReader::new(connection);
        let mut message = Vec::new();
        let mut service: Option<Socket> = None;
        loop {
            let kind = frame::read(&mut connection, &mut message, frame::LARGEST_MESSAGE).await?;
            if kind != Kind::Data {
                return Err(io::ErrorKind::InvalidData.into());
            }
            if let Some(there) = &service
                && there.send(&message).await.is_ok()
            {
                continue;
            }
            let sent = async {
                let new = self.connect().await?;
                new.send(&message).await?;
                Ok::<_, io::Error>(new)
            };
            service = match sent.await {
                Ok(new) => Some(new),
                Err(error) => {
                    warn_rate_limited!(socket = %self.path.display(), %error, "a datagram of the guest is lost");
                    None
                }
            };
        }
    }
}

#[async_trait]
impl Service for HostService {
    async fn serve(&self, connection: Connection) {
        let served = if self.kind == SocketType::DGRAM {
            self.serve_datagrams(connection).await
        } else {
            self.serve_connection(connection).await
        };
        if let Err(error) = served {
            tracing::debug!(socket = %self.path.display(), %error, "a connection of the guest has broken");
        }
    }
}
