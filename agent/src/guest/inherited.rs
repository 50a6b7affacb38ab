//! Settings of the node that a container has by inheritance with runc (docs/limits.md, "Settings of the node").
//!
//! Of numbers the guest keeps what it has more of. Some limits are memory that no container is charged for, such as that of connections which
//! nobody has accepted. They have at most their part of the memory that the VM has, and follow it when it changes.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// What one of them takes, in bytes.
const COSTS: [(&str, u64); 5] = [
    ("net.ipv4.tcp_max_orphans", PAGE),
    ("net.ipv4.tcp_max_tw_buckets", 512),
    ("net.ipv4.tcp_mem", PAGE),
    ("net.ipv4.udp_mem", PAGE),
    ("net.netfilter.nf_conntrack_max", 512),
];
const PAGE: u64 = 4096;

/// The part of the memory that each of them may have.
const PART: u64 = 4;

/// A limit that follows the memory.
struct Following {
    /// What the guest's kernel had of it.
    own: String,
    host: String,
    /// What was written last. Another value is somebody else's, and stays.
    written: String,
}

static FOLLOWING: Mutex<Option<HashMap<String, Following>>> = Mutex::new(None);

/// Takes over what is more, or what is no number. A guest without the parameter, or with bounds of its own, is still a guest: it is logged.
pub(crate) fn inherit(name: &str, host: &str) {
    let path = sysctl_path(name).filter(|path| path.exists());
    let Some(path) = path else {
        tracing::debug!(name, "the guest has no such parameter");
        return;
    };
    let Some(own) = read(name, &path) else { return };
    let Some(cost) = cost(name) else {
        if let Some(value) = inherited(&own, host, None) {
            write(name, &path, &value);
        }
        return;
    };
    let written = bounded(&own, host, memory() / PART / cost);
    if written == own || write(name, &path, &written) {
        let host = host.to_owned();
        let mut following = FOLLOWING.lock().unwrap_or_else(PoisonError::into_inner);
        let following = following.get_or_insert_default();
        following.insert(name.to_owned(), Following { own, host, written });
    }
}

/// To be called when the VM has got other memory.
pub(crate) fn renew() {
    let mut following = FOLLOWING.lock().unwrap_or_else(PoisonError::into_inner);
    let part = memory() / PART;
    for (name, limit) in following.iter_mut().flatten() {
        let (Some(path), Some(cost)) = (sysctl_path(name), cost(name)) else {
            continue;
        };
        let value = bounded(&limit.own, &limit.host, part / cost);
        if value != limit.written && read(name, &path).as_ref() == Some(&limit.written) && write(name, &path, &value) {
            limit.written = value;
        }
    }
}

/// What a limit is to be, where the host's counts up to `most`.
fn bounded(own: &str, host: &str, most: u64) -> String {
    inherited(own, host, Some(most)).unwrap_or_else(|| own.to_owned())
}

fn cost(name: &str) -> Option<u64> {
    COSTS.iter().find(|(costly, _)| *costly == name).map(|(_, cost)| *cost)
}

/// The memory that the VM has, in bytes.
fn memory() -> u64 {
    let info = rustix::system::sysinfo();
    #[allow(
        clippy::useless_conversion,
        reason = "the C library has other types on other architectures"
    )]
    u64::from(info.totalram).saturating_mul(u64::from(info.mem_unit))
}

/// The parameter's words, with one blank between them.
fn read(name: &str, path: &Path) -> Option<String> {
    match std::fs::read_to_string(path) {
        Ok(text) => Some(text.split_whitespace().collect::<Vec<_>>().join(" ")),
        Err(error) => {
            tracing::warn!(name, %error, "a setting of the guest cannot be read");
            None
        }
    }
}

fn write(name: &str, path: &Path, value: &str) -> bool {
    let written = std::fs::write(path, value);
    if let Err(error) = &written {
        tracing::warn!(name, value, %error, "the guest does not have what the host has of it");
    }
    written.is_ok()
}

/// What the parameter is to be where that is not what it is: of each number the greater one, where the host's counts up to `most`. Of three
/// numbers, which are a least, a pressure and a most (tcp(7)), those before the last count up to less. A parameter of fewer or more
/// numbers stays.
fn inherited(own: &str, host: &str, most: Option<u64>) -> Option<String> {
    let numbers = |text: &str| text.split_whitespace().map(str::parse).collect::<Result<Vec<u64>, _>>();
    match (numbers(own), numbers(host)) {
        (Ok(own), Ok(host)) if own.len() == host.len() => {
            let most = most.unwrap_or(u64::MAX);
            let bounds = match own.len() {
                3 => [most / 2, most / 3 * 2, most],
                _ => [most; 3],
            };
            let each = own.iter().zip(&host).enumerate();
            let raised = each.map(|(place, (own, host))| {
                let bound = bounds.get(place).copied().unwrap_or(most);
                *own.max(host.min(&bound))
            });
            let raised: Vec<u64> = raised.collect();
            let words = || raised.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
            (raised != own).then(words)
        }
        (Err(_), Err(_)) => (own != host).then(|| host.to_owned()),
        _ => None,
    }
}

/// `a.b` is `a/b`; a name with slashes keeps its dots, as sysctl(8) has it (interfaces have dots in their names).
pub(crate) fn sysctl_path(name: &str) -> Option<PathBuf> {
    let relative = if name.contains('/') {
        name.to_owned()
    } else {
        name.replace('.', "/")
    };
    let relative = Path::new(&relative);
    let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
    (plain && !name.is_empty()).then(|| Path::new("/proc/sys").join(relative))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_the_guest_has_more_of_it_keeps_and_the_rest_it_has_as_the_host() {
        let is = |own: &str, host: &str| inherited(own, host, None).unwrap_or_else(|| "as it is".to_owned());
        assert_eq!(is("8192", "192536"), "192536");
        assert_eq!(is("4096 131072 1765632", "4096 16384 33554432"), "4096 131072 33554432");
        assert_eq!(is("cubic", "bbr"), "bbr");
        for (own, host) in [
            ("192536", "192536"),
            ("1048576", "192536"),
            ("4 5", "6"),
            ("", "1"),
            ("bbr", "bbr"),
            ("bbr", "1"),
        ] {
            assert_eq!(is(own, host), "as it is", "{own:?}, {host}");
        }
    }

    #[test]
    fn what_is_memory_has_its_part_of_the_vms_and_never_less_than_the_guest_had() {
        let is =
            |own: &str, host: &str, most| inherited(own, host, Some(most)).unwrap_or_else(|| "as it is".to_owned());
        assert_eq!(is("2586 3448 5172", "287901 383868 575802", 12_000), "6000 8000 12000");
        assert_eq!(is("2586 3448 5172", "287901 383868 575802", 10), "as it is");
        assert_eq!(is("2048", "262144", 100_000), "100000");
        assert_eq!(is("2048", "4096", 100_000), "4096");
    }

    #[test]
    fn this_machine_has_memory() {
        assert!(memory() > 64 << 20);
    }

    #[test]
    fn dots_are_directories_unless_there_are_slashes() {
        assert_eq!(
            sysctl_path("kernel.perf_event_mlock_kb").unwrap(),
            Path::new("/proc/sys/kernel/perf_event_mlock_kb")
        );
        assert_eq!(
            sysctl_path("net/ipv4/conf/eth0.1/forwarding").unwrap(),
            Path::new("/proc/sys/net/ipv4/conf/eth0.1/forwarding")
        );
        assert_eq!(sysctl_path(""), None);
    }

    proptest! {
        #[test]
        fn no_name_leads_out_of_proc_sys(name in "[a-z./]*") {
            if let Some(path) = sysctl_path(&name) {
                prop_assert!(path.starts_with("/proc/sys"));
                prop_assert!(!path.components().any(|part| part == Component::ParentDir));
            }
        }
    }
}
