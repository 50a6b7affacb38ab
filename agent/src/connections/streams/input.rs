//! Copies input from the host to a process.

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::watch;

use super::buffer::BUFFER;
use super::channel::Channel;

/// Copies to the process's pipe until `length` bytes have been copied in all, once the host has said how many there
/// are; until the host closes; or until nobody reads the pipe any more. Then both ends are closed.
pub(super) async fn pipe(
    mut connection: impl AsyncRead + Send + Unpin,
    pipe: Channel,
    mut length: watch::Receiver<Option<u64>>,
) {
    let mut buffer = vec![0; BUFFER];
    let mut copied = 0;
    loop {
        let left = length.borrow_and_update().map(|length| length.saturating_sub(copied));
        if left == Some(0) {
            return;
        }
        let want = left.map_or(BUFFER, |left| {
            usize::try_from(left).map_or(BUFFER, |left| left.min(BUFFER))
        });
        let count = tokio::select! {
            read = connection.read(&mut buffer[..want]) => match read {
                Ok(count) if count > 0 => count,
                Ok(_) | Err(_) => return,
            },
            changed = length.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
            _ = pipe.reader_gone() => return,
        };
        if pipe.write_all(&buffer[..count]).await.is_err() {
            return;
        }
        copied += count as u64;
    }
}

/// Copies to the terminal until the host closes or the terminal is gone.
pub(super) async fn terminal(mut connection: impl AsyncRead + Send + Unpin, master: Channel) {
    let mut buffer = vec![0; BUFFER];
    while let Ok(count @ 1..) = connection.read(&mut buffer).await {
        if master.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
