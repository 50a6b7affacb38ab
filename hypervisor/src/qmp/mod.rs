//! QEMU's monitor: commands with typed answers, and events (docs/interop/qmp-spec in QEMU).
//!
//! Owns one connection. Knows the protocol, but not the meaning of commands, except for the event that says why a guest
//! ended. Two tasks serve it, one per direction, so that a caller that is cancelled in the middle of a command leaves no
//! partial line.

mod event;
mod send;
mod wire;

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base::scale::Scale;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{broadcast, mpsc, oneshot, watch};

pub use event::Event;
use send::Line;
use wire::{Message, WireError};

use crate::doublings::is_told;

/// How long QEMU may take for an answer. It answers at once unless its main loop is stuck.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Events kept for a subscriber that does not read; older ones are lost to it.
const EVENT_BACKLOG: usize = 64;

/// Why a command has no answer.
#[derive(Debug, Clone, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what they are")]
pub enum QmpError {
    #[error("QEMU refuses {command}: {description} ({class})")]
    Refused {
        command: String,
        /// The kind of error, `GenericError` for most.
        class: String,
        description: String,
    },
    /// QEMU has ended, or closed the connection because of what it read.
    #[error("the connection to QEMU's monitor is closed")]
    Closed,
    #[error("QEMU has not answered {command} for {} s", limit.as_secs_f64())]
    Timeout { command: String, limit: Duration },
}

impl QmpError {
    /// QEMU refuses because there is no such device or back end (ERROR_CLASS_DEVICE_NOT_FOUND in QEMU's qapi/error.json).
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, QmpError::Refused { class, .. } if class == "DeviceNotFound")
    }
}

type Pending = Arc<Mutex<HashMap<u64, oneshot::Sender<Result<Value, wire::Refusal>>>>>;

/// A connection to the monitor. Clones share it.
#[derive(Debug, Clone)]
pub struct Qmp {
    lines: mpsc::Sender<Line>,
    pending: Pending,
    next_id: Arc<AtomicU64>,
    events: broadcast::Sender<Event>,
    state: watch::Receiver<State>,
    scale: Scale,
}

/// What the reader has learned so far.
#[derive(Debug, Default)]
struct State {
    greeted: bool,
    closed: bool,
    /// The reason in the first SHUTDOWN event.
    shutdown: Option<String>,
}

impl Qmp {
    /// Serves a connection. Must be called in a runtime. `scale` is for the time-outs of all that is done by it.
    pub(crate) fn new(stream: UnixStream, scale: Scale) -> Self {
        let (reader, writer) = stream.into_split();
        let (lines, queue) = mpsc::channel(16);
        let (events, _) = broadcast::channel(EVENT_BACKLOG);
        let (state, receiver) = watch::channel(State::default());
        let pending = Pending::default();
        let reading = Reader {
            state,
            pending: Arc::clone(&pending),
            events: events.clone(),
            complaints: 0,
        };
        tokio::spawn(reading.run(reader));
        tokio::spawn(write(writer, queue));
        Self {
            lines,
            pending,
            next_id: Arc::default(),
            events,
            state: receiver,
            scale,
        }
    }

    /// The factor for time-outs of this VM.
    pub(crate) fn scale(&self) -> Scale {
        self.scale
    }

    /// Waits until QEMU greets, which it does when it has made all devices, and leaves negotiation mode.
    pub(crate) async fn negotiate(&self) -> Result<(), QmpError> {
        let mut state = self.state.clone();
        // Looked at in one expression: the value is locked as long as the guard lives, and a future that keeps it
        // is not Send.
        let greeted = state
            .wait_for(|state| state.greeted || state.closed)
            .await
            .map_err(|_| QmpError::Closed)?
            .greeted;
        if !greeted {
            return Err(QmpError::Closed);
        }
        self.execute("qmp_capabilities", Value::Null).await.map(drop)
    }

    /// Runs a command; `arguments` is an object, or null for none.
    ///
    /// # Errors
    /// QEMU refuses it, has ended, or does not answer in time.
    pub async fn execute(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.run(command, arguments, None).await
    }

    /// Runs a command that takes a descriptor along (`add-fd`, `getfd`). QEMU has a copy of it when it has answered.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn execute_with(&self, command: &str, arguments: Value, file: OwnedFd) -> Result<Value, QmpError> {
        self.run(command, arguments, Some(file)).await
    }

    async fn run(&self, command: &str, arguments: Value, file: Option<OwnedFd>) -> Result<Value, QmpError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        lock(&self.pending).insert(id, sender);
        let _forget = Forget {
            pending: &self.pending,
            id,
        };
        // Looked at after the entry was made: the reader closes first, then drops the entries that it finds.
        if self.state.borrow().closed {
            return Err(QmpError::Closed);
        }
        let answered = async {
            self.lines
                .send(Line {
                    bytes: wire::command(command, arguments, id),
                    file,
                })
                .await
                .map_err(|_| QmpError::Closed)?;
            answer.await.map_err(|_| QmpError::Closed)
        };
        let limit = self.scale.of(ANSWER_TIMEOUT);
        match tokio::time::timeout(limit, answered).await {
            Err(_) => Err(QmpError::Timeout {
                command: command.to_owned(),
                limit,
            }),
            Ok(Err(error)) => Err(error),
            Ok(Ok(Ok(value))) => Ok(value),
            Ok(Ok(Err(refusal))) => Err(QmpError::Refused {
                command: command.to_owned(),
                class: refusal.class,
                description: refusal.description,
            }),
        }
    }

    /// The events from now on.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Waits for the connection's end; then, the reason of the guest's shutdown if QEMU told one.
    pub(crate) async fn closed(&self) -> Option<String> {
        let mut state = self.state.clone();
        state.wait_for(|state| state.closed).await.ok()?.shutdown.clone()
    }
}

/// Removes a command's entry, also if its caller was cancelled.
struct Forget<'a> {
    pending: &'a Pending,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        lock(self.pending).remove(&self.id);
    }
}

async fn write(mut writer: OwnedWriteHalf, mut queue: mpsc::Receiver<Line>) {
    while let Some(line) = queue.recv().await {
        if line.send(&mut writer).await.is_err() {
            // QEMU is gone; the reader sees it too and tells everybody.
            return;
        }
    }
}

struct Reader {
    state: watch::Sender<State>,
    pending: Pending,
    events: broadcast::Sender<Event>,
    /// Number of commands that QEMU did not understand.
    complaints: u64,
}

impl Reader {
    async fn run(mut self, stream: OwnedReadHalf) {
        let mut lines = wire::Lines::new(stream);
        loop {
            match lines.next().await {
                Ok(Some(message)) => self.handle(message),
                Ok(None) => break,
                Err(WireError::Read(error)) if error.kind() == io::ErrorKind::ConnectionReset => break,
                Err(error) => {
                    tracing::error!(%error, "QEMU's monitor is not understood; the connection is closed");
                    break;
                }
            }
        }
        self.state.send_modify(|state| state.closed = true);
        lock(&self.pending).clear();
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Greeting => self.state.send_modify(|state| state.greeted = true),
            Message::Answer { id, result } => {
                if let Some(waiting) = lock(&self.pending).remove(&id) {
                    // Its caller may have given up.
                    let _ = waiting.send(result);
                }
            }
            Message::Complaint(refusal) => {
                if is_told(self.complaints) {
                    let before = self.complaints;
                    tracing::error!(before, "QEMU did not understand a command: {}", refusal.description);
                }
                self.complaints += 1;
            }
            Message::Event(event) => {
                tracing::debug!(name = event.name, data = %event.data, "QEMU event");
                if event.name == "SHUTDOWN" {
                    let reason = event.data["reason"].as_str().unwrap_or("unknown").to_owned();
                    // A guest that has ended is told to quit, which is another reason.
                    self.state.send_modify(|state| {
                        state.shutdown.get_or_insert(reason);
                    });
                }
                // Nobody need listen.
                let _ = self.events.send(event);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
