//! The metrics under the names, units and labels of Kata's shim (its docs/design/kata-2-0-metrics.md), for Kata's
//! dashboards.
//!
//! A metric whose name both have is written only by [`super`], so that no value is exported twice.

use protocol::agent::GuestMetricsResponse;
use scrape::text::{Kind, Text};

use super::processes::Usage;
use super::sorted;

/// What Kata has of a process: the end of the family's name, what it says of it, its items.
type Process = (&'static str, &'static str, &'static [(&'static str, fn(&Usage) -> f64)]);

const PROCESS: [Process; 3] = [
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
];

/// Those of the processes on the host, and of the guest if it has answered; with a label for the sandbox if there is one.
pub(super) fn render(
    sandbox: Option<&str>,
    usage: &[(&'static str, Usage)],
    guest: Option<&GuestMetricsResponse>,
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
    if let Some(guest) = guest {
        system(&mut text, guest);
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
fn snake(name: &str) -> String {
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
        let katas = render(Some("pod"), &usage, Some(&guest));
        for line in [
            "kata_hypervisor_fds{sandbox_id=\"pod\"} 0",
            "kata_hypervisor_proc_stat{sandbox_id=\"pod\",item=\"utime\"} 0",
            "kata_guest_meminfo{sandbox_id=\"pod\",item=\"mem_total\"} 1024",
            "kata_guest_cpu_time{sandbox_id=\"pod\",cpu=\"total\",item=\"user\"} 2",
            "kata_guest_load{sandbox_id=\"pod\",item=\"load1\"} 1.5",
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
}
