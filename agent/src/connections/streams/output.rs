//! Copies output from a process to the host.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout};

use super::buffer::BUFFER;
use super::channel::Channel;
use crate::common::timeouts::scaled;

/// How long a dead process's pipe must have been empty while others still hold it. What the process itself wrote is
/// in the pipe when it is reaped; this is for what is still written by the children it leaves behind.
pub(super) const GRACE: Duration = Duration::from_millis(100);

/// How long such a pipe is waited for in all: a child may write on for ever.
const HELD_PIPE_LIMIT: Duration = Duration::from_secs(1);

/// How long a dead process's exit waits for a host that takes nothing at all: a reader that has stopped must not keep a
/// killed container alive.
pub(super) const STALL: Duration = Duration::from_secs(5);

/// Copies until the end, or until the process is dead and the pipe stays empty; tells `drained` how many bytes that
/// were; then empties the pipe for as long as somebody holds it, so that nobody gets SIGPIPE or blocks, and keeps the
/// connection until the host has closed it.
pub(super) async fn copy(
    source: Channel,
    mut to_host: impl AsyncWrite + Send + Unpin,
    from_host: Option<impl AsyncRead + Send + Unpin>,
    mut ended: watch::Receiver<bool>,
    drained: oneshot::Sender<u64>,
) {
    let mut buffer = vec![0; BUFFER];
    let length = until_drained(&source, &mut to_host, &mut ended, &mut buffer).await;
    // The supervisor is gone only where the process has been deleted; then this task ends as well.
    let _ = drained.send(length);
    let discard = async { while let Ok(1..) = source.read(&mut buffer).await {} };
    match from_host {
        Some(mut connection) => {
            let mut byte = [0; 1];
            let closed = async { while let Ok(1..) = connection.read(&mut byte).await {} };
            tokio::join!(discard, closed);
        }
        // The terminal's other direction reads the connection; `to_host` is held until Delete.
        None => {
            discard.await;
            std::future::pending::<()>().await;
        }
    }
    drop(to_host);
}

/// Bytes that were copied. A host that has closed the connection no longer wants them: they are counted all the same.
async fn until_drained(
    source: &Channel,
    to_host: &mut (impl AsyncWrite + Unpin),
    ended: &mut watch::Receiver<bool>,
    buffer: &mut [u8],
) -> u64 {
    let mut length = 0;
    let mut host_listens = true;
    let mut rest = None;
    while let Some(count @ 1..) = next(source, ended, &mut rest, buffer).await {
        if host_listens {
            match deliver(to_host, &buffer[..count], ended).await {
                Delivery::Done => {}
                Delivery::Closed => host_listens = false,
                Delivery::Stalled => break,
            }
        }
        length += count as u64;
    }
    length
}

enum Delivery {
    Done,
    Closed,
    Stalled,
}

/// Waits for a host that is slow: while the process lives as long as it takes, then for as long as it takes something every
/// [`STALL`].
async fn deliver(
    to_host: &mut (impl AsyncWrite + Unpin),
    mut bytes: &[u8],
    ended: &mut watch::Receiver<bool>,
) -> Delivery {
    while !bytes.is_empty() {
        let write = to_host.write(bytes);
        tokio::pin!(write);
        let in_life = tokio::select! {
            biased;
            written = &mut write => Some(written),
            _ = ended.wait_for(|dead| *dead) => None,
        };
        let written = match in_life {
            Some(written) => written,
            None => match timeout(scaled(STALL), write).await {
                Ok(written) => written,
                Err(_) => return Delivery::Stalled,
            },
        };
        match written {
            Ok(count @ 1..) => bytes = bytes.get(count..).unwrap_or_default(),
            Ok(0) | Err(_) => return Delivery::Closed,
        }
    }
    Delivery::Done
}

/// What is still taken from the pipe of a dead process. The time in which the host takes it does not count.
struct Rest {
    /// Bytes.
    bytes: usize,
    /// For waiting.
    time: Duration,
}

impl Rest {
    /// All that is there now, and as much again as a pipe holds: of what goes through a terminal the kernel counts a part only.
    fn of(source: &Channel) -> Self {
        let there = rustix::io::ioctl_fionread(source).unwrap_or(0);
        Self {
            bytes: usize::try_from(there).unwrap_or(usize::MAX).saturating_add(BUFFER),
            time: HELD_PIPE_LIMIT,
        }
    }

    async fn next(&mut self, source: &Channel, buffer: &mut [u8]) -> Option<usize> {
        let most = self.bytes.min(buffer.len());
        if most == 0 {
            return None;
        }
        let buffer = &mut buffer[..most];
        let count = match source.read_now(buffer).transpose() {
            Some(count) => some(count),
            None => {
                let since = Instant::now();
                let count = timeout(GRACE.min(self.time), source.read(buffer)).await;
                self.time = self.time.saturating_sub(since.elapsed());
                count.ok().and_then(some)
            }
        }?;
        self.bytes -= count;
        Some(count)
    }
}

/// The next bytes; None where there is nothing more to wait for.
async fn next(
    source: &Channel,
    ended: &mut watch::Receiver<bool>,
    rest: &mut Option<Rest>,
    buffer: &mut [u8],
) -> Option<usize> {
    if !*ended.borrow_and_update() {
        tokio::select! {
            count = source.read(&mut *buffer) => return some(count),
            // An error means that the process is being deleted: nobody waits for the bytes.
            changed = ended.wait_for(|dead| *dead) => drop(changed.ok()?),
        }
    }
    rest.get_or_insert_with(|| Rest::of(source)).next(source, buffer).await
}

fn some(count: io::Result<usize>) -> Option<usize> {
    count.ok()
}
