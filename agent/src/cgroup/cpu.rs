//! The cpu controller: quota, period, burst, weight. Sets of CPUs or of memory nodes have the host's numbers and apply on
//! the host, so they are not set here.

use oci_spec::runtime::LinuxCpu;
use protocol::cpu_weight;

use super::setting::Setting;

/// What cpu.max is where the cgroup has none yet (cgroup-v2.rst).
pub(super) const UNLIMITED: &str = "max 100000";

const BURST: &str = "cpu.max.burst";

/// `current` is what cpu.max says now: a quota or a period that is not given stays as it is, as with `runc update`.
pub(super) fn settings(cpu: &LinuxCpu, current: &str) -> Vec<Setting> {
    let mut settings = Vec::new();
    // The kernel refuses a weight for an idle cgroup (`sched_group_set_shares`). So one that ends being idle does so first, as in runc, and
    // one that becomes idle gets its weight before.
    let idle = cpu.idle().map(|idle| Setting::new("cpu.idle", idle.to_string()));
    let (first, last) = if cpu.idle() == Some(0) {
        (idle, None)
    } else {
        (None, idle)
    };
    settings.extend(first);
    if let Some(shares) = cpu.shares().filter(|shares| *shares > 0) {
        settings.push(Setting::new("cpu.weight", cpu_weight(shares).to_string()));
    }
    // 0 is "not given" for both, as runc has it; below 0 is "no limit".
    // The kernel takes no quota below the burst and no burst above the quota, so one that changes with the quota goes first
    // if it can, and is set in any case afterwards.
    let burst = cpu.burst().map(|burst| burst.to_string());
    settings.extend(burst.clone().map(|burst| Setting::new(BURST, burst).again()));
    let quota = cpu.quota().filter(|quota| *quota != 0);
    let period = cpu.period().filter(|period| *period > 0);
    if quota.is_some() || period.is_some() {
        let (now_quota, now_period) = current.trim().split_once(' ').unwrap_or(("max", "100000"));
        let quota = quota.map_or_else(|| now_quota.to_owned(), super::setting::limit);
        let period = period.map_or_else(|| now_period.to_owned(), |period| period.to_string());
        settings.push(Setting::new("cpu.max", format!("{quota} {period}")));
    }
    settings.extend(burst.map(|burst| Setting::new(BURST, burst)));
    settings.extend(last);
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(json: &str, current: &str) -> Vec<Setting> {
        settings(&serde_json::from_str(json).unwrap(), current)
    }

    #[test]
    fn no_quota_is_max_and_the_period_has_a_default() {
        let of = |json| of(json, UNLIMITED);
        assert_eq!(of(r#"{"quota":-1}"#), [Setting::new("cpu.max", "max 100000")]);
        assert_eq!(of(r#"{"quota":20000}"#), [Setting::new("cpu.max", "20000 100000")]);
        assert_eq!(of(r#"{"period":50000}"#), [Setting::new("cpu.max", "max 50000")]);
        assert_eq!(of(r#"{"shares":0,"cpus":""}"#), []);
        assert_eq!(of(r#"{"quota":0,"period":0}"#), []);
    }

    #[test]
    fn a_burst_is_written_on_both_sides_of_the_quota() {
        let files: Vec<_> = of(r#"{"burst":10,"quota":1000}"#, UNLIMITED)
            .into_iter()
            .map(|set| (set.file, set.again))
            .collect();
        let expected = [(BURST, true), ("cpu.max", false), (BURST, false)];
        assert_eq!(files, expected.map(|(file, again)| (file.to_owned(), again)));
    }

    #[test]
    fn a_weight_is_written_while_the_cgroup_is_not_idle() {
        let (weight, idle) = (Setting::new("cpu.weight", "100"), |idle| Setting::new("cpu.idle", idle));
        let woken = of(r#"{"shares":1024,"idle":0}"#, UNLIMITED);
        assert_eq!(woken, [idle("0"), Setting::new("cpu.weight", "100")]);
        assert_eq!(of(r#"{"shares":1024,"idle":1}"#, UNLIMITED), [weight, idle("1")]);
    }

    #[test]
    fn the_half_that_is_not_given_stays() {
        let now = "50000 200000\n";
        assert_eq!(
            of(r#"{"quota":100000}"#, now),
            [Setting::new("cpu.max", "100000 200000")]
        );
        assert_eq!(
            of(r#"{"period":100000}"#, now),
            [Setting::new("cpu.max", "50000 100000")]
        );
        assert_eq!(of(r#"{"quota":-1}"#, now), [Setting::new("cpu.max", "max 200000")]);
        assert_eq!(
            of(r#"{"quota":1000,"period":5000}"#, now),
            [Setting::new("cpu.max", "1000 5000")]
        );
    }
}
