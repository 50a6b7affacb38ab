//! Reports every OOM kill in a container to the host, once.

use std::sync::{Arc, Mutex, PoisonError};

use crate::cgroup::{Cgroup, Watch};
use crate::common::ids::ContainerId;
use crate::container::events::Events;

/// The kills of one container that have been reported.
#[derive(Debug)]
pub(crate) struct OomReporter {
    id: ContainerId,
    cgroup: Arc<Cgroup>,
    events: Events,
    reported: Mutex<u64>,
}

impl OomReporter {
    pub(crate) fn new(id: ContainerId, cgroup: Arc<Cgroup>, events: Events) -> Self {
        Self {
            id,
            cgroup,
            events,
            reported: Mutex::new(0),
        }
    }

    /// Reports what is new. Called at each change of the file, and before an exit is published, so that the host knows
    /// the reason first.
    pub(crate) fn report(&self) {
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        let kills = self.cgroup.oom_kills();
        for _ in *reported..kills {
            self.events.out_of_memory(&self.id);
        }
        *reported = kills.max(*reported);
    }

    /// Reports for ever.
    pub(crate) async fn run(self: Arc<Self>, changes: Watch) {
        loop {
            self.report();
            if changes.changed().await.is_err() {
                return;
            }
        }
    }
}
