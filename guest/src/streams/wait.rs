//! The time limit for a guest that still has to send the output of an ended process.

use std::time::Duration;

use tokio::time::Instant;

/// The limit in all, as a multiple of the patience. The remaining output fits into pipes and sockets, so a guest that sends it byte by
/// byte only delays the exit.
const PATIENCES: u32 = 6;

/// Time that was spent on waiting for the guest since the process ended. What a slow reader of the host takes does not count.
#[derive(Default)]
pub struct Wait(Duration);

impl Wait {
    /// Waits until the guest has had its time: `patience` without progress, [`PATIENCES`] times that in all. May be cancelled
    /// and begun again.
    pub async fn is_over(&mut self, patience: Duration) {
        let left = (patience * PATIENCES).saturating_sub(self.0);
        let _counted = Counted(Instant::now(), &mut self.0);
        tokio::time::sleep(patience.min(left)).await;
    }
}

/// Adds the time of its life.
struct Counted<'a>(Instant, &'a mut Duration);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        *self.1 += self.0.elapsed();
    }
}
