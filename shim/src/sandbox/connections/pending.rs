//! The connections that have not sent their preamble yet. It bounds their number and does not interpret the preamble.
//!
//! Any program of the guest can open connections and stay silent. If the next connection were refused, such a program
//! could lock out the agent. So the oldest silent connection is dropped instead: the agent sends its preamble as soon as
//! it is connected, and is silent for at most one round trip.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

#[derive(Default)]
struct Queue {
    next: u64,
    /// Oldest first. Dropping a sender evicts its connection.
    silent: VecDeque<(u64, oneshot::Sender<()>)>,
}

/// The silent connections of one VM. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Pending(Arc<Mutex<Queue>>);

/// The place of one silent connection; given back when it is dropped.
pub(super) struct Place {
    number: u64,
    evicted: oneshot::Receiver<()>,
    queue: Pending,
}

impl Pending {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a new connection. The oldest connections beyond `most` are evicted; the answer says how many.
    pub(super) fn admit(&self, most: usize) -> (Place, usize) {
        let mut queue = self.lock();
        let excess = (queue.silent.len() + 1).saturating_sub(most.max(1));
        queue.silent.drain(..excess);
        let number = queue.next;
        queue.next += 1;
        let (evict, evicted) = oneshot::channel();
        queue.silent.push_back((number, evict));
        drop(queue);
        let place = Place {
            number,
            evicted,
            queue: self.clone(),
        };
        (place, excess)
    }
}

impl Place {
    /// Waits until an eviction takes the place.
    pub(super) async fn evicted(&mut self) {
        // Nothing is ever sent: the sender's end is the sign.
        let _ = (&mut self.evicted).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut queue = self.queue.lock();
        // Numbers only grow from front to back.
        if let Ok(index) = queue.silent.binary_search_by_key(&self.number, |(number, _)| *number) {
            queue.silent.remove(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_gives_way_and_a_place_that_is_given_back_is_free() {
        let pending = Pending::default();
        let (mut first, none) = pending.admit(2);
        let (second, _) = pending.admit(2);
        assert_eq!(none, 0);
        drop(second);
        let (mut third, none) = pending.admit(2);
        assert_eq!(none, 0, "the second has given its place back");
        assert!(futures::poll!(std::pin::pin!(first.evicted())).is_pending());
        let (_fourth, one) = pending.admit(2);
        assert_eq!(one, 1);
        first.evicted().await;
        assert!(futures::poll!(std::pin::pin!(third.evicted())).is_pending());
    }

    #[tokio::test]
    async fn a_smaller_bound_evicts_several() {
        let pending = Pending::default();
        let mut places: Vec<_> = (0..5).map(|_| pending.admit(5).0).collect();
        let (_last, evicted) = pending.admit(2);
        assert_eq!(evicted, 4);
        for place in &mut places[..4] {
            place.evicted().await;
        }
        assert!(futures::poll!(std::pin::pin!(places[4].evicted())).is_pending());
    }
}
