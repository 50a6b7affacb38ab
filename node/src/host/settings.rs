//! Reads settings of the node for the guest. With runc a container inherits them, because there is only one kernel
//! (docs/limits.md).
//!
//! It reads the host and knows no guest. A setting of the guest that is already higher stays.

use std::collections::HashMap;
use std::path::Path;

use nix::sys::resource::{Resource, getrlimit};

/// Numbers of which more is no harm: limits on what a program may have. Those that are memory are charged to the container.
const LEAST: [&str; 29] = [
    "fs.aio-max-nr",
    "fs.epoll.max_user_watches",
    "fs.file-max",
    "fs.inotify.max_queued_events",
    "fs.inotify.max_user_instances",
    "fs.inotify.max_user_watches",
    "fs.nr_open",
    "fs.pipe-max-size",
    PIPE_PAGES,
    "kernel.keys.maxbytes",
    "kernel.keys.maxkeys",
    "kernel.pid_max",
    "kernel.threads-max",
    "net.core.netdev_max_backlog",
    "net.core.optmem_max",
    "net.core.rmem_default",
    "net.core.rmem_max",
    "net.core.somaxconn",
    "net.core.wmem_default",
    "net.core.wmem_max",
    "user.max_cgroup_namespaces",
    "user.max_ipc_namespaces",
    "user.max_mnt_namespaces",
    "user.max_net_namespaces",
    "user.max_pid_namespaces",
    "user.max_user_namespaces",
    "user.max_uts_namespaces",
    "vm.max_map_count",
    OVERCOMMIT,
];

/// Pages that a user's pipes may have together: 0 is no limit (Documentation/admin-guide/sysctl/fs.rst).
const PIPE_PAGES: &str = "fs.pipe-user-pages-soft";
/// More than any memory has.
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
const NOTHING: u64 = 2;

/// Always overcommit: the one value of vm.overcommit_memory that allows more than the guest's own does. Accounting to the page
/// (2) is about the node's memory, and is not passed on.
const OVERCOMMIT: &str = "vm.overcommit_memory";
const ALWAYS: u64 = 1;

/// What the guest is to have at least. One whose memory `grows` always overcommits: it would refuse what is more than it has now, and
/// not more than it can have.
#[must_use]
pub fn least_sysctls(grows: bool) -> HashMap<String, u64> {
    let mut least = least_in(Path::new("/proc/sys"));
    if grows {
        least.insert(OVERCOMMIT.to_owned(), ALWAYS);
    }
    least
}

/// What the guest is to have exactly.
#[must_use]
pub fn exact_sysctls() -> HashMap<String, String> {
    exact_in(Path::new("/proc/sys"))
}

fn value(root: &Path, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(root.join(name.replace('.', "/"))).ok()?;
    text.trim().parse().ok()
}

fn inherits(root: &Path) -> bool {
    value(root, INHERIT) != Some(NOTHING)
}

fn least_in(root: &Path) -> HashMap<String, u64> {
    // What this host's kernel does not have, nobody inherits.
    let of_network: &[&str] = if inherits(root) { &LEAST_OF_NETWORK } else { &[] };
    let all = LEAST.iter().chain(of_network);
    let all = all.filter_map(|name| Some(((*name).to_owned(), value(root, name)?)));
    let all = all.filter(|(name, value)| name != OVERCOMMIT || *value == ALWAYS);
    all.map(|(name, value)| match name == PIPE_PAGES && value == 0 {
        true => (name, NO_LIMIT),
        false => (name, value),
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
        .filter_map(|name| value(root, &name).map(|value| (name, value.to_string())))
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
        let expected = HashMap::from([("fs.inotify.max_user_watches".to_owned(), 192_536)]);
        assert_eq!(least_in(root.path()), expected);
        set("vm/overcommit_memory", "1\n");
        assert_eq!(least_in(root.path())[OVERCOMMIT], 1);
        set("net/ipv4/ip_forward", "1\n");
        assert_eq!(least_in(root.path())["net.ipv4.ip_forward"], 1);
        set("fs/pipe-user-pages-soft", "0\n");
        assert_eq!(least_in(root.path())[PIPE_PAGES], NO_LIMIT);
        set("net/ipv4/conf/default/accept_redirects", "0\n");
        let exact = HashMap::from([("net.ipv4.conf.default.accept_redirects".to_owned(), "0".to_owned())]);
        assert_eq!(exact_in(root.path()), exact);
        set("net/core/devconf_inherit_init_net", "2\n");
        assert!(!least_in(root.path()).contains_key("net.ipv4.ip_forward"));
        assert!(exact_in(root.path()).is_empty());
    }

    #[test]
    fn this_machine_has_limits_to_inherit() {
        assert!(least_sysctls(false)["kernel.pid_max"] > 0);
        assert_eq!(least_sysctls(true)[OVERCOMMIT], ALWAYS);
        assert_eq!(inherited_rlimits().len(), 2);
    }
}
