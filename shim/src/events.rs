//! containerd's events: an ordered queue, forwarded over its ttrpc socket.
//!
//! containerd may restart while the sandbox runs, so an event is kept until containerd has accepted it. The queue is
//! bounded, but an exit is never dropped, because containerd would then believe that the process still runs.

mod backlog;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use containerd_shim_protos::protobuf::MessageFull;
use containerd_shim_protos::protobuf::well_known_types::{any::Any, timestamp::Timestamp};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use tokio::sync::Notify;
use ttrpc::{Code, context};

use self::backlog::{Backlog, Kept};

/// Timeout for one event to be accepted by containerd.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause between two attempts to reach a containerd that is not there. Its socket is made anew when it starts: there is
/// nothing of ours to wait on.
const RETRY: Duration = Duration::from_millis(500);

/// The sending end. Clones share one queue.
#[derive(Clone)]
pub struct Publisher {
    queue: Arc<Queue>,
    namespace: String,
}

struct Queue {
    backlog: Mutex<Backlog>,
    /// Notified when an event was added.
    filled: Notify,
    /// Notified when the queue has become empty.
    empty: Notify,
}

impl Queue {
    fn lock(&self) -> std::sync::MutexGuard<'_, Backlog> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Publisher {
    /// Starts forwarding to `address`, containerd's ttrpc socket; with none, events are dropped.
    #[must_use]
    pub fn start(address: &str, namespace: &str) -> Self {
        let queue = Arc::new(Queue {
            backlog: Mutex::default(),
            filled: Notify::new(),
            empty: Notify::new(),
        });
        if address.is_empty() {
            tracing::warn!("containerd gave no TTRPC_ADDRESS: no events will be published");
        }
        let address = if address.is_empty() || address.starts_with("unix://") {
            address.to_owned()
        } else {
            format!("unix://{address}")
        };
        tokio::spawn(forward(address, Arc::clone(&queue)));
        Self {
            queue,
            namespace: namespace.to_owned(),
        }
    }

    /// Queues one event. Events arrive in the order in which this was called.
    pub fn publish<M: MessageFull>(&self, topic: &str, event: &M) {
        let value = match event.write_to_bytes() {
            Ok(value) => value,
            Err(error) => {
                tracing::error!(topic, %error, "an event cannot be encoded");
                return;
            }
        };
        let envelope = Envelope {
            timestamp: Some(timestamp(SystemTime::now())).into(),
            namespace: self.namespace.clone(),
            topic: topic.to_owned(),
            event: Some(Any {
                // containerd's typeurl package uses the bare message name.
                type_url: M::descriptor().full_name().to_owned(),
                value,
                ..Default::default()
            })
            .into(),
            ..Default::default()
        };
        match self.queue.lock().add(envelope) {
            Kept::All => {}
            Kept::Merged => return,
            // Not a line for each: there may be as many as containerd is away for.
            Kept::Without { topic, lost } if lost.is_power_of_two() => {
                tracing::warn!(
                    topic,
                    lost,
                    "containerd takes no events: the oldest that is no exit is lost"
                );
            }
            Kept::Without { .. } => {}
        }
        self.queue.filled.notify_one();
    }

    /// Waits until everything has been taken, for at most `bound`.
    pub async fn flush(&self, bound: Duration) {
        let flushed = async {
            loop {
                let empty = self.queue.empty.notified();
                if self.queue.lock().is_empty() {
                    return;
                }
                empty.await;
            }
        };
        if tokio::time::timeout(bound, flushed).await.is_err() {
            tracing::warn!(left = self.queue.lock().len(), "containerd did not take all events");
        }
    }
}

#[must_use]
pub fn timestamp(time: SystemTime) -> Timestamp {
    Timestamp::from(time)
}

async fn forward(address: String, queue: Arc<Queue>) {
    let mut client: Option<EventsClient> = None;
    loop {
        let next = queue.lock().front().cloned();
        let Some(envelope) = next else {
            queue.empty.notify_waiters();
            queue.filled.notified().await;
            continue;
        };
        let sent = if address.is_empty() {
            Ok(Sent::Taken)
        } else {
            send(&address, &mut client, &envelope).await
        };
        match sent {
            Ok(Sent::Taken) => queue.lock().taken(&envelope),
            Ok(Sent::Refused) => {
                // The others go first: it may never be taken.
                queue.lock().refused(&envelope);
                tokio::time::sleep(RETRY).await;
            }
            Err(error) => {
                tracing::debug!(%error, topic = envelope.topic, "containerd did not take an event");
                client = None;
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// How containerd answered an event.
enum Sent {
    Taken,
    /// It was read, and will not be taken as it is.
    Refused,
}

async fn send(address: &str, client: &mut Option<EventsClient>, envelope: &Envelope) -> ttrpc::Result<Sent> {
    let connected = match client.take() {
        Some(connected) => connected,
        None => EventsClient::new(Client::connect(address).await?),
    };
    let request = ForwardRequest {
        envelope: Some(envelope.clone()).into(),
        ..Default::default()
    };
    let forwarded = connected
        .forward(context::with_duration(FORWARD_TIMEOUT), &request)
        .await;
    let sent = match forwarded {
        Ok(_) => Sent::Taken,
        Err(ttrpc::Error::RpcStatus(status)) if is_final(status.code()) => {
            tracing::warn!(
                topic = envelope.topic,
                message = status.message(),
                "containerd refuses an event"
            );
            Sent::Refused
        }
        // It could not be taken now: containerd is about to end, or has too much to do.
        Err(error) => return Err(error),
    };
    *client = Some(connected);
    Ok(sent)
}

/// Whether a status says that the event itself is wrong, and not that the time is.
fn is_final(code: Code) -> bool {
    matches!(
        code,
        Code::INVALID_ARGUMENT | Code::NOT_FOUND | Code::UNIMPLEMENTED | Code::PERMISSION_DENIED | Code::OUT_OF_RANGE
    )
}

#[cfg(test)]
mod tests;
