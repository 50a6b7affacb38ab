//! cpu and cpuset.

use oci_spec::runtime::LinuxCpu;

use super::Setting;
use crate::cpus::in_list;

/// The kernel's default, in microseconds (cpu.max).
const DEFAULT_PERIOD: u64 = 100_000;

/// Turns cgroup v1 shares (2 to 262144, 1024 by default) into a weight (1 to 10000, 100 by default).
///
/// The quadratic function of the logarithm through (2, 1), (1024, 100) and (262144, 10000) that runc, crun and Kubernetes
/// agreed on; the linear one before it made of the default 1024 a weight of 39.
fn weight(shares: u64) -> u64 {
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

/// The file of the set of CPUs.
pub(super) const SET: &str = "cpuset.cpus";

/// Which CPUs the guest can have.
pub(super) const POSSIBLE: &str = "/sys/devices/system/cpu/possible";

/// Whether the kernel's answer to a set of CPUs is that it does not know one of them.
pub(super) fn is_no_such_cpu(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ERANGE | libc::EINVAL))
}

/// How many CPUs the guest can have.
pub(super) fn possible() -> std::io::Result<u32> {
    let text = std::fs::read_to_string(POSSIBLE)?;
    in_list(&text).ok_or_else(|| std::io::ErrorKind::InvalidData.into())
}

/// As many of the guest's CPUs as a set of the host's has: the first ones. None: it is no set.
pub(super) fn guests(set: &str, possible: u32) -> Option<String> {
    let last = in_list(set)?.min(possible).checked_sub(1)?;
    Some(format!("0-{last}"))
}

pub(super) fn settings(cpu: &LinuxCpu) -> Vec<Setting> {
    let mut settings = Vec::new();
    if let Some(shares) = cpu.shares().filter(|shares| *shares > 0) {
        settings.push(Setting::new("cpu.weight", weight(shares).to_string()));
    }
    if cpu.quota().is_some() || cpu.period().is_some() {
        let quota = cpu
            .quota()
            .filter(|quota| *quota > 0)
            .map_or("max".to_owned(), |quota| quota.to_string());
        let period = cpu.period().filter(|period| *period > 0).unwrap_or(DEFAULT_PERIOD);
        settings.push(Setting::new("cpu.max", format!("{quota} {period}")));
    }
    if let Some(burst) = cpu.burst() {
        settings.push(Setting::new("cpu.max.burst", burst.to_string()));
    }
    if let Some(idle) = cpu.idle() {
        settings.push(Setting::new("cpu.idle", idle.to_string()));
    }
    if let Some(cpus) = cpu.cpus().as_deref().filter(|cpus| !cpus.is_empty()) {
        settings.push(Setting::new(SET, cpus));
    }
    if let Some(mems) = cpu.mems().as_deref().filter(|mems| !mems.is_empty()) {
        settings.push(Setting::new("cpuset.mems", mems));
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(json: &str) -> Vec<Setting> {
        settings(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn the_three_points_of_the_curve_are_met() {
        assert_eq!((weight(2), weight(1024), weight(262_144)), (1, 100, 10_000));
    }

    proptest! {
        #[test]
        fn more_shares_never_weigh_less(a in 0u64..400_000, b in 0u64..400_000) {
            let (low, high) = (a.min(b), a.max(b));
            prop_assert!(weight(low) <= weight(high));
            prop_assert!((1..=10_000).contains(&weight(a)));
        }
    }

    #[test]
    fn a_set_of_the_hosts_cpus_is_as_many_of_the_guests() {
        for (set, possible, own) in [
            ("4-7", 2, Some("0-1")),
            ("9", 4, Some("0-0")),
            ("2,5-6", 8, Some("0-2")),
            ("nonsense", 8, None),
            ("0", 0, None),
        ] {
            assert_eq!(guests(set, possible).as_deref(), own, "{set}");
        }
    }

    #[test]
    fn no_quota_is_max_and_the_period_has_a_default() {
        assert_eq!(of(r#"{"quota":-1}"#), [Setting::new("cpu.max", "max 100000")]);
        assert_eq!(of(r#"{"quota":20000}"#), [Setting::new("cpu.max", "20000 100000")]);
        assert_eq!(of(r#"{"period":50000}"#), [Setting::new("cpu.max", "max 50000")]);
        assert_eq!(of(r#"{"shares":0,"cpus":""}"#), []);
    }
}
