//! The guest's statistics in the format of containerd's clients: cgroup v1 or v2 metrics, by the host's mode.

use std::collections::HashMap;

use containerd_shim_protos::cgroups::metrics as v1;
use containerd_shim_protos::cgroups_v2::metrics as v2;
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};
use protocol::agent::{IoStats, StatsResponse};

/// How the host's cgroups are mounted; the client takes the container's metrics to be of that kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupMode {
    /// v1 hierarchies, with or without a v2 one beside them.
    Legacy,
    /// v2 alone at `/sys/fs/cgroup`.
    Unified,
}

impl CgroupMode {
    #[must_use]
    pub fn of_host() -> Self {
        const CGROUP2_SUPER_MAGIC: i64 = 0x6367_7270;
        match rustix::fs::statfs("/sys/fs/cgroup") {
            Ok(statfs) if statfs.f_type == CGROUP2_SUPER_MAGIC => Self::Unified,
            _ => Self::Legacy,
        }
    }
}

/// Translates.
///
/// # Errors
/// The message cannot be encoded.
pub fn metrics(stats: &StatsResponse, mode: CgroupMode) -> Result<Any, protobuf::Error> {
    let (name, value) = match mode {
        CgroupMode::Legacy => ("io.containerd.cgroups.v1.Metrics", legacy(stats).write_to_bytes()?),
        CgroupMode::Unified => ("io.containerd.cgroups.v2.Metrics", unified(stats).write_to_bytes()?),
    };
    Ok(Any {
        type_url: name.to_owned(),
        value,
        ..Any::default()
    })
}

/// Disks of which figures are passed on: more than a VM has. An answer of 64 KiB can name 32,000, and each would be a hundred times as
/// long here.
const DEVICES: usize = 256;

fn devices(stats: &StatsResponse) -> impl Iterator<Item = &IoStats> {
    stats.io.iter().take(DEVICES)
}

fn line(lines: &HashMap<String, u64>, name: &str) -> u64 {
    lines.get(name).copied().unwrap_or_default()
}

fn unified(stats: &StatsResponse) -> v2::Metrics {
    let mut metrics = v2::Metrics::new();
    let pids = metrics.pids.mut_or_insert_default();
    pids.current = stats.pids.current;
    pids.limit = stats.pids.limit;
    let cpu = metrics.cpu.mut_or_insert_default();
    cpu.usage_usec = stats.cpu.usage_usec;
    cpu.user_usec = stats.cpu.user_usec;
    cpu.system_usec = stats.cpu.system_usec;
    cpu.nr_periods = stats.cpu.nr_periods;
    cpu.nr_throttled = stats.cpu.nr_throttled;
    cpu.throttled_usec = stats.cpu.throttled_usec;
    metrics.memory = MessageField::some(unified_memory(stats));
    let events = metrics.memory_events.mut_or_insert_default();
    let event = |name| line(&stats.memory.events, name);
    events.low = event("low");
    events.high = event("high");
    events.max = event("max");
    events.oom = event("oom");
    events.oom_kill = event("oom_kill");
    let io = metrics.io.mut_or_insert_default();
    for entry in devices(stats) {
        io.usage.push(v2::IOEntry {
            major: entry.major.into(),
            minor: entry.minor.into(),
            rbytes: entry.rbytes,
            wbytes: entry.wbytes,
            rios: entry.rios,
            wios: entry.wios,
            ..v2::IOEntry::default()
        });
    }
    metrics
}

fn unified_memory(stats: &StatsResponse) -> v2::MemoryStat {
    let memory = &stats.memory;
    let stat = |name| line(&memory.stat, name);
    v2::MemoryStat {
        anon: stat("anon"),
        file: stat("file"),
        kernel_stack: stat("kernel_stack"),
        slab: stat("slab"),
        sock: stat("sock"),
        shmem: stat("shmem"),
        file_mapped: stat("file_mapped"),
        file_dirty: stat("file_dirty"),
        file_writeback: stat("file_writeback"),
        anon_thp: stat("anon_thp"),
        inactive_anon: stat("inactive_anon"),
        active_anon: stat("active_anon"),
        inactive_file: stat("inactive_file"),
        active_file: stat("active_file"),
        unevictable: stat("unevictable"),
        slab_reclaimable: stat("slab_reclaimable"),
        slab_unreclaimable: stat("slab_unreclaimable"),
        pgfault: stat("pgfault"),
        pgmajfault: stat("pgmajfault"),
        usage: memory.usage,
        usage_limit: memory.limit,
        swap_usage: memory.swap_usage,
        swap_limit: memory.swap_limit,
        ..v2::MemoryStat::default()
    }
}

/// v1 counts in nanoseconds where v2 counts in microseconds.
fn legacy(stats: &StatsResponse) -> v1::Metrics {
    let nanoseconds = |microseconds: u64| microseconds.saturating_mul(1000);
    let mut metrics = v1::Metrics::new();
    let pids = metrics.pids.mut_or_insert_default();
    pids.current = stats.pids.current;
    // v1 has 0 for "no limit".
    pids.limit = if stats.pids.limit == u64::MAX {
        0
    } else {
        stats.pids.limit
    };
    let cpu = metrics.cpu.mut_or_insert_default();
    let usage = cpu.usage.mut_or_insert_default();
    usage.total = nanoseconds(stats.cpu.usage_usec);
    usage.kernel = nanoseconds(stats.cpu.system_usec);
    usage.user = nanoseconds(stats.cpu.user_usec);
    let throttling = cpu.throttling.mut_or_insert_default();
    throttling.periods = stats.cpu.nr_periods;
    throttling.throttled_periods = stats.cpu.nr_throttled;
    throttling.throttled_time = nanoseconds(stats.cpu.throttled_usec);
    metrics.memory = MessageField::some(legacy_memory(stats));
    metrics.memory_oom_control.mut_or_insert_default().oom_kill = line(&stats.memory.events, "oom_kill");
    let blkio = metrics.blkio.mut_or_insert_default();
    for io in devices(stats) {
        let entry = |op: &str, value| v1::BlkIOEntry {
            op: op.to_owned(),
            major: io.major.into(),
            minor: io.minor.into(),
            value,
            ..v1::BlkIOEntry::default()
        };
        blkio
            .io_service_bytes_recursive
            .extend([entry("Read", io.rbytes), entry("Write", io.wbytes)]);
        blkio
            .io_serviced_recursive
            .extend([entry("Read", io.rios), entry("Write", io.wios)]);
    }
    metrics
}

fn legacy_memory(stats: &StatsResponse) -> v1::MemoryStat {
    let memory = &stats.memory;
    let stat = |name| line(&memory.stat, name);
    let entry = |usage, limit, max| {
        MessageField::some(v1::MemoryEntry {
            usage,
            limit,
            max,
            ..v1::MemoryEntry::default()
        })
    };
    v1::MemoryStat {
        cache: stat("file"),
        rss: stat("anon"),
        mapped_file: stat("file_mapped"),
        dirty: stat("file_dirty"),
        writeback: stat("file_writeback"),
        pg_fault: stat("pgfault"),
        pg_maj_fault: stat("pgmajfault"),
        inactive_anon: stat("inactive_anon"),
        active_anon: stat("active_anon"),
        inactive_file: stat("inactive_file"),
        active_file: stat("active_file"),
        unevictable: stat("unevictable"),
        hierarchical_memory_limit: memory.limit,
        hierarchical_swap_limit: memory.limit.saturating_add(memory.swap_limit),
        total_cache: stat("file"),
        total_rss: stat("anon"),
        total_mapped_file: stat("file_mapped"),
        total_inactive_anon: stat("inactive_anon"),
        total_active_anon: stat("active_anon"),
        total_inactive_file: stat("inactive_file"),
        total_active_file: stat("active_file"),
        total_pg_fault: stat("pgfault"),
        total_pg_maj_fault: stat("pgmajfault"),
        usage: entry(memory.usage, memory.limit, memory.peak),
        // v1's "memsw" figures are memory and swap together.
        swap: entry(
            memory.usage.saturating_add(memory.swap_usage),
            memory.limit.saturating_add(memory.swap_limit),
            0,
        ),
        ..v1::MemoryStat::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures() -> StatsResponse {
        let mut stats = StatsResponse::new();
        stats.cpu.mut_or_insert_default().usage_usec = 7;
        let memory = stats.memory.mut_or_insert_default();
        memory.usage = 100;
        memory.limit = u64::MAX;
        memory.stat.insert("anon".to_owned(), 60);
        memory.events.insert("oom_kill".to_owned(), 2);
        stats.pids.mut_or_insert_default().limit = u64::MAX;
        stats
    }

    #[test]
    fn a_v1_host_gets_nanoseconds_and_no_limit_as_zero() {
        let any = metrics(&figures(), CgroupMode::Legacy).unwrap();
        assert_eq!(any.type_url, "io.containerd.cgroups.v1.Metrics");
        let metrics = v1::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!(metrics.cpu.usage.total, 7000);
        assert_eq!((metrics.memory.rss, metrics.memory.usage.usage), (60, 100));
        assert_eq!((metrics.pids.limit, metrics.memory_oom_control.oom_kill), (0, 2));
    }

    #[test]
    fn a_v2_host_gets_the_figures_as_they_are() {
        let any = metrics(&figures(), CgroupMode::Unified).unwrap();
        assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
        let metrics = v2::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!(
            (metrics.cpu.usage_usec, metrics.memory.anon, metrics.memory.usage_limit),
            (7, 60, u64::MAX)
        );
        assert_eq!(metrics.memory_events.oom_kill, 2);
    }

    #[test]
    fn an_empty_answer_gives_empty_metrics() {
        assert!(metrics(&StatsResponse::new(), CgroupMode::Legacy).is_ok());
        assert!(metrics(&StatsResponse::new(), CgroupMode::Unified).is_ok());
    }

    /// A guest's answer: decoded, and converted for containerd.
    #[test]
    fn a_guest_that_tells_of_more_disks_than_there_can_be_is_cut_off() {
        let stats = StatsResponse {
            io: vec![IoStats::new(); 32_000],
            ..StatsResponse::default()
        };
        assert_eq!(unified(&stats).io.usage.len(), DEVICES);
        assert_eq!(legacy(&stats).blkio.io_serviced_recursive.len(), 2 * DEVICES);
    }

    #[test]
    fn fuzz_agent_stats() {
        use protobuf::Message as _;
        fuzz::run("agent-stats", |bytes| {
            if let Ok(stats) = StatsResponse::parse_from_bytes(bytes) {
                for mode in [CgroupMode::Legacy, CgroupMode::Unified] {
                    let _ = metrics(&stats, mode);
                }
            }
        });
    }
}
