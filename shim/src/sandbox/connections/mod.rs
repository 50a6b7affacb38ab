//! The connections that the guest opens: distinguished by their preamble, and passed to the waiting task.
//!
//! Any program in the guest can connect to the same port. Its possibilities are bounded here. The first HOST and the
//! first AGENT connection are accepted, and these are opened before any container exists. A stream is identified by 128
//! random bits, which are valid once. A connection without a preamble is dropped after a while, and only a limited number
//! of such connections is kept ([`pending`]).

pub(super) mod backpressured;
pub(super) mod host_service;
mod pending;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use guest::relays::Relays;
use guest::streams::StreamRegistry;
use guest::vm::{Connection, Connections};
use guest::warn_rate_limited;
use lifecycle::Timeouts;
use protocol::preamble::{LENGTH, Preamble};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;
use tokio::time::Instant;

use self::pending::{Pending, Place};

/// Most connections that may be silent at a time, besides one for each registered stream.
const SILENT: usize = 256;

/// Longest line of the agent's log in bytes; the rest of it is dropped.
const LOG_LINE: usize = 8 << 10;

/// Bytes of the agent's log per second, [`LINE_COST`] for each line included.
const LOG_RATE: usize = 256 << 10;

/// What a line costs beside its bytes: an empty one is a line of the shim's log as well.
const LINE_COST: usize = 256;

/// One of the two connections that ttrpc is spoken on.
pub(super) enum Arrived {
    /// The agent will say hello.
    Host(Connection),
    /// The agent serves.
    Agent(Connection),
}

/// Takes a line of the agent's log.
pub type LogSink = Arc<dyn Fn(&[u8]) + Send + Sync>;

struct Dispatcher {
    streams: StreamRegistry,
    relays: Relays,
    arrived: mpsc::Sender<Arrived>,
    log: LogSink,
    host_taken: AtomicBool,
    agent_taken: AtomicBool,
    log_taken: AtomicBool,
}

/// Accepts until there will be no more connections.
pub(super) async fn accept(
    mut connections: Box<dyn Connections>,
    streams: StreamRegistry,
    relays: Relays,
    arrived: mpsc::Sender<Arrived>,
    log: LogSink,
    timeouts: Timeouts,
) {
    let pending = Pending::default();
    let dispatcher = Arc::new(Dispatcher {
        streams,
        relays,
        arrived,
        log,
        host_taken: AtomicBool::new(false),
        agent_taken: AtomicBool::new(false),
        log_taken: AtomicBool::new(false),
    });
    loop {
        let connection = match connections.accept().await {
            Ok(connection) => connection,
            Err(error) => {
                tracing::debug!(%error, "the guest can dial no more");
                return;
            }
        };
        let (place, evicted) = pending.admit(SILENT + dispatcher.streams.count());
        if evicted > 0 {
            warn_rate_limited!("the guest opened too many connections that say nothing: the oldest is dropped");
        }
        tokio::spawn(identify(
            connection,
            place,
            Arc::clone(&dispatcher),
            timeouts.preamble(),
        ));
    }
}

/// Reads the preamble, for as long as the connection has a place and `limit` at most, and hands the connection over.
async fn identify(mut connection: Connection, mut place: Place, dispatcher: Arc<Dispatcher>, limit: Duration) {
    let mut bytes = [0; LENGTH];
    tokio::select! {
        // What has been sent is read before an eviction is looked at.
        biased;
        read = connection.read_exact(&mut bytes) => if let Err(error) = read {
            return tracing::debug!(%error, "a connection ended before its preamble");
        },
        () = place.evicted() => return,
        () = tokio::time::sleep(limit) => {
            warn_rate_limited!("a connection of the guest sent no preamble");
            return;
        }
    }
    drop(place);
    match Preamble::decode(&bytes) {
        Ok(preamble) => dispatcher.dispatch(preamble, connection).await,
        Err(error) => warn_rate_limited!(%error, "a connection of the guest is dropped"),
    }
}

impl Dispatcher {
    async fn dispatch(&self, preamble: Preamble, connection: Connection) {
        let first = |taken: &AtomicBool| {
            let first = !taken.swap(true, Ordering::AcqRel);
            if !first {
                warn_rate_limited!(
                    ?preamble,
                    "the guest dialled this connection twice: the second is dropped"
                );
            }
            first
        };
        match preamble {
            // Nobody waits any more: the sandbox has ended.
            Preamble::Host if first(&self.host_taken) => drop(self.arrived.send(Arrived::Host(connection)).await),
            Preamble::Agent if first(&self.agent_taken) => drop(self.arrived.send(Arrived::Agent(connection)).await),
            Preamble::Log if first(&self.log_taken) => relay(connection, &self.log).await,
            Preamble::Host | Preamble::Agent | Preamble::Log => {}
            Preamble::Stream(token) => match self.streams.take(&token) {
                // Whoever waited for it may have given up just now.
                Some(waiting) => drop(waiting.send(connection)),
                None => warn_rate_limited!("a connection of the guest names a stream that is not registered"),
            },
            Preamble::Relay(token) => {
                if let Err(error) = self.relays.serve(&token, connection) {
                    warn_rate_limited!(%error, "a connection of the guest to the host is dropped");
                }
            }
        }
    }
}

/// Passes on the agent's log, line by line, within [`LOG_LINE`] and [`LOG_RATE`].
async fn relay(mut connection: impl AsyncRead + Unpin, log: &LogSink) {
    let mut buffer = vec![0; LOG_LINE];
    let mut line = Vec::new();
    let mut pace = Pace::begin();
    while let Ok(count @ 1..) = connection.read(&mut buffer).await {
        pace.spend(count).await;
        for byte in &buffer[..count] {
            if *byte != b'\n' {
                if line.len() < LOG_LINE {
                    line.push(*byte);
                }
                continue;
            }
            pace.spend(LINE_COST).await;
            log(&line);
            line.clear();
        }
    }
}

/// How much of the agent's log was read in this second.
struct Pace {
    began: Instant,
    spent: usize,
}

impl Pace {
    const WINDOW: Duration = Duration::from_secs(1);

    fn begin() -> Self {
        Self {
            began: Instant::now(),
            spent: 0,
        }
    }

    /// Waits for the next second if this one's [`LOG_RATE`] is used up. The agent does not wait: it drops lines meanwhile.
    async fn spend(&mut self, bytes: usize) {
        self.spent += bytes;
        if self.spent > LOG_RATE {
            tokio::time::sleep_until(self.began + Self::WINDOW).await;
        }
        if self.began.elapsed() >= Self::WINDOW {
            *self = Self::begin();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::sync::atomic::AtomicUsize;
    use tokio::io::AsyncWriteExt;

    #[tokio::test(start_paused = true)]
    async fn a_giant_line_of_the_log_is_cut() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&lines);
        let sink: LogSink = Arc::new(move |line: &[u8]| kept.lock().unwrap().push(line.len()));
        let (mut guest, host) = tokio::io::duplex(1 << 16);
        let writer = tokio::spawn(async move {
            guest.write_all(&vec![b'x'; 1 << 20]).await.unwrap();
            guest.write_all(b"\nshort\n").await.unwrap();
        });
        relay(host, &sink).await;
        writer.await.unwrap();
        assert_eq!(*lines.lock().unwrap(), [LOG_LINE, 5]);
    }

    /// Each empty line would be a line of the shim's log.
    #[tokio::test(start_paused = true)]
    async fn lines_without_a_byte_count_as_well_and_the_guest_has_to_wait() {
        const SECONDS: usize = 10;
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        let sink: LogSink = Arc::new(move |_: &[u8]| {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        let (mut guest, host) = tokio::io::duplex(1 << 16);
        let taken = Arc::new(AtomicUsize::new(0));
        let written = Arc::clone(&taken);
        tokio::spawn(async move {
            loop {
                guest.write_all(&[b'\n'; 1 << 10]).await.unwrap();
                written.fetch_add(1 << 10, Ordering::Relaxed);
            }
        });
        let limit = Duration::from_secs(SECONDS as u64);
        assert!(tokio::time::timeout(limit, relay(host, &sink)).await.is_err());
        let most = (SECONDS + 1) * LOG_RATE / LINE_COST;
        let (count, taken) = (count.load(Ordering::Relaxed), taken.load(Ordering::Relaxed));
        assert!((most / 2..=most).contains(&count), "{count} of {most} lines");
        assert!(taken <= most + (1 << 17), "{taken} bytes were taken");
    }

    struct Dials(mpsc::Receiver<Connection>);

    #[async_trait::async_trait]
    impl Connections for Dials {
        async fn accept(&mut self) -> std::io::Result<Connection> {
            self.0.recv().await.ok_or_else(|| std::io::ErrorKind::BrokenPipe.into())
        }
    }

    /// A guest that can dial, and the streams that it may dial.
    fn guest() -> (mpsc::Sender<Connection>, StreamRegistry) {
        let (dial, dials) = mpsc::channel(1);
        let streams = StreamRegistry::default();
        let (arrived, _) = mpsc::channel(1);
        let log: LogSink = Arc::new(|_: &[u8]| {});
        let dials = Box::new(Dials(dials));
        tokio::spawn(accept(
            dials,
            streams.clone(),
            Relays::default(),
            arrived,
            log,
            Timeouts::default(),
        ));
        (dial, streams)
    }

    async fn connect(dial: &mpsc::Sender<Connection>) -> tokio::io::DuplexStream {
        let (near, far) = tokio::io::duplex(LENGTH);
        assert!(dial.send(Box::new(far)).await.is_ok());
        near
    }

    #[tokio::test(start_paused = true)]
    async fn silent_connections_do_not_keep_out_a_registered_stream() {
        let (dial, registry) = guest();
        let mut silent = Vec::new();
        for _ in 0..2 * SILENT {
            silent.push(connect(&dial).await);
        }
        let (token, dialled) = registry.register();
        let mut stream = connect(&dial).await;
        stream.write_all(&Preamble::Stream(token).encode()).await.unwrap();
        let soon = Timeouts::default().preamble() / 2;
        let got = tokio::time::timeout(soon, dialled.connection()).await;
        assert!(matches!(got, Ok(Ok(_))), "the stream was dropped");
        let mut byte = [0];
        let oldest = tokio::time::timeout(soon / 2, silent[0].read(&mut byte)).await;
        assert_eq!(oldest.unwrap().unwrap(), 0, "the oldest is dropped");
        let newest = tokio::time::timeout(soon / 2, silent[2 * SILENT - 1].read(&mut byte)).await;
        assert!(newest.is_err(), "the newest is dropped before its time");
    }

    #[tokio::test]
    async fn all_registered_streams_may_be_on_their_way_at_once() {
        let (dial, registry) = guest();
        let mut streams = Vec::new();
        for _ in 0..3 * SILENT {
            let (token, dialled) = registry.register();
            streams.push((token, dialled, connect(&dial).await));
        }
        for (token, dialled, mut stream) in streams {
            stream.write_all(&Preamble::Stream(token).encode()).await.unwrap();
            dialled.connection().await.unwrap();
        }
    }
}
