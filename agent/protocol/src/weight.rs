//! Converts CPU shares of cgroup v1, which specifications use, to the weight of v2. The guest's and the host's cgroups
//! need it.

/// Turns cgroup v1 shares (2 to 262144, 1024 by default) into a weight (1 to 10000, 100 by default).
///
/// The quadratic function of the logarithm through (2, 1), (1024, 100) and (262144, 10000) that runc, crun and Kubernetes
/// agreed on. The linear one before it made of the default 1024 a weight of 39.
#[must_use]
pub fn cpu_weight(shares: u64) -> u64 {
    if shares <= 2 {
        return 1;
    }
    if shares >= 262_144 {
        return 10_000;
    }
    #[allow(clippy::cast_precision_loss, reason = "less than 2^18")]
    let log = (shares as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    // The subtraction keeps an exact power of ten from being rounded up past itself.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 1 to 10000")]
    let weight = (10f64.powf(exponent) - 1e-9).ceil() as u64;
    weight.clamp(1, 10_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn more_shares_never_weigh_less(a in 0u64..400_000, b in 0u64..400_000) {
            let (low, high) = (a.min(b), a.max(b));
            prop_assert!(cpu_weight(low) <= cpu_weight(high));
            prop_assert!((1..=10_000).contains(&cpu_weight(a)));
        }
    }

    #[test]
    fn the_three_points_of_the_curve_are_met_and_none_is_out_of_range() {
        assert_eq!((cpu_weight(0), cpu_weight(2), cpu_weight(1024)), (1, 1, 100));
        assert_eq!((cpu_weight(262_144), cpu_weight(u64::MAX)), (10_000, 10_000));
    }
}
