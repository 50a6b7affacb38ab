//! A socket for datagrams, such as syslog's: all use one connection to the host, one frame each. Answers are not possible: a service
//! sends them to its client's address, which is the shim's.

use std::io;

use protocol::preamble::{Preamble, Token};
use relay::Socket;
use relay::frame::{self, Kind};
use tokio::io::AsyncWriteExt as _;

use crate::connections::dial::{Dialer, HostStream};

/// Relays for ever. While the host takes no more, senders wait once the socket's queue is full (`net.unix.max_dgram_qlen`).
pub(super) async fn relay(dialer: Dialer, socket: Socket, token: Token) {
    let mut buffer = vec![0; socket.largest()];
    let mut host = None;
    loop {
        let sent = async {
            let length = socket.receive(&mut buffer).await?;
            send(dialer, token, &mut host, &buffer[..length]).await
        };
        if let Err(error) = sent.await {
            tracing::warn!(%error, "a datagram for the host is lost");
        }
    }
}

/// By the connection that is there, or by a new one if that has broken.
async fn send(dialer: Dialer, token: Token, host: &mut Option<HostStream>, message: &[u8]) -> io::Result<()> {
    let frame = frame::encode(Kind::Data, message);
    if let Some(mut there) = host.take()
        && there.write_all(&frame).await.is_ok()
    {
        *host = Some(there);
        return Ok(());
    }
    let mut new = dialer.dial(Preamble::Relay(token)).await?;
    new.write_all(&frame).await?;
    *host = Some(new);
    Ok(())
}
