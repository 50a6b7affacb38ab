//! The agent's log: JSON lines, sent to the console until the LOG connection exists, then to that connection. It is
//! bounded: if the host does not read, lines are lost, but no memory is used. The agent's spans are lines of it as well.

use std::io::{self, Write};
use std::sync::{Arc, OnceLock};

use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Registry, reload};

/// Most lines that wait for the host.
const QUEUE: usize = 256;

/// Longest line in bytes; what is longer is left out rather than cut into invalid JSON.
const MAX_LINE: usize = 16 << 10;

type Line = Vec<u8>;

/// Where a line goes: the connection once it is there, before that the console.
#[derive(Debug, Clone, Default)]
struct Sink(Arc<OnceLock<mpsc::Sender<Line>>>);

impl<'a> MakeWriter<'a> for Sink {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Write for Sink {
    /// The formatter hands over one whole line at a time.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self.0.get() {
            None => io::stderr().write_all(line)?,
            Some(queue) if line.len() <= MAX_LINE => {
                // A full queue drops the line: the log must never hold up a container.
                let _ = queue.try_send(line.to_vec());
            }
            Some(_) => {}
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Turns the log that [`init`] made over to the host.
#[derive(Debug)]
pub(crate) struct Log {
    sink: Sink,
    level: reload::Handle<LevelFilter, Registry>,
}

/// Starts logging to the console.
///
/// # Errors
/// Somebody else logs already.
pub(crate) fn init() -> Result<Log, TryInitError> {
    let sink = Sink::default();
    let (filter, level) = reload::Layer::new(LevelFilter::INFO);
    let lines = tracing_subscriber::fmt::layer()
        .json()
        .flatten_event(true)
        .with_writer(sink.clone());
    tracing_subscriber::registry().with(filter).with(lines).try_init()?;
    Ok(Log { sink, level })
}

impl Log {
    /// Takes spans that have ended. Those from before the connection are lost: there are none, because only a request has one.
    pub(crate) fn spans(&self) -> impl Fn(trace::Record) + Clone + Send + Sync + 'static {
        let sink = self.sink.clone();
        move |span| {
            if let Some(queue) = sink.0.get() {
                // As for a line: a container never waits for it.
                let _ = queue.try_send(span.to_line());
            }
        }
    }

    /// Sends what is logged from now on to `connection`, from `level` upwards ("trace" to "error"; anything else is
    /// "info").
    pub(crate) fn connect(&self, connection: impl AsyncWrite + Send + Unpin + 'static, level: &str) {
        let level = level.parse().unwrap_or(LevelFilter::INFO);
        if self.level.reload(level).is_err() {
            tracing::warn!("the log level cannot be set");
        }
        let (sender, lines) = mpsc::channel(QUEUE);
        if self.sink.0.set(sender).is_ok() {
            tokio::spawn(send(lines, connection));
        }
    }
}

/// A connection that is lost ends the task: the queue fills, and the lines are dropped.
async fn send(mut lines: mpsc::Receiver<Line>, mut connection: impl AsyncWrite + Unpin) {
    while let Some(line) = lines.recv().await {
        if connection.write_all(&line).await.is_err() {
            return;
        }
    }
}
