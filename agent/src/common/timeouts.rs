//! The factor by which the host multiplies the time limits of this guest (`timeout_factor` of its configuration).
//!
//! The agent is the one program of one guest, and is told the factor before the first container: it is the process's.

use std::sync::OnceLock;
use std::time::Duration;

use base::scale::Scale;

static SCALE: OnceLock<Scale> = OnceLock::new();

/// Takes the factor over; 0 is none. The first one stays.
pub(crate) fn set_factor(factor: f64) {
    if factor > 0.0 {
        SCALE.get_or_init(|| Scale::new(factor));
    }
}

/// A time limit as it is on this node.
pub(crate) fn scaled(limit: Duration) -> Duration {
    SCALE.get().copied().unwrap_or_default().of(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_first_factor_multiplies_and_zero_is_none() {
        let second = Duration::from_secs(1);
        set_factor(0.0);
        assert_eq!(scaled(second), second);
        set_factor(3.0);
        set_factor(5.0);
        assert_eq!(scaled(second), second * 3);
    }
}
