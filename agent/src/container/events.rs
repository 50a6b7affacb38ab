//! Sends events to the host: numbered, one at a time, in order, each acknowledged. It knows no container.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use protocol::agent::{Event, OutOfMemory, ProcessExit, event::What};
use protocol::agent_ttrpc::HostClient;
use tokio::sync::Notify;
use ttrpc::context::Context;

use crate::common::ids::ContainerId;

/// OOM events that may wait. Exits are bounded by the processes that the host asked for; OOM kills are not bounded by
/// anything, and a workload can cause them at will.
const MAX_OOM: usize = 1024;

#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<What>,
    oom: usize,
}

/// Where events are put. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Events {
    queue: Arc<Mutex<Queue>>,
    more: Arc<Notify>,
}

impl Events {
    pub(crate) fn exit(&self, exit: ProcessExit) {
        self.push(What::Exit(exit));
    }

    /// The kernel killed something of this container. Left out when too many wait already.
    pub(crate) fn out_of_memory(&self, id: &ContainerId) {
        self.push(What::Oom(OutOfMemory {
            container_id: id.as_str().to_owned(),
            ..OutOfMemory::default()
        }));
    }

    fn push(&self, what: What) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(what, What::Oom(_)) {
            if queue.oom >= MAX_OOM {
                return;
            }
            queue.oom += 1;
        }
        queue.events.push_back(what);
        drop(queue);
        self.more.notify_one();
    }

    async fn next(&self) -> What {
        loop {
            {
                let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(what) = queue.events.pop_front() {
                    if matches!(what, What::Oom(_)) {
                        queue.oom -= 1;
                    }
                    return what;
                }
            }
            self.more.notified().await;
        }
    }

    /// Publishes until the host fails to acknowledge.
    pub(crate) async fn publish(self, host: HostClient) -> ttrpc::Error {
        let mut sequence = 0;
        loop {
            sequence += 1;
            if let Err(error) = send(&host, sequence, self.next().await).await {
                return error;
            }
        }
    }
}

/// Tells the host why there will be no sandbox.
///
/// # Errors
/// The host does not answer.
pub(crate) async fn fatal(host: &HostClient, message: String) -> ttrpc::Result<()> {
    send(host, 1, What::Fatal(message)).await
}

async fn send(host: &HostClient, sequence: u64, what: What) -> ttrpc::Result<()> {
    let event = Event {
        sequence,
        what: Some(what),
        ..Event::default()
    };
    host.publish(Context::default(), &event).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn events_keep_their_order_and_oom_events_are_bounded() {
        let events = Events::default();
        let id = ContainerId::new("c").unwrap();
        for _ in 0..MAX_OOM + 5 {
            events.out_of_memory(&id);
        }
        events.exit(ProcessExit::default());
        for _ in 0..MAX_OOM {
            assert!(matches!(events.next().await, What::Oom(_)));
        }
        assert!(matches!(events.next().await, What::Exit(_)));
    }
}
