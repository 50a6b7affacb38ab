//! Checks the spans that the guest sends: it can add to its own sandbox's trace, at a bounded rate, and nothing else.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use trace::{Context, Record};

/// Most spans per second that are accepted from the guest.
const RATE: u32 = 200;

/// What of the guest's spans is let through.
pub(super) struct GuestLines {
    root: Context,
    began: u64,
    /// Since when spans are counted, and how many there were.
    window: Mutex<(Instant, u32)>,
}

impl GuestLines {
    pub(super) fn new(root: Context) -> Self {
        Self {
            root,
            began: now(),
            window: Mutex::new((Instant::now(), 0)),
        }
    }

    /// The span, if it is one of this trace and there are not too many. Its times are between the sandbox's start and now: the guest's
    /// clock is not trusted.
    pub(super) fn accept(&self, mut span: Record) -> Option<Record> {
        let parent = span.parent.as_ref()?;
        if !span.context.shares_trace(&self.root) || !parent.shares_trace(&self.root) || span.context == self.root {
            return None;
        }
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if window.0.elapsed() >= Duration::from_secs(1) {
            *window = (Instant::now(), 0);
        }
        window.1 += 1;
        if window.1 > RATE {
            return None;
        }
        let now = now().max(self.began);
        span.start = span.start.clamp(self.began, now);
        span.end = span.end.clamp(span.start, now);
        Some(span)
    }
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use trace::Kind;

    fn span(context: Context, parent: Option<Context>) -> Record {
        Record {
            context,
            parent,
            name: "exec".to_owned(),
            kind: Kind::Server,
            start: 0,
            end: u64::MAX,
            attributes: std::collections::BTreeMap::new(),
            error: None,
        }
    }

    #[test]
    fn the_guest_adds_to_its_own_trace_alone_and_within_its_time() {
        let root = Context::root();
        let guest = GuestLines::new(root);
        let taken = guest.accept(span(root.child(), Some(root.child()))).unwrap();
        assert!(taken.start >= guest.began && taken.end <= now() && taken.start <= taken.end);
        let other = Context::root();
        for (context, parent) in [
            (other.child(), Some(other)),
            (root.child(), Some(other)),
            (root.child(), None),
            (root, Some(root.child())),
        ] {
            assert_eq!(guest.accept(span(context, parent)), None);
        }
    }

    #[test]
    fn a_guest_that_floods_is_cut_off() {
        let root = Context::root();
        let guest = GuestLines::new(root);
        let taken = (0..10 * RATE).filter(|_| guest.accept(span(root.child(), Some(root))).is_some());
        let taken = u32::try_from(taken.count()).unwrap();
        // A second may have passed meanwhile.
        assert!((RATE..=3 * RATE).contains(&taken), "{taken}");
    }
}
