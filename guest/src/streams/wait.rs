//! How long a guest is waited for that owes the output of a process that has ended.

use std::time::Duration;

use tokio::time::Instant;

/// How many times its patience such a guest has in all: what is left is in its pipes and sockets, so whoever sends it byte by byte
/// only wants the process not to end.
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
