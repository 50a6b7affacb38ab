//! Reads the usage of a cgroup. A missing file means a missing controller: its values are 0.

use std::collections::HashMap;

use protocol::agent::{CpuStats, IoStats, MemoryStats, PidsStats, StatsResponse};

use super::Cgroup;
use super::flat::flat;

/// One figure, or `max`.
fn figure(text: &str) -> u64 {
    match text.trim() {
        "max" => u64::MAX,
        number => number.parse().unwrap_or(0),
    }
}

/// `8:0 rbytes=1 wbytes=2 …` per line (io.stat).
fn io(text: &str) -> Vec<IoStats> {
    text.lines()
        .filter_map(|line| {
            let (device, figures) = line.split_once(' ')?;
            let (major, minor) = device.split_once(':')?;
            let mut stats = IoStats {
                major: major.parse().ok()?,
                minor: minor.parse().ok()?,
                ..IoStats::default()
            };
            for (key, value) in figures.split_whitespace().filter_map(|pair| pair.split_once('=')) {
                let value = value.parse().unwrap_or(0);
                match key {
                    "rbytes" => stats.rbytes = value,
                    "wbytes" => stats.wbytes = value,
                    "rios" => stats.rios = value,
                    "wios" => stats.wios = value,
                    _ => {}
                }
            }
            Some(stats)
        })
        .collect()
}

fn cpu(text: &str) -> CpuStats {
    let figures: HashMap<&str, u64> = flat(text).collect();
    let get = |key| figures.get(key).copied().unwrap_or(0);
    CpuStats {
        usage_usec: get("usage_usec"),
        user_usec: get("user_usec"),
        system_usec: get("system_usec"),
        nr_periods: get("nr_periods"),
        nr_throttled: get("nr_throttled"),
        throttled_usec: get("throttled_usec"),
        ..CpuStats::default()
    }
}

impl Cgroup {
    pub(crate) fn stats(&self) -> StatsResponse {
        let read = |name| std::fs::read_to_string(self.file(name)).unwrap_or_default();
        let map = |text: String| flat(&text).map(|(key, value)| (key.to_owned(), value)).collect();
        let memory = MemoryStats {
            usage: figure(&read("memory.current")),
            limit: figure(&read("memory.max")),
            peak: figure(&read("memory.peak")),
            swap_usage: figure(&read("memory.swap.current")),
            swap_limit: figure(&read("memory.swap.max")),
            stat: map(read("memory.stat")),
            events: map(read("memory.events")),
            ..MemoryStats::default()
        };
        let pids = PidsStats {
            current: figure(&read("pids.current")),
            limit: figure(&read("pids.max")),
            ..PidsStats::default()
        };
        StatsResponse {
            cpu: Some(cpu(&read("cpu.stat"))).into(),
            memory: Some(memory).into(),
            pids: Some(pids).into(),
            io: io(&read("io.stat")),
            ..StatsResponse::default()
        }
    }

    /// How many processes of it, and below it, the kernel has killed for want of memory. memory.events counts the
    /// cgroups below as well, memory.events.local does not; a container may have made some.
    pub(crate) fn oom_kills(&self) -> u64 {
        let text = std::fs::read_to_string(self.file("memory.events")).unwrap_or_default();
        flat(&text)
            .find_map(|(key, value)| (key == "oom_kill").then_some(value))
            .unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_kernels_own_lines_are_read() {
        let cpu = cpu("usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 3\nnr_throttled 2\nthrottled_usec 1\n");
        assert_eq!((cpu.usage_usec, cpu.user_usec, cpu.nr_throttled), (30, 20, 2));
        let io = io("254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n259:1 \nnonsense\n");
        assert_eq!(io.len(), 2);
        assert_eq!((io[0].major, io[0].minor, io[0].rbytes, io[0].wios), (254, 0, 1, 4));
        assert_eq!((figure("max\n"), figure("42\n"), figure("")), (u64::MAX, 42, 0));
    }

    proptest! {
        #[test]
        fn what_is_written_as_pairs_is_read_back(pairs in proptest::collection::vec(("[a-z_]{1,10}", any::<u64>()), 0..20)) {
            let text: String = pairs.iter().map(|(key, value)| format!("{key} {value}\n")).collect();
            let read: Vec<_> = flat(&text).map(|(key, value)| (key.to_owned(), value)).collect();
            prop_assert_eq!(read, pairs);
        }

        #[test]
        fn any_text_is_survived(text in ".*") {
            let _ = (flat(&text).count(), io(&text), cpu(&text), figure(&text));
        }
    }
}
