//! The host's end of the guest's connections: accepts connections of this VM only.
//!
//! Does not know their data.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio_vsock::{VsockListener, VsockStream};

use crate::files::SocketFile;
use crate::vsock::Cid;

/// Takes the connections that the guest makes to the host's port.
#[derive(Debug)]
pub struct GuestListener(Kind);

#[derive(Debug)]
enum Kind {
    Vhost {
        listener: VsockListener,
        cid: Cid,
    },
    VhostUser {
        listener: UnixListener,
        /// Only the daemon connects for the guest.
        daemon: u32,
        _file: SocketFile,
    },
}

impl GuestListener {
    pub(crate) fn vhost(listener: VsockListener, cid: Cid) -> Self {
        Self(Kind::Vhost { listener, cid })
    }

    pub(crate) fn vhost_user(listener: UnixListener, file: SocketFile, daemon: u32) -> Self {
        Self(Kind::VhostUser {
            listener,
            daemon,
            _file: file,
        })
    }

    /// Waits for the next connection from this VM. Others are closed and passed over. May be cancelled.
    ///
    /// # Errors
    /// accept(2) failed, for lack of descriptors or memory; the listener is as good as before.
    pub async fn accept(&mut self) -> io::Result<GuestStream> {
        loop {
            match &self.0 {
                Kind::Vhost { listener, cid } => {
                    let (stream, peer) = listener.accept().await?;
                    if peer.cid() == cid.number() {
                        return Ok(GuestStream(Stream::Vsock(stream)));
                    }
                    tracing::warn!(%cid, peer = peer.cid(), "a connection from another VM is refused");
                }
                Kind::VhostUser { listener, daemon, .. } => {
                    let (stream, _) = listener.accept().await?;
                    let peer = stream.peer_cred()?.pid();
                    if peer.is_some_and(|pid| u32::try_from(pid).is_ok_and(|pid| pid == *daemon)) {
                        return Ok(GuestStream(Stream::Unix(stream)));
                    }
                    tracing::warn!(daemon, peer, "a connection that is not the vsock daemon's is refused");
                }
            }
        }
    }
}

/// One connection from the guest.
#[derive(Debug)]
pub struct GuestStream(Stream);

#[derive(Debug)]
enum Stream {
    Vsock(VsockStream),
    Unix(UnixStream),
}

impl AsFd for GuestStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Stream::Vsock(stream) => stream.as_fd(),
            Stream::Unix(stream) => stream.as_fd(),
        }
    }
}

impl AsyncRead for GuestStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Stream::Vsock(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for GuestStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Stream::Vsock(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Stream::Vsock(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Stream::Vsock(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
