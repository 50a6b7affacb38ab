//! The counters of network devices (/proc/net/dev, proc_pid_net(5)).
//!
//! `procfs-core` reads all devices, into a map. Here the first so many are read, in the kernel's order, and no more: a container can make any
//! number of them.

/// The counters of one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traffic {
    /// The device's name.
    pub name: String,
    /// In the order of the file.
    pub counters: Vec<u64>,
}

/// The first `most` devices of the file's text.
pub fn traffic(text: &str, most: usize) -> impl Iterator<Item = Traffic> + '_ {
    let lines = text.lines().skip(2).filter_map(|line| line.split_once(':'));
    lines.take(most).map(|(name, counters)| Traffic {
        name: name.trim().to_owned(),
        counters: counters
            .split_ascii_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_follow_two_lines_of_headings() {
        let text = "Inter-|\n face |bytes\n    lo: 1 2\n  eth0:3 4\n  eth1: 5 6\n";
        let found: Vec<_> = traffic(text, 2).collect();
        let of = |name: &str, counters: [u64; 2]| Traffic {
            name: name.to_owned(),
            counters: counters.into(),
        };
        assert_eq!(found, [of("lo", [1, 2]), of("eth0", [3, 4])]);
    }
}
