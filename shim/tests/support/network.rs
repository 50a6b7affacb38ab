//! The network of the fake VM, and how the guest takes its changes.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::{Notify, watch};

#[derive(Default)]
pub(crate) struct FakeNetwork {
    changes: Notify,
    changed: AtomicBool,
    /// How many updates the guest refuses.
    pub(crate) refusals: AtomicUsize,
    /// How many updates were sent to it.
    updates: watch::Sender<usize>,
}

impl FakeNetwork {
    /// The network changes on the host.
    pub(crate) fn change(&self) {
        self.changed.store(true, Ordering::SeqCst);
        self.changes.notify_one();
    }

    pub(super) async fn next_change(&self) {
        self.changes.notified().await;
    }

    /// Whether it has changed since this was asked last.
    pub(super) fn has_changed(&self) -> bool {
        self.changed.swap(false, Ordering::SeqCst)
    }

    /// An update comes; whether the guest takes it.
    pub(super) fn update(&self) -> bool {
        self.updates.send_modify(|updates| *updates += 1);
        let refused = |left: usize| left.checked_sub(1);
        self.refusals
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, refused)
            .is_err()
    }

    /// Waits for that many updates.
    pub(crate) async fn updated(&self, count: usize) {
        let mut updates = self.updates.subscribe();
        updates.wait_for(|updates| *updates >= count).await.unwrap();
    }
}
