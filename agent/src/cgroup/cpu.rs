//! cpu and cpuset.

use oci_spec::runtime::LinuxCpu;
use protocol::cpu_weight;

use super::Setting;
use crate::cpus::in_list;

/// The kernel's default, in microseconds (cpu.max).
const DEFAULT_PERIOD: u64 = 100_000;

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

    fn of(json: &str) -> Vec<Setting> {
        settings(&serde_json::from_str(json).unwrap())
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
