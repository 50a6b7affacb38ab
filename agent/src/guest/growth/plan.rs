//! Decides when the VM gets more memory, and when less, from what the containers use. It knows no host and no file.

use std::time::{Duration, Instant};

use crate::cgroup::Usage;

/// The guest's memory comes and goes in blocks of this many bytes.
const BLOCK: u64 = 128 << 20;

/// Of the containers' limit, in percent: who needs more than the first gets more memory, and who needs less than the second of what
/// would be left gives some back.
const FULL: u64 = 60;
const EASY: u64 = 40;

/// Files that are read again after the kernel had taken them back count from this part of the limit on, if as much was read again between
/// two stalls that are no further apart than `THRASHING`.
const REREAD: u64 = 16;
const THRASHING: Duration = Duration::from_secs(10);

/// How often it is looked whether there is too much memory: the kernel does not tell of memory that is freed.
pub(super) const LOOK: Duration = Duration::from_secs(10);

/// So many looks in a row have to find too much.
const LOOKS: u32 = 3;
/// Who needs memory again so soon after giving it back is asked for twice as long the next time, up to `MOST_LOOKS`.
const SOON: Duration = Duration::from_secs(600);
const MOST_LOOKS: u32 = 96;

/// How long a host that has no more is not asked again, unless containers come or change.
const REFUSED: Duration = Duration::from_secs(30);

/// Why it is looked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// The containers have reached their mark or their limit.
    Full,
    /// They have waited for memory.
    Stalled,
    /// Time has passed.
    Quiet,
}

/// What the VM has beyond its boot and the limits, and what has been seen.
#[derive(Debug)]
pub(super) struct Plan {
    /// Bytes that it has.
    pub(super) extra: u64,
    /// Bytes that it can have.
    most: u64,
    refused: Option<Instant>,
    shrunk: Option<Instant>,
    stalled: Option<(Instant, u64)>,
    /// Looks that found too much, and the most that was needed then.
    looks: u32,
    peak: u64,
    /// Looks that it takes.
    patience: u32,
}

impl Plan {
    pub(super) fn new(most: u64) -> Self {
        Self {
            extra: 0,
            most,
            refused: None,
            shrunk: None,
            stalled: None,
            looks: 0,
            peak: 0,
            patience: LOOKS,
        }
    }

    /// What the VM may still get, as far as is known.
    pub(super) fn more(&self) -> u64 {
        if self.refused.is_some() {
            return 0;
        }
        self.most.saturating_sub(self.extra)
    }

    /// What to ask the host for, if anything.
    pub(super) fn decide(&mut self, cause: Cause, usage: Usage, now: Instant) -> Option<u64> {
        if self.refused.is_some_and(|at| now.duration_since(at) > REFUSED) {
            self.refused = None;
        }
        let thrashes = cause == Cause::Stalled && self.thrashes(usage, now);
        if cause == Cause::Quiet {
            return self.less(usage);
        }
        let full = usage.needed > usage.limit / 100 * FULL;
        if !full && !thrashes || self.more() == 0 {
            return None;
        }
        // As much again: few steps to any size, and never more than twice what is needed.
        Some((self.extra + usage.total.next_multiple_of(BLOCK)).min(self.most))
    }

    fn thrashes(&mut self, usage: Usage, now: Instant) -> bool {
        let before = self.stalled.replace((now, usage.refaulted));
        before.is_some_and(|(at, refaulted)| {
            let again = usage.refaulted.saturating_sub(refaulted);
            now.duration_since(at) <= THRASHING && again > usage.limit / REREAD
        })
    }

    fn less(&mut self, usage: Usage) -> Option<u64> {
        self.peak = self.peak.max(usage.needed);
        // What has to be left so that it is not full at once.
        let left = self.peak / EASY * 100;
        let spare = usage.limit.saturating_sub(left).min(self.extra);
        let spare = spare - spare % BLOCK;
        if spare < BLOCK.max(self.extra / 4) {
            (self.looks, self.peak) = (0, 0);
            return None;
        }
        self.looks += 1;
        (self.looks >= self.patience).then(|| self.extra - spare)
    }

    /// The host has granted so much.
    pub(super) fn granted(&mut self, asked: u64, granted: u64, now: Instant) {
        if granted < self.extra {
            self.shrunk = Some(now);
        } else if granted > self.extra {
            let soon = self.shrunk.is_some_and(|at| now.duration_since(at) < SOON);
            self.patience = if soon {
                (self.patience * 2).min(MOST_LOOKS)
            } else {
                LOOKS
            };
        }
        (self.looks, self.peak) = (0, 0);
        self.extra = granted;
        self.refused = (granted < asked).then_some(now);
    }

    /// The host has no more.
    pub(super) fn refused(&mut self, now: Instant) {
        self.refused = Some(now);
    }

    /// Containers have come or have other limits: the host may think otherwise.
    pub(super) fn forgive(&mut self) {
        self.refused = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const MOST: u64 = 1792 * MIB;

    fn usage(total: u64, limit: u64, needed: u64) -> Usage {
        Usage {
            limit: limit * MIB,
            needed: needed * MIB,
            refaulted: 0,
            total: total * MIB,
        }
    }

    #[test]
    fn memory_doubles_until_it_is_the_most() {
        let (mut plan, now) = (Plan::new(MOST), Instant::now());
        for (total, limit, needed, expected) in [
            (229, 160, 100, Some(256)),
            (485, 400, 300, Some(768)),
            (990, 900, 600, Some(1792)),
            (2000, 1900, 1800, None),
        ] {
            let asked = plan.decide(Cause::Full, usage(total, limit, needed), now);
            assert_eq!(asked, expected.map(|extra| extra * MIB));
            if let Some(asked) = asked {
                plan.granted(asked, asked, now);
            }
        }
        assert_eq!((plan.extra, plan.more()), (MOST, 0));
    }

    #[test]
    fn files_that_are_read_once_are_no_reason_and_files_that_are_read_again_and_again_are() {
        let (mut plan, now) = (Plan::new(MOST), Instant::now());
        let once = usage(229, 160, 60);
        assert_eq!(plan.decide(Cause::Full, once, now), None);
        assert_eq!(plan.decide(Cause::Stalled, once, now), None);
        assert_eq!(plan.decide(Cause::Stalled, once, now), None);
        let again = Usage {
            refaulted: 20 * MIB,
            ..once
        };
        assert_eq!(plan.decide(Cause::Full, again, now), None);
        let late = now + THRASHING * 2;
        assert_eq!(plan.decide(Cause::Stalled, again, late), None);
        let more = Usage {
            refaulted: 40 * MIB,
            ..once
        };
        let soon = late + Duration::from_secs(1);
        assert_eq!(plan.decide(Cause::Stalled, more, soon), Some(256 * MIB));
    }

    fn grown() -> (Plan, Instant) {
        let (mut plan, now) = (Plan::new(MOST), Instant::now());
        plan.granted(MOST, MOST, now);
        (plan, now)
    }

    #[test]
    fn what_was_not_needed_for_some_looks_is_given_back_and_the_most_that_was_needed_counts() {
        let (mut plan, now) = grown();
        let look = |plan: &mut Plan, needed| plan.decide(Cause::Quiet, usage(2000, 1900, needed), now);
        assert_eq!(look(&mut plan, 50), None);
        assert_eq!(look(&mut plan, 200), None);
        // 500 MiB have to be left of 1900.
        assert_eq!(look(&mut plan, 50), Some((1792 - 1280) * MIB));
        plan.granted(512 * MIB, 512 * MIB, now);
        assert_eq!(look(&mut plan, 1800), None);
        let all = |plan: &mut Plan| plan.decide(Cause::Quiet, usage(740, 650, 10), now);
        assert_eq!([all(&mut plan), all(&mut plan), all(&mut plan)], [None, None, Some(0)]);
        plan.granted(0, 0, now);
        assert_eq!(plan.decide(Cause::Quiet, usage(229, 160, 10), now), None);
    }

    #[test]
    fn who_needs_it_again_soon_keeps_it_for_longer_the_next_time() {
        let (mut plan, now) = grown();
        let look = |plan: &mut Plan| plan.decide(Cause::Quiet, usage(2000, 1900, 10), now).is_some();
        for patience in [3, 6, 12, 24, 48, 96, 96] {
            let looks = (0..patience).map(|_| look(&mut plan)).collect::<Vec<_>>();
            assert_eq!(looks.iter().filter(|shrinks| **shrinks).count(), 1, "{patience}");
            plan.granted(0, 0, now);
            plan.granted(MOST, MOST, now);
        }
        plan.granted(0, 0, now);
        plan.granted(MOST, MOST, now + SOON);
        assert_eq!(plan.patience, LOOKS);
    }

    #[test]
    fn a_host_that_has_no_more_is_asked_again_later_or_when_containers_change() {
        let (mut plan, now) = (Plan::new(MOST), Instant::now());
        let full = usage(229, 160, 150);
        plan.granted(256 * MIB, 0, now);
        assert_eq!((plan.more(), plan.decide(Cause::Full, full, now)), (0, None));
        plan.forgive();
        assert!(plan.decide(Cause::Full, full, now).is_some());
        plan.refused(now);
        assert!(plan.decide(Cause::Full, full, now + REFUSED).is_none());
        assert!(plan.decide(Cause::Full, full, now + REFUSED * 2).is_some());
    }
}
