//! The limits of a container, or of a whole pod, that count for the VM's size.
//!
//! Rules: config-linux.md of the OCI runtime specification, and cgroup-v2.rst of the kernel for unified keys, which take
//! precedence over the fields with the same meaning, as in runc. The annotations are those that containerd's CRI plugin
//! writes from the kubelet's `LinuxPodSandboxConfig.resources`.

use std::collections::HashMap;

use oci_spec::runtime::{LinuxCpu, LinuxResources};

use super::set::NumberSet;

/// CFS's period where none is given, in microseconds (the kernel's sched-bwc.rst).
const DEFAULT_PERIOD: u64 = 100_000;

/// A limit of memory from here on is nobody's limit: some clients write "none" as the largest number that they know.
const NO_LIMIT: i64 = 1 << 60;

/// Limits. What is not there is not limited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// CPU time per period, both in microseconds.
    quota: Option<i64>,
    period: Option<u64>,
    /// CPUs and memory nodes, by the host's numbers.
    pub(super) cpus: Option<NumberSet>,
    pub(super) mems: Option<NumberSet>,
    pub(super) shares: Option<u64>,
    /// Limit of memory, in bytes.
    memory: Option<i64>,
    huge_pages: u64,
}

impl Limits {
    /// The limits of one container's specification.
    #[must_use]
    pub fn of(resources: &LinuxResources) -> Self {
        Self::default().updated(resources)
    }

    /// Those of a pod, by the annotations of its sandbox.
    #[must_use]
    pub fn of_pod(annotations: &HashMap<String, String>) -> Self {
        let number = |name: &str| -> Option<i64> {
            let text = annotations.get(&format!("io.kubernetes.cri.sandbox-{name}"))?;
            text.parse().ok()
        };
        Self {
            quota: number("cpu-quota"),
            period: number("cpu-period").and_then(|period| u64::try_from(period).ok()),
            memory: number("memory"),
            ..Self::default()
        }
    }

    /// What becomes of them by an update, which has only what it changes.
    #[must_use]
    pub fn updated(self, resources: &LinuxResources) -> Self {
        let cpu = resources.cpu().as_ref();
        let memory = resources.memory().as_ref();
        let unified = |key: &str| Some(resources.unified().as_ref()?.get(key)?.as_str());
        let set = |list: Option<&str>, before: Option<NumberSet>| match list {
            None => before,
            // An empty list is no set any more.
            Some(list) => NumberSet::parse(list),
        };
        let cpu_max = unified("cpu.max").and_then(cpu_max);
        Self {
            quota: cpu_max
                .map(|(quota, _)| quota)
                .or_else(|| cpu.and_then(LinuxCpu::quota))
                .or(self.quota),
            period: cpu_max
                .map(|(_, period)| period)
                .or_else(|| cpu.and_then(LinuxCpu::period))
                .or(self.period),
            cpus: set(
                unified("cpuset.cpus").or(cpu.and_then(|cpu| cpu.cpus().as_deref())),
                self.cpus,
            ),
            mems: set(
                unified("cpuset.mems").or(cpu.and_then(|cpu| cpu.mems().as_deref())),
                self.mems,
            ),
            // 0 is "not set" here, too.
            shares: cpu
                .and_then(LinuxCpu::shares)
                .filter(|shares| *shares != 0)
                .or(self.shares),
            // 0 is "not set", as for the cgroup.
            memory: unified("memory.max")
                .and_then(bytes)
                .or_else(|| memory.and_then(|memory| memory.limit()))
                .filter(|limit| *limit != 0)
                .or(self.memory),
            huge_pages: resources.hugepage_limits().as_ref().map_or(self.huge_pages, |limits| {
                let pages = limits.iter().map(|limit| limit.limit());
                // Their "none" is a number that no memory has, too.
                let limited = pages
                    .filter_map(|bytes| u64::try_from(bytes).ok())
                    .filter(|bytes| *bytes < 1 << 50);
                limited.fold(0, u64::saturating_add)
            }),
        }
    }

    /// CPUs by the quota, in thousandths, and no more than the set has; none without a quota.
    #[must_use]
    pub fn quota_milli(&self) -> Option<u64> {
        let quota = u64::try_from(self.quota?).ok().filter(|quota| *quota > 0)?;
        let period = self.period.filter(|period| *period > 0).unwrap_or(DEFAULT_PERIOD);
        let quota = quota.saturating_mul(1000).div_ceil(period);
        Some(self.cpus.map_or(quota, |set| quota.min(u64::from(set.count()) * 1000)))
    }

    /// CPUs of several containers together, in thousandths; 0 if none is limited. Sets count only if nobody has a quota, and
    /// then as one: the kubelet's static policy puts all containers without whole CPUs of their own on the same shared set
    /// (Kata's rule).
    #[must_use]
    pub fn together_milli(containers: &[Self]) -> u64 {
        let quotas: Vec<u64> = containers.iter().filter_map(Self::quota_milli).collect();
        if !quotas.is_empty() {
            return quotas.into_iter().fold(0, u64::saturating_add);
        }
        let sets = containers.iter().filter_map(|limits| limits.cpus);
        sets.reduce(NumberSet::union)
            .map_or(0, |set| u64::from(set.count()) * 1000)
    }

    /// CPUs of one container, in thousandths; 0 if they are not limited.
    #[must_use]
    pub fn cpu_milli(&self) -> u64 {
        Self::together_milli(&[*self])
    }

    /// Bytes of memory; 0 if it is not limited.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        let limit = self.memory.filter(|limit| (1..NO_LIMIT).contains(limit));
        limit.map_or(0, i64::unsigned_abs).saturating_add(self.huge_pages)
    }
}

/// Quota and period of `cpu.max`; the quota may be "max", and the period may be missing.
fn cpu_max(text: &str) -> Option<(i64, u64)> {
    let mut words = text.split_whitespace();
    let quota = match words.next()? {
        "max" => -1,
        number => number.parse().ok()?,
    };
    let period = words.next().map_or(Ok(DEFAULT_PERIOD), str::parse);
    Some((quota, period.ok()?))
}

/// Bytes of `memory.max`, -1 for "max". The kernel takes units of 1024, 1024², … too (`memparse`).
fn bytes(text: &str) -> Option<i64> {
    let text = text.trim();
    if text == "max" {
        return Some(-1);
    }
    let units = [('k', 10), ('m', 20), ('g', 30), ('t', 40)];
    let last = text.chars().last()?.to_ascii_lowercase();
    let shift = units.iter().find_map(|(unit, shift)| (*unit == last).then_some(*shift));
    let number = if shift.is_some() { &text[..text.len() - 1] } else { text };
    number.parse::<i64>().ok()?.checked_mul(1 << shift.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(json: &str) -> Limits {
        Limits::of(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn cpus_are_what_the_quota_buys_within_the_set() {
        for (json, milli) in [
            ("{}", 0),
            (r#"{"cpu":{"shares":512}}"#, 0),
            (r#"{"cpu":{"quota":150000,"period":100000}}"#, 1500),
            (r#"{"cpu":{"quota":50000}}"#, 500),
            (r#"{"cpu":{"quota":-1,"period":100000}}"#, 0),
            (r#"{"cpu":{"quota":10,"period":0}}"#, 1),
            (r#"{"cpu":{"cpus":"0-2,7"}}"#, 4000),
            (r#"{"cpu":{"quota":400000,"cpus":"1,3"}}"#, 2000),
            (r#"{"cpu":{"cpus":"nonsense"}}"#, 0),
        ] {
            assert_eq!(of(json).cpu_milli(), milli, "{json}");
        }
    }

    #[test]
    fn memory_is_the_limit_and_the_huge_pages() {
        for (json, bytes) in [
            ("{}", 0),
            (r#"{"memory":{"limit":1048576}}"#, 1 << 20),
            (r#"{"memory":{"limit":-1}}"#, 0),
            (r#"{"memory":{"limit":9223372036854771712}}"#, 0),
            (
                r#"{"memory":{"limit":4096},"hugepageLimits":[{"pageSize":"2MB","limit":2097152}]}"#,
                (2 << 20) + 4096,
            ),
            (r#"{"hugepageLimits":[{"pageSize":"2MB","limit":0}]}"#, 0),
        ] {
            assert_eq!(of(json).memory_bytes(), bytes, "{json}");
        }
    }

    #[test]
    fn an_update_changes_what_it_names() {
        let before = of(r#"{"cpu":{"quota":50000,"period":50000},"memory":{"limit":100}}"#);
        let update = |json: &str| before.updated(&serde_json::from_str(json).unwrap());
        assert_eq!(update("{}"), before);
        let more = update(r#"{"memory":{"limit":200}}"#);
        assert_eq!((more.cpu_milli(), more.memory_bytes()), (1000, 200));
        assert_eq!(update(r#"{"cpu":{"quota":100000}}"#).cpu_milli(), 2000);
        assert_eq!(update(r#"{"cpu":{"quota":-1}}"#).cpu_milli(), 0);
        assert_eq!(update(r#"{"memory":{"limit":-1}}"#).memory_bytes(), 0);
        assert_eq!(update(r#"{"memory":{"limit":0}}"#), before);
    }

    #[test]
    fn a_set_stays_until_it_is_taken_away() {
        let before = of(r#"{"cpu":{"quota":400000,"cpus":"1,3","mems":"0"}}"#);
        let update = |json: &str| before.updated(&serde_json::from_str(json).unwrap());
        assert_eq!(update(r#"{"cpu":{"shares":2}}"#).cpus, before.cpus);
        let without = update(r#"{"cpu":{"cpus":""}}"#);
        assert_eq!(
            (without.cpus, without.mems, without.cpu_milli()),
            (None, before.mems, 4000)
        );
        let unified = update(r#"{"cpu":{"cpus":"1"},"unified":{"cpuset.cpus":"5-7","cpuset.mems":""}}"#);
        assert_eq!((unified.cpu_milli(), unified.mems), (3000, None));
    }

    #[test]
    fn unified_keys_are_limits_too_and_go_first() {
        for (json, milli, bytes) in [
            (
                r#"{"unified":{"memory.max":"1048576","cpu.max":"150000 100000"}}"#,
                1500,
                1 << 20,
            ),
            (r#"{"unified":{"memory.max":"64M","cpu.max":"50000"}}"#, 500, 64 << 20),
            (
                r#"{"unified":{"memory.max":"max","cpu.max":"max 100000"},"memory":{"limit":4096},"cpu":{"quota":1000}}"#,
                0,
                0,
            ),
            (
                r#"{"unified":{"memory.max":"é","cpu.max":""},"memory":{"limit":4096}}"#,
                0,
                4096,
            ),
        ] {
            assert_eq!(
                (of(json).cpu_milli(), of(json).memory_bytes()),
                (milli, bytes),
                "{json}"
            );
        }
    }

    #[test]
    fn a_pods_limits_are_in_its_annotations() {
        let annotations = [
            ("cpu-quota", "150000"),
            ("cpu-period", "100000"),
            ("memory", "67108864"),
        ];
        let annotations =
            annotations.map(|(name, value)| (format!("io.kubernetes.cri.sandbox-{name}"), value.to_owned()));
        let pod = Limits::of_pod(&annotations.into());
        assert_eq!((pod.cpu_milli(), pod.memory_bytes()), (1500, 64 << 20));
        let nothing = Limits::of_pod(&HashMap::new());
        assert_eq!((nothing.cpu_milli(), nothing.memory_bytes()), (0, 0));
    }

    proptest! {
        #[test]
        fn any_limits_are_counted(quota: i64, period: u64, memory: i64, set in "[0-9,-]{0,12}", huge: i64) {
            let json = serde_json::json!({
                "cpu": { "quota": quota, "period": period, "cpus": set },
                "memory": { "limit": memory },
                "hugepageLimits": [{ "pageSize": "2MB", "limit": huge }, { "pageSize": "1GB", "limit": huge }],
            });
            let limits = of(&json.to_string());
            let _ = (limits.cpu_milli(), limits.memory_bytes());
        }

        #[test]
        fn any_annotations_are_read(quota in "\\PC{0,20}", memory in "-?[0-9]{0,25}") {
            let annotations = [("cpu-quota", quota), ("memory", memory)];
            let annotations = annotations.map(|(name, value)| (format!("io.kubernetes.cri.sandbox-{name}"), value));
            let pod = Limits::of_pod(&annotations.into());
            let _ = (pod.cpu_milli(), pod.memory_bytes());
        }
    }
}
