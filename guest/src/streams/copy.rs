//! The two copy loops: from a connection to the target, and from a FIFO to a connection.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{oneshot, watch};

use super::endpoint::{Source, Target};
use super::wait::Wait;

/// Bytes per read: what a pipe holds.
const BUFFER: usize = 64 << 10;

/// How much less than the patience a reader may pause when only the end of an output is left: a client may wait for the exit before it reads that.
const PAUSES: u32 = 10;

/// When an output is complete.
#[derive(Debug, Clone, Copy)]
pub(super) struct Finish {
    /// Bytes in all; `None`: as many as come before the connection ends.
    pub(super) length: Option<u64>,
    /// Longest time without progress from now on.
    pub(super) patience: Duration,
}

/// Copies the guest's output until `finish` says how long it is and that much has come, or until the connection ends.
pub(super) async fn output(
    mut connection: impl AsyncRead + Send + Unpin,
    mut target: Target,
    mut finish: watch::Receiver<Option<Finish>>,
) {
    let mut buffer = vec![0; BUFFER];
    let mut copied: u64 = 0;
    let mut wait = Wait::default();
    loop {
        let known = *finish.borrow_and_update();
        let room = match known.and_then(|finish| finish.length) {
            Some(length) if copied >= length => break,
            // A guest that sends more than it says is cut off where it said.
            Some(length) => usize::try_from(length - copied).unwrap_or(BUFFER).min(BUFFER),
            None => BUFFER,
        };
        let read = tokio::select! {
            read = connection.read(&mut buffer[..room]) => read,
            changed = finish.changed(), if known.is_none() => match changed {
                Ok(()) => continue,
                Err(_) => break,
            },
            () = is_over(&mut wait, known) => {
                tracing::warn!(copied, "the guest announced more output than it sent in time");
                break;
            }
        };
        let count = match read {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) => {
                tracing::debug!(%error, copied, "an output's connection ended");
                break;
            }
        };
        if !deliver(&mut finish, &mut target, &buffer[..count]).await {
            tracing::warn!(
                copied,
                "nobody reads the output of a process that has ended: the rest is lost"
            );
            break;
        }
        copied += count as u64;
    }
    let pause = finish
        .borrow()
        .map_or(Duration::ZERO, |finish| finish.patience / PAUSES);
    target.finish(pause).await;
}

async fn is_over(wait: &mut Wait, finish: Option<Finish>) {
    match finish {
        Some(finish) => wait.is_over(finish.patience).await,
        None => std::future::pending().await,
    }
}

/// Writes all of it; once the process has ended, for as long as some of it is taken within its patience. Says whether it
/// was done.
async fn deliver(finish: &mut watch::Receiver<Option<Finish>>, target: &mut Target, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        let Some(count) = bounded(finish, target.write(bytes)).await else {
            return false;
        };
        bytes = bytes.get(count..).unwrap_or_default();
    }
    true
}

/// Does the step; once the process has ended, for no longer than its patience.
async fn bounded<T>(finish: &mut watch::Receiver<Option<Finish>>, step: impl Future<Output = T>) -> Option<T> {
    tokio::pin!(step);
    let patience = tokio::select! {
        biased;
        done = &mut step => return Some(done),
        ended = finish.wait_for(Option::is_some) => match ended {
            Ok(finish) => finish.map_or(Duration::ZERO, |finish| finish.patience),
            Err(_) => return None,
        },
    };
    tokio::time::timeout(patience, step).await.ok()
}

/// Copies stdin until it ends, then tells how long it was.
pub(super) async fn input(
    source: Arc<Source>,
    mut connection: impl AsyncWrite + Send + Unpin,
    length: oneshot::Sender<u64>,
) {
    let mut buffer = vec![0; BUFFER];
    let mut sent: u64 = 0;
    let result: io::Result<()> = async {
        loop {
            let count = source.read(&mut buffer).await?;
            if count == 0 {
                return connection.flush().await;
            }
            connection.write_all(&buffer[..count]).await?;
            sent += count as u64;
        }
    }
    .await;
    match result {
        Ok(()) => {
            // The agent closes the process's end after that many bytes; the connection stays until the exit.
            if length.send(sent).is_ok() {
                std::future::pending::<()>().await;
            }
        }
        // The process does not read any more, or has ended.
        Err(error) => tracing::debug!(%error, sent, "stdin's connection ended"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::unix::pipe;

    fn announce(length: u64) -> Option<Finish> {
        Some(Finish {
            length: Some(length),
            patience: Duration::from_millis(50),
        })
    }

    #[tokio::test]
    async fn a_guest_that_sends_a_byte_now_and_then_does_not_keep_an_ended_process_alive() {
        let (mut guest, host) = tokio::io::duplex(64);
        let patience = Duration::from_millis(100);
        let (finish, ended) = watch::channel(None);
        finish.send_replace(Some(Finish {
            length: Some(u64::MAX),
            patience,
        }));
        tokio::spawn(async move {
            while guest.write_all(b".").await.is_ok() {
                tokio::time::sleep(patience / 5).await;
            }
        });
        let all = tokio::time::timeout(patience * 100, output(host, Target::nowhere(), ended));
        assert!(all.await.is_ok(), "an ended process is kept alive");
    }

    #[tokio::test]
    async fn output_stops_at_the_announced_length_though_the_connection_stays_open() {
        let (mut guest, host) = tokio::io::duplex(1 << 20);
        let (sender, mut reader) = pipe::pipe().unwrap();
        let (finish, ended) = watch::channel(None);
        let task = tokio::spawn(output(host, Target::pipe(sender), ended));
        guest.write_all(b"0123456789").await.unwrap();
        finish.send_replace(announce(10));
        task.await.unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "0123456789");
    }

    #[tokio::test]
    async fn a_guest_that_announces_too_much_costs_only_the_patience() {
        let (_guest, host) = tokio::io::duplex(1 << 10);
        let (finish, ended) = watch::channel(None);
        let task = tokio::spawn(output(host, Target::nowhere(), ended));
        finish.send_replace(announce(u64::MAX));
        task.await.unwrap();
    }

    #[tokio::test]
    async fn a_guest_that_sends_a_byte_now_and_then_costs_a_bounded_time() {
        let (mut guest, host) = tokio::io::duplex(1 << 10);
        let (finish, ended) = watch::channel(None);
        let task = tokio::spawn(output(host, Target::nowhere(), ended));
        finish.send_replace(announce(u64::MAX));
        let trickle = tokio::spawn(async move {
            while guest.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        tokio::time::timeout(Duration::from_secs(20), task)
            .await
            .unwrap()
            .unwrap();
        trickle.await.unwrap();
    }

    #[tokio::test]
    async fn a_reader_that_has_stalled_costs_only_the_patience() {
        let (mut guest, host) = tokio::io::duplex(1 << 20);
        let (sender, _reader) = pipe::pipe().unwrap();
        let (finish, ended) = watch::channel(None);
        let task = tokio::spawn(output(host, Target::pipe(sender), ended));
        guest.write_all(&vec![7; 1 << 18]).await.unwrap();
        finish.send_replace(announce(1 << 18));
        task.await.unwrap();
    }

    #[tokio::test]
    async fn a_slow_reader_gets_everything_however_long_that_takes_after_the_end() {
        const SIZE: usize = 256 << 10;
        let finished = Finish {
            length: Some(SIZE as u64),
            patience: Duration::from_millis(400),
        };
        let (mut guest, host) = tokio::io::duplex(SIZE);
        let (sender, mut reader) = pipe::pipe().unwrap();
        let (finish, ended) = watch::channel(None);
        let task = tokio::spawn(output(host, Target::pipe(sender), ended));
        guest.write_all(&vec![7; SIZE]).await.unwrap();
        finish.send_replace(Some(finished));
        let (mut read, mut buffer) = (0, [0; 4 << 10]);
        // What the copy writes at a time takes longer than its patience, and each read much less.
        while read < SIZE {
            tokio::time::sleep(finished.patience / 10).await;
            match reader.read(&mut buffer).await.unwrap() {
                0 => break,
                count => read += count,
            }
        }
        task.await.unwrap();
        assert_eq!(read, SIZE);
    }

    #[tokio::test]
    async fn a_reader_that_is_gone_does_not_stop_the_process() {
        let (mut guest, host) = tokio::io::duplex(1 << 10);
        let (sender, reader) = pipe::pipe().unwrap();
        drop(reader);
        let (finish, ended) = watch::channel(None);
        let task = tokio::spawn(output(host, Target::pipe(sender), ended));
        guest.write_all(&vec![7; 1 << 18]).await.unwrap();
        finish.send_replace(announce(1 << 18));
        task.await.unwrap();
    }

    /// A length that the guest has announced, and what comes.
    #[test]
    fn fuzz_stream_lengths() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        fuzz::run("stream-lengths", |bytes| {
            let Some((length, sent)) = bytes.split_first_chunk::<8>() else {
                return;
            };
            let length = u64::from_le_bytes(*length);
            let read = runtime.block_on(async {
                let (sender, mut reader) = pipe::pipe().unwrap();
                let (_finish, ended) = watch::channel(announce(length));
                output(sent, Target::pipe(sender), ended).await;
                let mut read = Vec::new();
                reader.read_to_end(&mut read).await.unwrap();
                read
            });
            let most = usize::try_from(length).unwrap_or(usize::MAX).min(sent.len());
            assert_eq!(read, sent[..most]);
        });
    }
}
