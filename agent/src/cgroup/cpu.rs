//! cpu. A set of CPUs or of memory nodes has the host's numbers, and stays there: the host leaves it out.

use oci_spec::runtime::LinuxCpu;
use protocol::cpu_weight;

use super::Setting;

/// The kernel's default, in microseconds (cpu.max).
const DEFAULT_PERIOD: u64 = 100_000;

pub(super) fn settings(cpu: &LinuxCpu) -> Vec<Setting> {
    let mut settings = Vec::new();
    if let Some(shares) = cpu.shares().filter(|shares| *shares > 0) {
        settings.push(Setting::new("cpu.weight", cpu_weight(shares).to_string()));
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
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(json: &str) -> Vec<Setting> {
        settings(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn no_quota_is_max_and_the_period_has_a_default() {
        assert_eq!(of(r#"{"quota":-1}"#), [Setting::new("cpu.max", "max 100000")]);
        assert_eq!(of(r#"{"quota":20000}"#), [Setting::new("cpu.max", "20000 100000")]);
        assert_eq!(of(r#"{"period":50000}"#), [Setting::new("cpu.max", "max 50000")]);
        assert_eq!(of(r#"{"shares":0,"cpus":""}"#), []);
    }
}
