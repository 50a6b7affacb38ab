//! Rate-limited messages about the guest in the log. The guest can cause any number of them, and containerd stores the
//! log on the host's disk. So their number is limited.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Messages in one [`WINDOW`].
const MOST: u64 = 30;

/// How long it takes until as many are said again.
const WINDOW: Duration = Duration::from_secs(60);

static WARNINGS: Mutex<Option<Window>> = Mutex::new(None);

/// Whether to say one more. Those that were not said are said by their number.
pub fn may_warn() -> bool {
    let mut warnings = WARNINGS.lock().unwrap_or_else(PoisonError::into_inner);
    let now = Instant::now();
    let Verdict { say, unsaid } = warnings.get_or_insert_with(|| Window::new(now)).count(now);
    drop(warnings);
    if unsaid > 0 {
        tracing::warn!(unsaid, "there was more to say about the guest in the last minute");
    }
    say
}

/// Counts what a guest can cause without end: [`MOST`] in a [`WINDOW`] pass.
#[derive(Debug)]
pub struct Window {
    began: Instant,
    count: u64,
}

#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    say: bool,
    /// Warnings of the window before that were not said.
    unsaid: u64,
}

impl Window {
    /// Starts the first window at `now`.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { began: now, count: 0 }
    }

    /// Whether one more passes.
    pub fn admits(&mut self, now: Instant) -> bool {
        self.count(now).say
    }

    fn count(&mut self, now: Instant) -> Verdict {
        let mut unsaid = 0;
        if now.duration_since(self.began) >= WINDOW {
            unsaid = self.count.saturating_sub(MOST);
            *self = Self::new(now);
        }
        self.count += 1;
        Verdict {
            say: self.count <= MOST,
            unsaid,
        }
    }
}

/// A message about what the guest does that is no warning.
#[macro_export]
macro_rules! info_rate_limited {
    ($($what:tt)*) => {
        if $crate::rate_limited::may_warn() {
            tracing::info!($($what)*);
        }
    };
}

/// A warning about what the guest does.
#[macro_export]
macro_rules! warn_rate_limited {
    ($($what:tt)*) => {
        if $crate::rate_limited::may_warn() {
            tracing::warn!($($what)*);
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_gives_reason_without_end_is_warned_of_within_bounds() {
        let began = Instant::now();
        let mut window = Window::new(began);
        let said = (0..100_000).filter(|_| window.count(began).say).count();
        assert_eq!(said as u64, MOST);
        let later = window.count(began + WINDOW);
        assert_eq!(
            later,
            Verdict {
                say: true,
                unsaid: 100_000 - MOST
            }
        );
    }
}
