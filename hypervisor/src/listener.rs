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

use crate::doublings::is_told;
use crate::machine::vsock::Cid;
use crate::process::files::SocketFile;

/// Connections that may wait to be accepted where anybody can dial: the vsock crate's 128 are soon taken by a stranger who dials in a
/// loop. The kernel bounds it by `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Takes the connections that the guest makes to the host's port.
#[derive(Debug)]
pub struct GuestListener {
    kind: Kind,
    /// Connections of strangers.
    refused: u64,
}

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
        if let Err(error) = rustix::net::listen(listener.as_fd(), BACKLOG) {
            tracing::warn!(%error, "few connections of the guest can wait to be accepted");
        }
        Self::new(Kind::Vhost { listener, cid })
    }

    pub(crate) fn vhost_user(listener: UnixListener, file: SocketFile, daemon: u32) -> Self {
        Self::new(Kind::VhostUser {
            listener,
            daemon,
            _file: file,
        })
    }

    fn new(kind: Kind) -> Self {
        Self { kind, refused: 0 }
    }

    /// Waits for the next connection from this VM. Others are closed and passed over. May be cancelled.
    ///
    /// # Errors
    /// accept(2) failed, for lack of descriptors or memory; the listener is as good as before.
    pub async fn accept(&mut self) -> io::Result<GuestStream> {
        loop {
            let told = is_told(self.refused);
            match &self.kind {
                Kind::Vhost { listener, cid } => {
                    let (stream, peer) = listener.accept().await?;
                    if peer.cid() == cid.number() {
                        return Ok(GuestStream(Stream::Vsock(stream)));
                    }
                    if told {
                        tracing::warn!(%cid, peer = peer.cid(), before = self.refused, "a connection from another VM is refused");
                    }
                }
                Kind::VhostUser { listener, daemon, .. } => {
                    let (stream, _) = listener.accept().await?;
                    let peer = stream.peer_cred()?.pid();
                    if peer.is_some_and(|pid| u32::try_from(pid).is_ok_and(|pid| pid == *daemon)) {
                        return Ok(GuestStream(Stream::Unix(stream)));
                    }
                    if told {
                        let before = self.refused;
                        tracing::warn!(
                            daemon,
                            peer,
                            before,
                            "a connection that is not the vsock daemon's is refused"
                        );
                    }
                }
            }
            self.refused += 1;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stranger_is_passed_over_whatever_it_sends() {
        use tokio::io::AsyncReadExt as _;

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let file = SocketFile::new(path.clone()).unwrap();
        // Nobody has this number.
        let mut listener = GuestListener::vhost_user(listener, file, u32::MAX);
        let accepting = tokio::spawn(async move { listener.accept().await.map(drop) });
        for _ in 0..300 {
            let mut stranger = UnixStream::connect(&path).await.unwrap();
            // Hung up on at once: nothing of it is kept.
            assert_eq!(stranger.read(&mut [0]).await.unwrap_or(0), 0);
        }
        assert!(!accepting.is_finished());
    }
}
