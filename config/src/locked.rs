//! The values of `[runtime.memlock]` and `[runtime.cap_ipc_lock]`: limits of locked memory, and the capability that lifts
//! them.

use std::fmt;

use crate::value::choice;

/// A limit of locked memory in bytes, or none at all: the largest of all limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LockLimit(u64);

/// The units that a size can have, and bytes in each.
const UNITS: [(&str, u64); 4] = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];

impl LockLimit {
    /// No limit (RLIM_INFINITY, getrlimit(2)).
    pub const UNLIMITED: Self = Self(u64::MAX);

    /// What Linux gives its first process (MLOCK_LIMIT, include/uapi/linux/resource.h): 8 MiB.
    pub const KERNEL_DEFAULT: Self = Self(8 << 20);

    /// The largest limit that is one: 2^63-1 bytes, which a signed number can hold too.
    pub const MAX: Self = Self(i64::MAX as u64);

    /// What [`LockLimit::parse`] reads, in words.
    pub const ALLOWED: &str =
        "\"unlimited\", or a whole number of bytes, or one of KiB, MiB, GiB or TiB as in \"64MiB\"";

    /// A limit as the kernel has it: the largest number stands for none.
    #[must_use]
    pub fn from_rlimit(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The limit as the kernel has it.
    #[must_use]
    pub fn as_rlimit(self) -> u64 {
        self.0
    }

    /// Whether it is one at all.
    #[must_use]
    pub fn is_unlimited(self) -> bool {
        self == Self::UNLIMITED
    }

    /// A number of bytes; none if it is larger than [`LockLimit::MAX`].
    #[must_use]
    pub fn bytes(bytes: u64) -> Option<Self> {
        (bytes <= Self::MAX.0).then_some(Self(bytes))
    }

    /// Reads `unlimited`, `8388608` or `8MiB`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text == "unlimited" {
            return Some(Self::UNLIMITED);
        }
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let factor = match unit {
            "" => 1,
            unit => UNITS.iter().find(|(name, _)| *name == unit)?.1,
        };
        number.parse::<u64>().ok()?.checked_mul(factor).and_then(Self::bytes)
    }
}

impl fmt::Display for LockLimit {
    /// The shortest text that [`LockLimit::parse`] reads as the same limit.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_unlimited() {
            return f.write_str("unlimited");
        }
        let unit = UNITS
            .iter()
            .rfind(|(_, factor)| self.0 != 0 && self.0.is_multiple_of(*factor));
        match unit {
            Some((name, factor)) => write!(f, "{}{name}", self.0 / factor),
            None => write!(f, "{}", self.0),
        }
    }
}

/// `kernel.perf_event_mlock_kb`: KiB of perf buffers that each user has free on each CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PerfEventKb(u32);

impl PerfEventKb {
    /// The kernel's own: 512 KiB and a page (kernel/events/core.c).
    pub const KERNEL_DEFAULT: Self = Self(516);

    /// The sysctl is a signed 32-bit number.
    pub const MAX: Self = Self(i32::MAX.unsigned_abs());

    /// A number of KiB; none if it is larger than [`PerfEventKb::MAX`].
    #[must_use]
    pub fn new(kb: u32) -> Option<Self> {
        (kb <= Self::MAX.0).then_some(Self(kb))
    }

    /// The number of KiB.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for PerfEventKb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

choice! {
    /// What is done about a limit above the ceiling.
    OnExcess {
        /// The container or exec is refused.
        Deny = "deny",
        /// It gets the ceiling.
        Clamp = "clamp",
    }
}

choice! {
    /// Whether a process has CAP_IPC_LOCK.
    CapPolicy {
        /// As its specification says.
        Spec = "spec",
        /// The process has the capability.
        Grant = "grant",
        /// The process does not have the capability.
        Drop = "drop",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_have_binary_units_and_nothing_else() {
        for (text, bytes) in [
            ("0", 0),
            ("8388608", 8 << 20),
            ("8MiB", 8 << 20),
            ("1KiB", 1024),
            ("3GiB", 3 << 30),
            ("2TiB", 2 << 40),
            ("unlimited", u64::MAX),
            ("9223372036854775807", i64::MAX.unsigned_abs()),
        ] {
            assert_eq!(LockLimit::parse(text).map(LockLimit::as_rlimit), Some(bytes), "{text}");
        }
        for text in [
            "",
            "MiB",
            "8MB",
            "8M",
            "8Mi",
            "8 MiB",
            " 8MiB",
            "-1",
            "+1",
            "1.5GiB",
            "0x10",
            "infinity",
            "Unlimited",
            "8388608TiB",
            "9223372036854775808",
            "18446744073709551615",
            "99999999999999999999999",
            "８MiB",
        ] {
            assert_eq!(LockLimit::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_limit_is_shown_in_its_largest_whole_unit() {
        for (bytes, text) in [
            (0, "0"),
            (1, "1"),
            (4096, "4KiB"),
            (8 << 20, "8MiB"),
            ((1 << 30) + 1, "1073741825"),
            (u64::MAX, "unlimited"),
        ] {
            assert_eq!(LockLimit::from_rlimit(bytes).to_string(), text);
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(bytes in 0..=i64::MAX.unsigned_abs()) {
            let limit = LockLimit::bytes(bytes).unwrap();
            prop_assert_eq!(LockLimit::parse(&limit.to_string()), Some(limit));
        }

        #[test]
        fn any_text_is_read_or_refused(text: String) {
            let _ = LockLimit::parse(&text);
        }
    }
}
