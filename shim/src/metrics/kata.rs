//! The metrics under the names, units and labels of Kata's shim (its docs/design/kata-2-0-metrics.md), for Kata's
//! dashboards.
//!
//! A metric whose name both have is written only by [`super`], so that no value is exported twice.

use protocol::agent::{AgentUsage, GuestMetricsResponse};
use scrape::durations::Durations;
use scrape::text::{Kind, Text};

use super::names::{bounded, sorted};
use super::processes::Usage;

/// What Kata has of a process: the end of the family's name, what it says of it, its items.
type Process = (&'static str, &'static str, &'static [(&'static str, fn(&Usage) -> f64)]);

const PROCESS: [Process; 4] = [
    (
        "fds",
        "Open file descriptors.",
        &[("", |usage| usage.descriptors as f64)],
    ),
    (
        "proc_stat",
        "CPU time in clock ticks (/proc/PID/stat).",
        &[("utime", |usage| usage.user), ("stime", |usage| usage.system)],
    ),
    (
        "proc_status",
        "Memory in bytes (/proc/PID/status).",
        &[("vmrss", |usage| usage.resident as f64)],
    ),
    (
        "io_stat",
        "Bytes read and written by system calls (/proc/PID/io).",
        &[
            ("rchar", |usage| usage.read as f64),
            ("wchar", |usage| usage.written as f64),
        ],
    ),
];

/// The counters of a line of /proc/net/dev, by Kata's names.
const TRAFFIC: [&str; 16] = [
    "recv_bytes",
    "recv_packets",
    "recv_errs",
    "recv_drop",
    "recv_fifo",
    "recv_frame",
    "recv_compressed",
    "recv_multicast",
    "sent_bytes",
    "sent_packets",
    "sent_errs",
    "sent_drop",
    "sent_fifo",
    "sent_colls",
    "sent_carrier",
    "sent_compressed",
];

/// Traffic of one network namespace.
pub(super) struct Devices<'a> {
    pub(super) family: &'static str,
    pub(super) devices: Vec<(&'a str, &'a [u64])>,
}

/// What the sandbox's shim has measured.
pub(super) struct Measured<'a> {
    /// Durations of containerd's calls.
    pub(super) calls: &'a Durations,
    /// Calls to the agent; none before there is one.
    pub(super) agent_calls: Option<Durations>,
}

fn traffic(text: &mut Text, networks: &[Devices<'_>]) {
    for network in networks.iter().filter(|network| !network.devices.is_empty()) {
        text.family(
            network.family,
            Kind::Gauge,
            "Counters of the network devices (/proc/net/dev).",
        );
        for (name, counters) in bounded(network.devices.iter().copied()) {
            for (item, counter) in TRAFFIC.iter().zip(counters) {
                text.sample(&[("interface", name), ("item", item)], *counter as f64);
            }
        }
    }
}

fn agent(text: &mut Text, agent: &AgentUsage) {
    let plain = [
        (
            "kata_agent_process_open_fds",
            "Open file descriptors.",
            f64::from(agent.open_files),
        ),
        (
            "kata_agent_process_resident_memory_bytes",
            "Resident memory (RSS).",
            agent.resident_bytes as f64,
        ),
        ("kata_agent_threads", "Threads.", f64::from(agent.threads)),
    ];
    for (name, help, value) in plain {
        text.family(name, Kind::Gauge, help);
        text.sample(&[], value);
    }
    text.family(
        "kata_agent_proc_stat",
        Kind::Gauge,
        "CPU time in clock ticks (/proc/PID/stat).",
    );
    text.sample(&[("item", "utime")], agent.user_ticks as f64);
    text.sample(&[("item", "stime")], agent.system_ticks as f64);
    text.family(
        "kata_agent_proc_status",
        Kind::Gauge,
        "Memory in bytes (/proc/PID/status).",
    );
    text.sample(&[("item", "vmrss")], agent.resident_bytes as f64);
}

/// Those of the processes on the host, and of the guest if it has answered; with a label for the sandbox if there is one.
pub(super) fn render(
    sandbox: Option<&str>,
    usage: &[(&'static str, Usage)],
    networks: &[Devices<'_>],
    guest: Option<&GuestMetricsResponse>,
    measured: &Measured<'_>,
) -> String {
    let label = sandbox.map(|sandbox| ("sandbox_id", sandbox));
    let mut text = Text::with_labels(label.as_slice());
    for (component, usage) in usage.iter().filter(|(component, _)| *component != "vsock") {
        for (figure, help, items) in PROCESS {
            text.family(&format!("kata_{component}_{figure}"), Kind::Gauge, help);
            for (item, value) in items {
                let label = [("item", *item)];
                let labels = if item.is_empty() { &[][..] } else { &label[..] };
                text.sample(labels, value(usage));
            }
        }
    }
    traffic(&mut text, networks);
    if let Some(guest) = guest {
        system(&mut text, guest);
        if let Some(usage) = guest.agent.as_ref() {
            agent(&mut text, usage);
        }
    }
    measured.calls.write(
        &mut text,
        "kata_shim_rpc_durations_histogram_milliseconds",
        "Time of containerd's calls.",
    );
    if let Some(calls) = &measured.agent_calls {
        calls.write(
            &mut text,
            "kata_shim_agent_rpc_durations_histogram_milliseconds",
            "Time of calls to the agent.",
        );
    }
    text.finish()
}

fn system(text: &mut Text, guest: &GuestMetricsResponse) {
    text.family("kata_guest_load", Kind::Gauge, "The guest's load average.");
    text.sample(&[("item", "load1")], f64::from(guest.load_milli) / 1e3);
    text.family(
        "kata_guest_cpu_time",
        Kind::Gauge,
        "Time of the guest's CPUs in clock ticks.",
    );
    for (mode, micro) in sorted(&guest.cpu_usec) {
        // A tick has 10 ms.
        text.sample(&[("cpu", "total"), ("item", mode)], micro as f64 / 1e4);
    }
    text.family(
        "kata_guest_meminfo",
        Kind::Gauge,
        "The guest's /proc/meminfo, in bytes.",
    );
    for (item, bytes) in sorted(&guest.memory_bytes) {
        text.sample(&[("item", &snake(item))], bytes as f64);
    }
}

/// `MemTotal` is `mem_total`, `Active(anon)` is `active_anon`, `HugePages_Total` is `huge_pages_total`.
pub(crate) fn snake(name: &str) -> String {
    let mut text = String::with_capacity(name.len() + 4);
    let mut small = false;
    for character in name.chars() {
        match character {
            '(' | '_' if !text.ends_with('_') => text.push('_'),
            ')' | '_' | '(' => {}
            upper if upper.is_ascii_uppercase() => {
                if small {
                    text.push('_');
                }
                text.push(upper.to_ascii_lowercase());
            }
            other => text.push(other),
        }
        small = character.is_ascii_lowercase() || character.is_ascii_digit();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn names_of_meminfo_are_katas() {
        for (name, expected) in [
            ("MemTotal", "mem_total"),
            ("Active(anon)", "active_anon"),
            ("SReclaimable", "sreclaimable"),
            ("HugePages_Total", "huge_pages_total"),
            ("Hugepagesize", "hugepagesize"),
            ("DirectMap4k", "direct_map4k"),
            ("Buffers", "buffers"),
        ] {
            assert_eq!(snake(name), expected);
        }
    }

    #[test]
    fn no_family_of_katas_is_one_of_ours_and_each_is_prometheus_text() {
        let usage = [("hypervisor", Usage::default()), ("vsock", Usage::default())];
        let guest = GuestMetricsResponse {
            memory_bytes: HashMap::from([("MemTotal".to_owned(), 1024)]),
            cpu_usec: HashMap::from([("user".to_owned(), 20_000)]),
            load_milli: 1500,
            ..Default::default()
        };
        let measured = Measured {
            calls: &Durations::default(),
            agent_calls: None,
        };
        let counters: Vec<u64> = (1..=16).collect();
        let networks = [Devices {
            family: "kata_hypervisor_netdev",
            devices: vec![("eth0", &counters)],
        }];
        let katas = render(Some("pod"), &usage, &networks, Some(&guest), &measured);
        for line in [
            "kata_hypervisor_fds{sandbox_id=\"pod\"} 0",
            "kata_hypervisor_proc_stat{sandbox_id=\"pod\",item=\"utime\"} 0",
            "kata_guest_meminfo{sandbox_id=\"pod\",item=\"mem_total\"} 1024",
            "kata_guest_cpu_time{sandbox_id=\"pod\",cpu=\"total\",item=\"user\"} 2",
            "kata_guest_load{sandbox_id=\"pod\",item=\"load1\"} 1.5",
            "kata_hypervisor_netdev{sandbox_id=\"pod\",interface=\"eth0\",item=\"sent_bytes\"} 9",
            "kata_hypervisor_io_stat{sandbox_id=\"pod\",item=\"rchar\"} 0",
        ] {
            assert!(katas.lines().any(|other| other == line), "{line} is not in {katas}");
        }
        let mut ours = Text::with_labels(&[("sandbox", "pod")]);
        super::super::host(&mut ours, &usage);
        super::super::system(&mut ours, &guest);
        let types = |text: &str| -> Vec<String> {
            let lines = text.lines().filter(|line| line.starts_with("# TYPE"));
            lines.map(str::to_owned).collect()
        };
        let ours = types(&ours.finish());
        assert!(types(&katas).iter().all(|family| !ours.contains(family)), "{ours:?}");
    }

    /// A guest's answer: decoded, and written as text that has one sample a line, whatever names the guest makes up.
    #[test]
    fn fuzz_guest_metrics() {
        use protobuf::Message as _;
        let measured = Measured {
            calls: &Durations::default(),
            agent_calls: None,
        };
        fuzz::run("guest-metrics", |bytes| {
            let Ok(guest) = GuestMetricsResponse::parse_from_bytes(bytes) else {
                return;
            };
            let devices = guest.devices.iter().map(|one| (one.name.as_str(), &*one.counters));
            let networks = [Devices {
                family: "kata_guest_netdev_stat",
                devices: devices.collect(),
            }];
            let mut ours = Text::with_labels(&[("sandbox", "pod")]);
            super::super::system(&mut ours, &guest);
            let text = render(Some("pod"), &[], &networks, Some(&guest), &measured) + &ours.finish();
            for line in text.lines() {
                assert!(line.starts_with("kata_") || line.starts_with("# "), "{line:?}");
            }
        });
    }
}
