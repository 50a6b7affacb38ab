//! The factor by which the time-outs of a sandbox are multiplied: a slow node needs longer for everything.

use std::time::Duration;

/// A factor for time-outs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale(f64);

impl Default for Scale {
    fn default() -> Self {
        Self(1.0)
    }
}

impl Scale {
    /// At least a thousandth and at most a thousand; 1 for what is not a number.
    #[must_use]
    pub fn new(factor: f64) -> Self {
        let factor = if factor.is_finite() { factor } else { 1.0 };
        Self(factor.clamp(0.001, 1000.0))
    }

    /// The time-out, multiplied.
    #[must_use]
    pub fn of(self, timeout: Duration) -> Duration {
        timeout.mul_f64(self.0)
    }

    /// The factor.
    #[must_use]
    pub fn factor(self) -> f64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_factor_multiplies_and_nonsense_is_none() {
        let second = Duration::from_secs(1);
        assert_eq!(Scale::new(3.0).of(second), second * 3);
        assert_eq!(Scale::new(f64::NAN), Scale::default());
        assert_eq!(Scale::new(f64::INFINITY), Scale::default());
        assert_eq!(Scale::new(-1.0).of(second), Duration::from_millis(1));
        assert_eq!(Scale::new(1e9).factor(), 1000.0);
    }
}
