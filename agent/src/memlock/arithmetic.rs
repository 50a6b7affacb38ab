//! Computes what the kernel would charge, and to whom. Pure. All counts are pages unless stated otherwise.
//!
//! The rule, from `perf_mmap` (kernel/events/core.c): a buffer of n data pages has n + 1 pages. They are charged to the
//! user until that user has kernel.perf_event_mlock_kb, in whole pages, for each online CPU. The rest is charged to the
//! process, whose pinned pages must not exceed its limit in whole pages.

use protocol::agent::MemlockReport;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Charges {
    page: u64,
    pub(super) cpus: u64,
    kb: u64,
    limit: u64,
    pinned: u64,
    /// Of all buffers with their headers.
    pub(super) needed: u64,
}

impl Charges {
    pub(super) fn of(report: &MemlockReport, cpus: u64, pages: u32) -> Self {
        Self {
            page: u64::from(report.page_size).max(1024),
            cpus: cpus.max(1),
            kb: report.perf_event_mlock_kb.into(),
            limit: report.soft_limit,
            pinned: report.pinned,
            needed: (u64::from(pages) + 1) * cpus.max(1),
        }
    }

    pub(super) fn needed_bytes(&self) -> u64 {
        self.needed.saturating_mul(self.page)
    }

    /// What is left of the process's limit, in bytes.
    pub(super) fn limit_left(&self) -> u64 {
        if self.limit == u64::MAX {
            return u64::MAX;
        }
        let pages = (self.limit / self.page).saturating_sub(self.pinned / self.page);
        pages * self.page
    }

    /// The smallest limit with which all buffers are granted, in bytes, where `left` is left of the user's allowance.
    pub(super) fn limit_needed(&self, left: u64) -> u64 {
        let beyond = self.needed.saturating_sub(left);
        self.pinned.saturating_add(beyond.saturating_mul(self.page))
    }

    /// The smallest kernel.perf_event_mlock_kb with which all buffers are granted.
    pub(super) fn kb_needed(&self, left: u64) -> u32 {
        let kb_per_page = self.page / 1024;
        let allowance = self.kb / kb_per_page * self.cpus;
        let used = allowance.saturating_sub(left);
        let by_limit = self.limit_left() / self.page;
        let wanted = used.saturating_add(self.needed).saturating_sub(by_limit);
        let kb = wanted.div_ceil(self.cpus).saturating_mul(kb_per_page);
        u32::try_from(kb).unwrap_or(u32::MAX).min(i32::MAX.unsigned_abs())
    }
}

/// The CPUs of a list such as `0-3,5` (Documentation/admin-guide/cputopology.rst).
pub(super) fn online(list: &str) -> Vec<u32> {
    /// More than any VM has.
    const MOST: u32 = 4096;
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        (last < MOST).then_some(first..=last)
    };
    list.trim().split(',').filter_map(range).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn charges(kb: u64, cpus: u64, limit: u64, pinned: u64, needed: u64) -> Charges {
        Charges {
            page: 4096,
            cpus,
            kb,
            limit,
            pinned,
            needed,
        }
    }

    /// Whether the kernel would grant all of it, by its own rule.
    fn granted(charges: &Charges, used: u64) -> bool {
        let allowance = (charges.kb / 4) * charges.cpus;
        let user = used.min(allowance) + charges.needed;
        let extra = user.saturating_sub(allowance);
        charges.limit == u64::MAX || charges.pinned / 4096 + extra <= charges.limit / 4096
    }

    #[test]
    fn the_kernels_defaults_give_129_pages_on_each_cpu() {
        let shipped = charges(516, 2, 0, 0, 300);
        assert_eq!(shipped.limit_left(), 0);
        assert_eq!(shipped.limit_needed(258), 42 * 4096);
        assert_eq!(shipped.kb_needed(258), 600);
        let report = MemlockReport {
            page_size: 4096,
            soft_limit: 8 << 20,
            pinned: 8192,
            perf_event_mlock_kb: 516,
            ..Default::default()
        };
        let of = Charges::of(&report, 2, 64);
        assert_eq!((of.needed, of.limit_left()), (130, (8 << 20) - 8192));
    }

    #[test]
    fn lists_of_cpus_are_read() {
        assert_eq!(online("0-3,5\n"), [0, 1, 2, 3, 5]);
        assert_eq!(online("0"), [0]);
        assert!(online("").is_empty() && online("0-4294967295").is_empty() && online("3-1").is_empty());
    }

    proptest! {
        #[test]
        fn each_remedy_is_enough_and_a_page_less_is_not(
            kb in 0_u64..4000, cpus in 1_u64..9, limit in 0_u64..4_000_000, pinned_pages in 0_u64..500,
            needed in 1_u64..2000, used in 0_u64..3000,
        ) {
            let now = charges(kb, cpus, limit, pinned_pages * 4096, needed);
            let allowance = (kb / 4) * cpus;
            let used = used.min(allowance);
            let left = (allowance - used).min(needed);
            if !granted(&now, used) {
                let limit = now.limit_needed(left);
                let raised = Charges { limit, ..now };
                prop_assert!(granted(&raised, used));
                let less = Charges { limit: limit - 1, ..now };
                prop_assert!(!granted(&less, used));
                // A process that has pinned more than its limit allows is refused whatever the allowance is.
                if pinned_pages <= limit / 4096 && now.pinned <= now.limit {
                    let kb = u64::from(now.kb_needed(left));
                    let raised = Charges { kb, ..now };
                    prop_assert!(granted(&raised, used));
                    let less = Charges { kb: kb - 4, ..now };
                    prop_assert!(!granted(&less, used));
                }
            }
        }

        #[test]
        fn no_numbers_of_the_kernel_or_the_host_overflow(
            kb: u32, cpus: u32, limit: u64, pinned: u64, pages: u32, left: u64, page: u32,
        ) {
            let report = MemlockReport {
                page_size: page, soft_limit: limit, pinned, perf_event_mlock_kb: kb, ..Default::default()
            };
            let charges = Charges::of(&report, cpus.into(), pages);
            let _ = (charges.needed_bytes(), charges.limit_left(), charges.limit_needed(left), charges.kb_needed(left));
        }
    }
}
