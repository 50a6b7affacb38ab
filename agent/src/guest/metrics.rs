//! The resource usage of the whole guest, from its /proc. The value of a missing file is 0.

use std::collections::HashMap;

use base::net_dev::{self, Traffic};
use protocol::agent::{AgentUsage, DeviceTraffic, GuestMetricsResponse, Pressure};

use crate::cgroup::flat;

/// Microseconds of a tick in /proc/stat: USER_HZ is 100 on every architecture that has guests (time(7)).
const TICK: u64 = 10_000;

/// The columns of the line `cpu` (proc_stat(5)).
const CPU: [&str; 10] = [
    "user",
    "nice",
    "system",
    "idle",
    "iowait",
    "irq",
    "softirq",
    "steal",
    "guest",
    "guest_nice",
];

pub(crate) fn guest() -> GuestMetricsResponse {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let (tasks, runnable, load_milli) = load(&read("/proc/loadavg")).unwrap_or_default();
    let pressure = ["cpu", "memory", "io"].map(|resource| {
        let text = read(&format!("/proc/pressure/{resource}"));
        Pressure {
            resource: resource.to_owned(),
            some_usec: stalled(&text, "some"),
            full_usec: stalled(&text, "full"),
            ..Pressure::default()
        }
    });
    GuestMetricsResponse {
        cpu_usec: cpu(&read("/proc/stat")),
        memory_bytes: memory(&read("/proc/meminfo")),
        pressure: pressure.into(),
        oom_kills: flat(&read("/proc/vmstat"))
            .find_map(|(key, value)| (key == "oom_kill").then_some(value))
            .unwrap_or(0),
        tasks,
        runnable,
        load_milli,
        cpus: std::thread::available_parallelism().map_or(1, |cpus| u32::try_from(cpus.get()).unwrap_or(u32::MAX)),
        uptime_ms: milli(read("/proc/uptime").split(' ').next().unwrap_or_default()).unwrap_or(0),
        agent: Some(own(std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count))).into(),
        devices: devices(&read("/proc/net/dev")),
        ..GuestMetricsResponse::default()
    }
}

/// Devices that are reported: twice as many as a VM can have.
const DEVICES: usize = 32;

/// `  eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16`, after two lines of headings.
fn devices(text: &str) -> Vec<DeviceTraffic> {
    net_dev::traffic(text, DEVICES)
        .map(|Traffic { name, counters }| DeviceTraffic {
            name,
            counters,
            ..DeviceTraffic::default()
        })
        .collect()
}

fn own(open_files: usize) -> AgentUsage {
    let stat = base::process::own_stat();
    let (user_ticks, system_ticks, threads) = stat.map_or((0, 0, 0), |stat| (stat.utime, stat.stime, stat.num_threads));
    let resident = base::process::resident(std::process::id().cast_signed());
    AgentUsage {
        user_ticks,
        system_ticks,
        threads: u32::try_from(threads).unwrap_or(u32::MAX),
        resident_bytes: resident.unwrap_or(0),
        open_files: u32::try_from(open_files).unwrap_or(u32::MAX),
        ..AgentUsage::default()
    }
}

fn cpu(stat: &str) -> HashMap<String, u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "));
    let figures = line.unwrap_or_default().split_ascii_whitespace();
    CPU.iter()
        .zip(figures)
        .filter_map(|(name, ticks)| Some(((*name).to_owned(), ticks.parse::<u64>().ok()?.saturating_mul(TICK))))
        .collect()
}

fn memory(meminfo: &str) -> HashMap<String, u64> {
    let lines = meminfo.lines().filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        let mut words = value.split_ascii_whitespace();
        let number: u64 = words.next()?.parse().ok()?;
        // Without a unit it is a count of pages.
        let bytes = (words.next()? == "kB").then_some(number.saturating_mul(1024))?;
        Some((name.to_owned(), bytes))
    });
    lines.collect()
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`
fn stalled(pressure: &str, kind: &str) -> u64 {
    let line = pressure.lines().find_map(|line| line.strip_prefix(kind));
    let total = line.and_then(|line| line.split_once("total="));
    total.and_then(|(_, total)| total.trim().parse().ok()).unwrap_or(0)
}

/// `0.20 0.18 0.12 1/80 11206`: tasks, those that can run, the load of a minute in thousandths.
fn load(loadavg: &str) -> Option<(u32, u32, u32)> {
    let mut words = loadavg.split_ascii_whitespace();
    let load = u32::try_from(milli(words.next()?)?).ok()?;
    let (runnable, tasks) = words.nth(2)?.split_once('/')?;
    Some((tasks.parse().ok()?, runnable.parse().ok()?, load))
}

/// A decimal fraction in thousandths.
fn milli(text: &str) -> Option<u64> {
    let value: f64 = text.parse().ok()?;
    // The cast saturates.
    (value >= 0.0).then_some((value * 1000.0).round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_are_in_the_units_of_the_protocol() {
        let cpu = cpu("cpu  3 0 5 100 1 0 2 0 0 0\ncpu0 9 9\n");
        assert_eq!((cpu["user"], cpu["idle"], cpu["softirq"]), (30_000, 1_000_000, 20_000));
        let memory = memory("MemTotal:  2 kB\nHugePages_Total:   7\nrubbish\n");
        assert_eq!(memory, HashMap::from([("MemTotal".to_owned(), 2048)]));
        assert_eq!(
            stalled("some avg10=0.00 total=77\nfull avg10=0.00 total=5\n", "full"),
            5
        );
        assert_eq!(load("0.20 0.18 0.12 1/80 11206\n"), Some((80, 1, 200)));
        assert_eq!(milli("12.345"), Some(12_345));
        assert_eq!(load("rubbish"), None);
        let own = own(5);
        assert!(own.threads > 0 && own.resident_bytes > 1 << 20);
        let devices = devices("Inter-|   Receive\n face |bytes\n  eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n");
        assert_eq!((devices[0].name.as_str(), devices[0].counters.len()), ("eth0", 16));
    }

    #[test]
    fn a_running_system_gives_figures() {
        let metrics = guest();
        assert!(metrics.memory_bytes["MemTotal"] > 0);
        assert!(metrics.cpu_usec["idle"] > 0);
        assert!(metrics.tasks > 0 && metrics.uptime_ms > 0);
    }
}
