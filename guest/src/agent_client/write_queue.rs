//! A connection whose writes never wait. Written data is queued, and a separate task sends it.
//!
//! ttrpc's client ends its connection when a call is dropped, or reaches its deadline, while its frame is half written
//! (`run_writer` in ttrpc 0.10), and a sandbox ends with its agent's connection. Here a frame is queued completely or not
//! at all, however slow the guest is. [`Room`] bounds the queue: a call waits for free space before it is made.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot, watch};

use crate::vm::Connection;

/// Bytes that may be queued when one more call is made. ttrpc bounds a call to 4 MiB.
const MOST: usize = 8 << 20;

/// A connection with a queue in front of it.
pub(super) struct WriteQueue {
    from_guest: ReadHalf<Connection>,
    frames: mpsc::UnboundedSender<Vec<u8>>,
    queued: Arc<watch::Sender<usize>>,
    /// Dropped with this: what is still queued is for nobody then.
    _alive: oneshot::Sender<()>,
}

/// Tells when there is room in the queue.
#[derive(Clone)]
pub(super) struct Room(watch::Receiver<usize>);

impl Room {
    /// Waits for it. Returns at once when the connection has ended: the call says so.
    pub(super) async fn wait(mut self) {
        let _ = self.0.wait_for(|queued| *queued <= MOST).await;
    }
}

impl WriteQueue {
    /// Puts a queue in front of a connection. Must be called in a tokio runtime.
    pub(super) fn new(connection: Connection) -> (Self, Room) {
        let (from_guest, to_guest) = tokio::io::split(connection);
        let (frames, queue) = mpsc::unbounded_channel();
        let (queued, room) = watch::channel(0);
        let (alive, ended) = oneshot::channel();
        let queued = Arc::new(queued);
        tokio::spawn(pass_on(queue, to_guest, Arc::clone(&queued), ended));
        let queue = Self {
            from_guest,
            frames,
            queued,
            _alive: alive,
        };
        (queue, Room(room))
    }
}

async fn pass_on(
    mut queue: mpsc::UnboundedReceiver<Vec<u8>>,
    mut to_guest: WriteHalf<Connection>,
    queued: Arc<watch::Sender<usize>>,
    ended: oneshot::Receiver<()>,
) {
    let pass = async {
        while let Some(frame) = queue.recv().await {
            if let Err(error) = to_guest.write_all(&frame).await {
                tracing::debug!(%error, "the guest's agent takes no requests any more");
                return;
            }
            queued.send_modify(|queued| *queued -= frame.len());
        }
    };
    tokio::select! {
        () = pass => {}
        _ = ended => {}
    }
}

impl AsyncRead for WriteQueue {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.from_guest).poll_read(context, buffer)
    }
}

impl AsyncWrite for WriteQueue {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.queued.send_modify(|queued| *queued += bytes.len());
        let sent = self.frames.send(bytes.to_vec());
        Poll::Ready(sent.map(|()| bytes.len()).map_err(|_| io::ErrorKind::BrokenPipe.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt as _;

    #[tokio::test]
    async fn a_write_never_waits_and_room_does_until_the_guest_has_read() {
        let (mut guest, host) = tokio::io::duplex(4096);
        let (mut queue, room) = WriteQueue::new(Box::new(host));
        room.clone().wait().await;
        queue.write_all(&vec![7; MOST + 1]).await.unwrap();
        let mut waits = Box::pin(room.wait());
        assert!(futures::poll!(&mut waits).is_pending());
        let reader = tokio::spawn(async move { guest.read_exact(&mut vec![0; MOST + 1]).await });
        waits.await;
        reader.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_connection_that_is_dropped_is_closed_though_the_guest_takes_nothing() {
        let (mut guest, host) = tokio::io::duplex(1);
        let (mut queue, _room) = WriteQueue::new(Box::new(host));
        queue.write_all(&[7; 100]).await.unwrap();
        drop(queue);
        let mut read = Vec::new();
        guest.read_to_end(&mut read).await.unwrap();
        assert!(read.len() <= 1, "{}", read.len());
    }
}
