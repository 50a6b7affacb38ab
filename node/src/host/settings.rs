//! Reads settings of the node for the guest. With runc a container inherits them, because there is only one kernel
//! (docs/limits.md).
//!
//! It reads the host and knows no guest. A setting of the guest that is already higher stays.

use std::collections::HashMap;
use std::path::Path;

use nix::sys::resource::{Resource, getrlimit};

/// Limits on what a program may have, of which more is no harm. Those that are memory are mostly charged to the container. What is not, the
/// agent bounds by the memory of the VM.
///
/// The kernel makes those of TCP, UDP and connection tracking of the machine's memory when it boots, and a VM is small then. A new network
/// namespace of the node has them so, or as the node's own has them (`tcp_sk_init` in net/ipv4/tcp_ipv4.c).
const LIMITS: [&str; 51] = [
    "fs.aio-max-nr",
    "fs.epoll.max_user_watches",
    "fs.fanotify.max_queued_events",
    "fs.fanotify.max_user_groups",
    "fs.fanotify.max_user_marks",
    "fs.file-max",
    "fs.inotify.max_queued_events",
    "fs.inotify.max_user_instances",
    "fs.inotify.max_user_watches",
    "fs.mount-max",
    "fs.nr_open",
    "fs.pipe-max-size",
    PIPE_PAGES,
    "kernel.keys.maxbytes",
    "kernel.keys.maxkeys",
    "kernel.pid_max",
    "kernel.pty.max",
    "kernel.threads-max",
    "net.core.netdev_max_backlog",
    "net.core.optmem_max",
    "net.core.rmem_default",
    "net.core.rmem_max",
    "net.core.somaxconn",
    "net.core.wmem_default",
    "net.core.wmem_max",
    "net.ipv4.neigh.default.gc_thresh1",
    "net.ipv4.neigh.default.gc_thresh2",
    "net.ipv4.neigh.default.gc_thresh3",
    "net.ipv4.tcp_max_orphans",
    "net.ipv4.tcp_max_syn_backlog",
    "net.ipv4.tcp_max_tw_buckets",
    "net.ipv4.tcp_mem",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
    "net.ipv4.udp_mem",
    "net.ipv6.neigh.default.gc_thresh1",
    "net.ipv6.neigh.default.gc_thresh2",
    "net.ipv6.neigh.default.gc_thresh3",
    BUCKETS,
    "net.netfilter.nf_conntrack_expect_max",
    "net.netfilter.nf_conntrack_max",
    "user.max_cgroup_namespaces",
    "user.max_ipc_namespaces",
    "user.max_mnt_namespaces",
    "user.max_net_namespaces",
    "user.max_pid_namespaces",
    "user.max_time_namespaces",
    "user.max_user_namespaces",
    "user.max_uts_namespaces",
    "vm.max_map_count",
    OVERCOMMIT,
];

/// What a new network namespace has from the host's, in words (`tcp_assign_congestion_control` in net/ipv4/tcp_cong.c).
const CONGESTION_CONTROL: &str = "net.ipv4.tcp_congestion_control";

/// Pages that a user's pipes may have together: 0 is no limit (Documentation/admin-guide/sysctl/fs.rst).
const PIPE_PAGES: &str = "fs.pipe-user-pages-soft";
/// The table of tracked connections, of which the guest's kernel makes a small one, too. A connection whose place has 50 others is dropped (`MIN_CHAINLEN`
/// in net/netfilter/nf_conntrack_core.c). It is memory, 8 bytes a place, whether there are connections or not.
const BUCKETS: &str = "net.netfilter.nf_conntrack_buckets";
const MOST_BUCKETS: u64 = 16_384;
/// Stands for "no limit" where the guest has none to copy: more pages than any memory has.
const NO_LIMIT: u64 = 1 << 40;

/// Settings of IPv4 that a new network namespace has from the host's (the kernel's ip-sysctl.rst, `devconf_inherit_init_net`), of which
/// the guest's kernel has the least values that there are. Writing ip_forward sets others anew: those are not here.
const LEAST_OF_NETWORK: [&str; 9] = [
    "net.ipv4.conf.all.arp_announce",
    "net.ipv4.conf.all.arp_ignore",
    "net.ipv4.conf.all.route_localnet",
    "net.ipv4.conf.all.rp_filter",
    "net.ipv4.conf.default.arp_announce",
    "net.ipv4.conf.default.arp_ignore",
    "net.ipv4.conf.default.route_localnet",
    "net.ipv4.conf.default.rp_filter",
    "net.ipv4.ip_forward",
];

/// Settings of an IPv4 interface that a new network namespace has exactly as the host's, of which more is not better: a node is made
/// safer by less. Of `all` and of `default`, which each interface begins with.
const EXACT_OF_NETWORK: [&str; 9] = [
    "accept_local",
    "accept_redirects",
    "accept_source_route",
    "arp_filter",
    "arp_notify",
    "log_martians",
    "secure_redirects",
    "send_redirects",
    "shared_media",
];

/// The parameter that decides about that, and the value with which nothing is inherited.
const INHERIT: &str = "net.core.devconf_inherit_init_net";
const NOTHING: &str = "2";

/// Always overcommit: the one value of vm.overcommit_memory that allows more than the guest's own does. Accounting to the page
/// (2) is about the node's memory, and is not passed on.
const OVERCOMMIT: &str = "vm.overcommit_memory";
const ALWAYS: &str = "1";

/// What the guest is to have at least, if it is numbers, or as the host has it. One whose memory `grows` always overcommits: it would refuse
/// what is more than it has now, and not more than it can have.
#[must_use]
pub fn inherited_sysctls(grows: bool) -> HashMap<String, String> {
    let mut inherited = inherited_in(Path::new("/proc/sys"));
    if grows {
        inherited.insert(OVERCOMMIT.to_owned(), ALWAYS.to_owned());
    }
    inherited
}

/// What the guest is to have exactly.
#[must_use]
pub fn exact_sysctls() -> HashMap<String, String> {
    exact_in(Path::new("/proc/sys"))
}

/// A parameter's words, with one blank between them.
fn value(root: &Path, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(root.join(name.replace('.', "/"))).ok()?;
    let words: Vec<_> = text.split_whitespace().collect();
    (!words.is_empty()).then(|| words.join(" "))
}

fn inherits(root: &Path) -> bool {
    value(root, INHERIT).as_deref() != Some(NOTHING)
}

fn inherited_in(root: &Path) -> HashMap<String, String> {
    // What this host's kernel does not have, nobody inherits.
    let of_network: &[&str] = if inherits(root) { &LEAST_OF_NETWORK } else { &[] };
    let all = LIMITS.iter().chain([&CONGESTION_CONTROL]).chain(of_network);
    let all = all.filter_map(|name| Some(((*name).to_owned(), value(root, name)?)));
    let all = all.filter(|(name, value)| name != OVERCOMMIT || value == ALWAYS);
    all.map(|(name, value)| {
        let value = match name.as_str() {
            PIPE_PAGES if value == "0" => NO_LIMIT.to_string(),
            BUCKETS if value.parse().is_ok_and(|buckets: u64| buckets > MOST_BUCKETS) => MOST_BUCKETS.to_string(),
            _ => value,
        };
        (name, value)
    })
    .collect()
}

fn exact_in(root: &Path) -> HashMap<String, String> {
    if !inherits(root) {
        return HashMap::new();
    }
    let names = ["all", "default"]
        .into_iter()
        .flat_map(|of| EXACT_OF_NETWORK.map(|name| format!("net.ipv4.conf.{of}.{name}")));
    names
        .filter_map(|name| value(root, &name).map(|value| (name, value)))
        .collect()
}

/// Limits of a process that the kernel makes of the machine's memory: on runc a container inherits the node's, by way of
/// containerd. OCI type, soft and hard limit.
#[must_use]
pub fn inherited_rlimits() -> Vec<(&'static str, u64, u64)> {
    let limits = [
        ("RLIMIT_NPROC", Resource::RLIMIT_NPROC),
        ("RLIMIT_SIGPENDING", Resource::RLIMIT_SIGPENDING),
    ];
    // "No limit" is the same number there and here. A limit that cannot be read is the guest's own.
    let inherited = limits.into_iter().filter_map(|(kind, resource)| {
        let (soft, hard) = getrlimit(resource).ok()?;
        Some((kind, soft, hard))
    });
    inherited.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_node_has_is_read_and_what_it_lacks_left_out() {
        let root = tempfile::tempdir().unwrap();
        let set = |name: &str, value: &str| {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, value).unwrap();
        };
        set("fs/inotify/max_user_watches", "192536\n");
        set("vm/max_map_count", "many\n");
        set("vm/overcommit_memory", "2\n");
        let expected = [("fs.inotify.max_user_watches", "192536"), ("vm.max_map_count", "many")];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(inherited_in(root.path()), HashMap::from(expected));
        set("vm/overcommit_memory", "1\n");
        assert_eq!(inherited_in(root.path())[OVERCOMMIT], ALWAYS);
        set("net/ipv4/ip_forward", "1\n");
        assert_eq!(inherited_in(root.path())["net.ipv4.ip_forward"], "1");
        set("net/ipv4/tcp_rmem", "4096\t131072\t33554432\n");
        assert_eq!(inherited_in(root.path())["net.ipv4.tcp_rmem"], "4096 131072 33554432");
        set("fs/pipe-user-pages-soft", "0\n");
        assert_eq!(inherited_in(root.path())[PIPE_PAGES], NO_LIMIT.to_string());
        set("net/netfilter/nf_conntrack_buckets", "262144\n");
        assert_eq!(inherited_in(root.path())[BUCKETS], MOST_BUCKETS.to_string());
        set("net/ipv4/conf/default/accept_redirects", "0\n");
        let exact = HashMap::from([("net.ipv4.conf.default.accept_redirects".to_owned(), "0".to_owned())]);
        assert_eq!(exact_in(root.path()), exact);
        set("net/core/devconf_inherit_init_net", "2\n");
        assert!(!inherited_in(root.path()).contains_key("net.ipv4.ip_forward"));
        assert!(exact_in(root.path()).is_empty());
    }

    #[test]
    fn this_machine_has_limits_to_inherit() {
        assert!(inherited_sysctls(false)["kernel.pid_max"].parse::<u64>().unwrap() > 0);
        assert_eq!(inherited_sysctls(true)[OVERCOMMIT], ALWAYS);
        assert_eq!(inherited_rlimits().len(), 2);
    }
}
