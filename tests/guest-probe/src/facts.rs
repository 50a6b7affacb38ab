//! The facts of a report, each as the kernel tells it. What cannot be read is null.

use std::{env, fs, os::unix::fs::MetadataExt, path::Path};

use nix::{
    sys::{
        resource::{Resource, getrlimit},
        statvfs::statvfs,
    },
    unistd,
};
use serde_json::{Map, Value, json};

/// Every fact. `sysctls` are names such as `net.ipv4.ip_forward`.
pub(crate) fn all(sysctls: &[&str]) -> Value {
    json!({
        "args": env::args().collect::<Vec<_>>(),
        "env": env::vars().collect::<std::collections::BTreeMap<_, _>>(),
        "cwd": env::current_dir().ok(),
        "pid": std::process::id(),
        "uid": unistd::getuid().as_raw(),
        "gid": unistd::getgid().as_raw(),
        "groups": unistd::getgroups().map(|all| all.iter().map(|gid| gid.as_raw()).collect::<Vec<_>>()).ok(),
        "hostname": read("/proc/sys/kernel/hostname"),
        "domainname": read("/proc/sys/kernel/domainname"),
        "status": status(),
        "oom_score_adj": read("/proc/self/oom_score_adj"),
        "rlimits": rlimits(),
        "namespaces": namespaces(),
        "cgroup": read("/proc/self/cgroup"),
        "mounts": mounts(),
        "dev": dev(),
        "fds": fds(),
        "sysctls": sysctls.iter().map(|name| (*name, sysctl(name))).collect::<std::collections::BTreeMap<_, _>>(),
        "sizes": sizes(),
    })
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim_end().to_owned())
}

fn sysctl(name: &str) -> Option<String> {
    read(Path::new("/proc/sys").join(name.replace('.', "/")))
}

/// The lines of /proc/self/status by their keys.
pub(crate) fn status() -> Map<String, Value> {
    let text = read("/proc/self/status").unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(key, value)| (key.into(), value.trim().into()))
        .collect()
}

fn rlimits() -> Map<String, Value> {
    let kinds = [
        ("AS", Resource::RLIMIT_AS),
        ("CORE", Resource::RLIMIT_CORE),
        ("CPU", Resource::RLIMIT_CPU),
        ("FSIZE", Resource::RLIMIT_FSIZE),
        ("MEMLOCK", Resource::RLIMIT_MEMLOCK),
        ("NOFILE", Resource::RLIMIT_NOFILE),
        ("NPROC", Resource::RLIMIT_NPROC),
        ("STACK", Resource::RLIMIT_STACK),
    ];
    kinds
        .iter()
        .map(|(name, kind)| ((*name).to_owned(), json!(getrlimit(*kind).ok())))
        .collect()
}

/// The identities of our namespaces, e.g. `ipc:[4026531839]`.
fn namespaces() -> Map<String, Value> {
    let kinds = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];
    kinds
        .iter()
        .map(|kind| {
            (
                (*kind).to_owned(),
                json!(fs::read_link(format!("/proc/self/ns/{kind}")).ok()),
            )
        })
        .collect()
}

/// The mounts in order; fields as in proc_pid_mountinfo(5).
fn mounts() -> Vec<Value> {
    let table = read("/proc/self/mountinfo").unwrap_or_default();
    table
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let left: Vec<_> = left.split(' ').collect();
            let right: Vec<_> = right.split(' ').collect();
            Some(json!({
                "root": left.get(3)?, "point": left.get(4)?, "options": left.get(5)?.split(',').collect::<Vec<_>>(),
                "tags": left.get(6..)?, "type": right.first()?, "source": right.get(1)?, "super": right.get(2)?,
            }))
        })
        .collect()
}

/// What is in /dev: a link's target, or mode and device number.
fn dev() -> Map<String, Value> {
    let Ok(entries) = fs::read_dir("/dev") else {
        return Map::new();
    };
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let name = entry.file_name().to_str()?.to_owned();
            let data = entry.metadata().ok()?;
            let (major, minor) = (nix::sys::stat::major(data.rdev()), nix::sys::stat::minor(data.rdev()));
            let fact = match fs::read_link(entry.path()) {
                Ok(target) => json!({ "link": target }),
                Err(_) => json!({ "mode": data.mode(), "major": major, "minor": minor, "uid": data.uid() }),
            };
            Some((name, fact))
        })
        .collect()
}

/// The descriptors that we were given, beyond the one that lists them.
fn fds() -> Map<String, Value> {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else {
        return Map::new();
    };
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let target = fs::read_link(entry.path()).ok()?;
            Some((entry.file_name().to_str()?.to_owned(), json!(target)))
        })
        .filter(|(_, target)| {
            !target
                .as_str()
                .is_some_and(|path| path.starts_with("/proc/") && path.ends_with("/fd"))
        })
        .collect()
}

/// The sizes in bytes of the file systems at the places where tests mount some.
fn sizes() -> Map<String, Value> {
    ["/", "/dev/shm", "/tmp", "/mnt"]
        .iter()
        .map(|path| ((*path).to_owned(), json!(size(path))))
        .collect()
}

fn size(path: &str) -> Option<u64> {
    let stat = statvfs(path).ok()?;
    Some(stat.blocks() * stat.fragment_size())
}
