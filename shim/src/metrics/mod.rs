//! The metrics of a sandbox as Prometheus text: its processes on the host, its guest, its containers.
//!
//! Names and units follow Prometheus (<https://prometheus.io/docs/practices/naming/>): base units, and `_total` for
//! counters. An unavailable value is left out. `kata_guest_up` says whether the agent has answered, `kata_container_up`
//! whether it has reported a container's values. The metrics with Kata's names are added by [`kata`].
//!
//! Prometheus waits for ten seconds, and nothing here waits for more than four.

pub(crate) mod kata;
mod names;
mod processes;

use std::sync::atomic::{AtomicU64, Ordering};

use guest::relays::Relays;
use protocol::agent::{GuestMetricsResponse, StatsResponse};

use scrape::text::{Kind, Text};

use self::names::{bounded, sorted};
use self::processes::Usage;
use crate::id::ContainerId;
use crate::sandbox::Sandbox;

const MICRO: f64 = 1e6;

/// The format that a caller wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scraper {
    /// `kata-ctl`, which passes the text on as it is.
    Ctl,
    /// kata-monitor, which gives every sample the label `sandbox_id`: a second one would make its text invalid.
    Monitor,
}

/// Everything that can be had within a few seconds.
pub(crate) async fn render(sandbox: &Sandbox, scraper: Scraper) -> String {
    let (guest, containers) = tokio::join!(sandbox.guest_metrics(), sandbox.figures());
    let guest = guest.ok();
    let mut pids = sandbox.vm_pids();
    pids.push(std::process::id());
    let host_side = move || {
        let hypervisor = processes::hypervisor(&pids).map(processes::traffic);
        let own = processes::traffic(std::process::id());
        (processes::usage(&pids), own, hypervisor.unwrap_or_default())
    };
    let (usage, own_traffic, vm_traffic) = tokio::task::spawn_blocking(host_side).await.unwrap_or_default();
    let id = sandbox.id.to_string();
    let mut text = Text::with_labels(&[("sandbox", &id)]);
    host(&mut text, &usage);
    relays(&mut text, sandbox.relays());
    if let Some(tracing) = sandbox.tracing() {
        spans(&mut text, tracing.counts());
    }
    text.family("kata_guest_up", Kind::Gauge, "Whether the guest's agent has answered.");
    text.sample(&[], if guest.is_some() { 1.0 } else { 0.0 });
    if let Some(guest) = &guest {
        system(&mut text, guest);
    }
    container_figures(&mut text, &containers);
    let label = (scraper == Scraper::Ctl).then_some(id.as_str());
    let devices = guest.as_ref().map_or(&[][..], |guest| &guest.devices);
    let networks = [
        kata::Devices {
            family: "kata_shim_netdev",
            devices: own_traffic
                .iter()
                .map(|one| (one.name.as_str(), &*one.counters))
                .collect(),
        },
        kata::Devices {
            family: "kata_hypervisor_netdev",
            devices: vm_traffic
                .iter()
                .map(|one| (one.name.as_str(), &*one.counters))
                .collect(),
        },
        kata::Devices {
            family: "kata_guest_netdev_stat",
            devices: devices.iter().map(|one| (one.name.as_str(), &*one.counters)).collect(),
        },
    ];
    let measured = kata::Measured {
        calls: &sandbox.call_durations,
        agent_calls: sandbox.agent_durations(),
    };
    text.finish() + &kata::render(label, &usage, &networks, guest.as_ref(), &measured)
}

type Figure = (&'static str, Kind, &'static str, fn(&Usage) -> f64);

const FIGURES: [Figure; 5] = [
    (
        "cpu_seconds_total",
        Kind::Counter,
        "CPU time, user and system.",
        Usage::cpu_seconds,
    ),
    (
        "resident_memory_bytes",
        Kind::Gauge,
        "Resident memory (RSS).",
        |usage| usage.resident as f64,
    ),
    (
        "proportional_memory_bytes",
        Kind::Gauge,
        "Resident memory, each shared page divided by its users (PSS).",
        |usage| usage.proportional as f64,
    ),
    ("threads", Kind::Gauge, "Threads.", |usage| usage.threads as f64),
    ("open_fds", Kind::Gauge, "Open file descriptors.", |usage| {
        usage.descriptors as f64
    }),
];

fn host(text: &mut Text, usage: &[(&'static str, Usage)]) {
    for (component, usage) in usage {
        for (figure, kind, help, value) in FIGURES {
            text.family(&format!("kata_{component}_{figure}"), kind, help);
            text.sample(&[], value(usage));
        }
    }
}

/// Connections of the guest to sockets of the host, and to Docker's name server.
fn relays(text: &mut Text, relays: &Relays) {
    let counts = relays.counts();
    let total = |count: &AtomicU64| count.load(Ordering::Relaxed) as f64;
    let figures = [
        (
            "kata_relay_connections",
            Kind::Gauge,
            "Connections of the guest to services of the host that are open.",
            relays.open() as f64,
        ),
        (
            "kata_relay_served_total",
            Kind::Counter,
            "Connections of the guest to services of the host.",
            total(&counts.served),
        ),
        (
            "kata_relay_refused_total",
            Kind::Counter,
            "Connections of the guest that were dropped: too many, or to nothing that it was offered.",
            total(&counts.refused),
        ),
    ];
    for (name, kind, help, value) in figures {
        text.family(name, kind, help);
        text.sample(&[], value);
    }
}

/// Spans that the collector has taken, and those that are lost.
fn spans(text: &mut Text, (sent, dropped): (u64, u64)) {
    let help = "Spans of the sandbox's trace, by what became of them.";
    text.family("kata_trace_spans_total", Kind::Counter, help);
    text.sample(&[("state", "sent")], sent as f64);
    text.sample(&[("state", "dropped")], dropped as f64);
}

fn system(text: &mut Text, guest: &GuestMetricsResponse) {
    text.family(
        "kata_guest_cpu_seconds_total",
        Kind::Counter,
        "Time of all the guest's CPUs, by mode.",
    );
    for (mode, micro) in sorted(&guest.cpu_usec) {
        text.sample(&[("mode", mode)], micro as f64 / MICRO);
    }
    text.family(
        "kata_guest_memory_bytes",
        Kind::Gauge,
        "The lines of the guest's /proc/meminfo.",
    );
    for (item, bytes) in sorted(&guest.memory_bytes) {
        text.sample(&[("item", item)], bytes as f64);
    }
    text.family(
        "kata_guest_pressure_seconds_total",
        Kind::Counter,
        "Time that some or all tasks of the guest have waited for a resource (PSI).",
    );
    let pressures = guest.pressure.iter();
    for (resource, pressure) in bounded(pressures.map(|pressure| (pressure.resource.as_str(), pressure))) {
        for (kind, micro) in [("some", pressure.some_usec), ("full", pressure.full_usec)] {
            let labels = [("resource", resource), ("kind", kind)];
            text.sample(&labels, micro as f64 / MICRO);
        }
    }
    let plain: [(&str, Kind, &str, f64); 6] = [
        (
            "kata_guest_oom_kills_total",
            Kind::Counter,
            "How often the guest's kernel has killed for want of memory.",
            guest.oom_kills as f64,
        ),
        (
            "kata_guest_tasks",
            Kind::Gauge,
            "Processes and threads of the guest.",
            f64::from(guest.tasks),
        ),
        (
            "kata_guest_runnable_tasks",
            Kind::Gauge,
            "Those that can run now.",
            f64::from(guest.runnable),
        ),
        (
            "kata_guest_load1",
            Kind::Gauge,
            "The guest's load average of a minute.",
            f64::from(guest.load_milli) / 1e3,
        ),
        (
            "kata_guest_cpus",
            Kind::Gauge,
            "The guest's CPUs that are online.",
            f64::from(guest.cpus),
        ),
        (
            "kata_guest_uptime_seconds",
            Kind::Gauge,
            "Since the guest's boot.",
            guest.uptime_ms as f64 / 1e3,
        ),
    ];
    for (name, kind, help, value) in plain {
        text.family(name, kind, help);
        text.sample(&[], value);
    }
}

type ContainerFigure = (&'static str, Kind, &'static str, fn(&StatsResponse) -> f64);

const CONTAINER: [ContainerFigure; 5] = [
    (
        "kata_container_cpu_seconds_total",
        Kind::Counter,
        "CPU time of the container.",
        |stats| stats.cpu.usage_usec as f64 / MICRO,
    ),
    (
        "kata_container_cpu_throttled_seconds_total",
        Kind::Counter,
        "Time that the container was held back by its CPU limit.",
        |stats| stats.cpu.throttled_usec as f64 / MICRO,
    ),
    (
        "kata_container_memory_usage_bytes",
        Kind::Gauge,
        "Memory of the container, caches included.",
        |stats| stats.memory.usage as f64,
    ),
    (
        "kata_container_oom_kills_total",
        Kind::Counter,
        "How often a process of the container was killed for want of memory.",
        |stats| stats.memory.events.get("oom_kill").copied().unwrap_or(0) as f64,
    ),
    (
        "kata_container_processes",
        Kind::Gauge,
        "Tasks of the container.",
        |stats| stats.pids.current as f64,
    ),
];

fn container_figures(text: &mut Text, containers: &[(ContainerId, Option<StatsResponse>)]) {
    if containers.is_empty() {
        return;
    }
    text.family(
        "kata_container_up",
        Kind::Gauge,
        "Whether the guest has told the container's figures.",
    );
    for (id, stats) in containers {
        text.sample(&[("container", id.as_str())], if stats.is_some() { 1.0 } else { 0.0 });
    }
    for (name, kind, help, value) in CONTAINER
        .iter()
        .filter(|_| containers.iter().any(|(_, told)| told.is_some()))
    {
        text.family(name, *kind, help);
        for (id, stats) in containers {
            if let Some(stats) = stats {
                text.sample(&[("container", id.as_str())], value(stats));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::names::GUEST_NAMES;
    use super::*;

    #[test]
    fn a_guest_that_makes_up_names_gets_few_of_them_through() {
        let guest = GuestMetricsResponse {
            memory_bytes: (0..10_000).map(|n| (format!("evil\"\n{n}"), n)).collect(),
            cpu_usec: HashMap::from([("user".to_owned(), 1_500_000)]),
            ..Default::default()
        };
        let mut text = Text::with_labels(&[("sandbox", "pod")]);
        system(&mut text, &guest);
        let text = text.finish();
        assert!(text.lines().count() < 2 * GUEST_NAMES, "{}", text.lines().count());
        assert!(
            text.contains("kata_guest_cpu_seconds_total{sandbox=\"pod\",mode=\"user\"} 1.5\n"),
            "{text}"
        );
        assert!(
            text.lines()
                .all(|line| line.starts_with("kata_") || line.starts_with("# ")),
            "{text}"
        );
    }
}
