//! Opens connections to the host and sends their preamble. It knows nothing about their data.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use protocol::preamble::Preamble;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::Notify;
use tokio_vsock::{VsockAddr, VsockStream};

/// Dials the one port of the host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dialer {
    port: u32,
}

impl Dialer {
    pub(crate) fn new(port: u32) -> Self {
        Self { port }
    }

    /// A connection whose preamble has been sent.
    ///
    /// # Errors
    /// The host does not listen, or there is no vsock device.
    pub(crate) async fn dial(self, preamble: Preamble) -> io::Result<HostStream> {
        let mut stream = HostStream(VsockStream::connect(VsockAddr::new(protocol::HOST_CID, self.port)).await?);
        stream.write_all(&preamble.encode()).await?;
        Ok(stream)
    }
}

/// Bytes that go into one packet. The kernel (`virtio_vsock_alloc_skb` in the pinned 6.12) puts what does not fit into
/// 32 KiB with its headers into several fragments, each with a descriptor of its own, and the device of
/// vhost-device-vsock 0.3 (its virtio-vsock 0.10) drops a packet of more than one fragment without a word: the bytes are
/// lost, their credit with them, and the connection stands still.
const MAX_PACKET: usize = 28 << 10;

#[derive(Debug)]
pub(crate) struct HostStream(VsockStream);

impl AsyncRead for HostStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for HostStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let packet = buf.get(..MAX_PACKET).unwrap_or(buf);
        Pin::new(&mut self.0).poll_write(cx, packet)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// A connection that says when the host has gone.
#[derive(Debug)]
pub(crate) struct Watched<S> {
    stream: S,
    lost: Arc<Notify>,
}

impl<S> Watched<S> {
    /// `lost` is notified once reading ends or the connection is dropped.
    pub(crate) fn new(stream: S, lost: Arc<Notify>) -> Self {
        Self { stream, lost }
    }
}

impl<S> Drop for Watched<S> {
    fn drop(&mut self) {
        self.lost.notify_one();
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        match &result {
            Poll::Ready(Ok(())) if buf.filled().len() == before && buf.remaining() > 0 => self.lost.notify_one(),
            Poll::Ready(Err(_)) => self.lost.notify_one(),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn the_end_of_a_connection_is_noticed() {
        let (near, far) = tokio::io::duplex(8);
        let lost = Arc::new(Notify::new());
        let mut watched = Watched::new(near, Arc::clone(&lost));
        drop(far);
        assert_eq!(watched.read(&mut [0; 4]).await.unwrap(), 0);
        lost.notified().await;
    }
}
