//! The resource usage of the sandbox's processes on the host, from /proc. For a process that ends meanwhile, the values
//! read so far count.

use std::fs;

use base::net_dev::{self, Traffic};
use base::process::{TICKS, io, proportional, resident, stat};

/// Processes that are looked at: children of children included.
const MOST: usize = 64;

/// What a process, and the children that it has made for its own work, use.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Usage {
    /// Clock ticks, of which /proc has 100 a second.
    pub(super) user: f64,
    pub(super) system: f64,
    pub(super) resident: u64,
    pub(super) proportional: u64,
    pub(super) threads: u64,
    pub(super) descriptors: u64,
    /// Bytes that were read and written by system calls (proc_pid_io(5)).
    pub(super) read: u64,
    pub(super) written: u64,
}

/// The devices of the network namespace in which a component runs.
pub(super) fn traffic(pid: u32) -> Vec<Traffic> {
    let text = fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default();
    net_dev::traffic(&text, MOST).collect()
}

/// The first of them that is QEMU.
pub(super) fn hypervisor(pids: &[u32]) -> Option<u32> {
    let name = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    pids.iter().copied().find(|pid| name(pid).starts_with("qemu"))
}

/// By component: what is started under that name.
pub(super) fn usage(pids: &[u32]) -> Vec<(&'static str, Usage)> {
    let own = std::process::id();
    let mut found: Vec<(&'static str, Usage)> = Vec::new();
    for &pid in pids {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let component = match name.trim() {
            _ if pid == own => "shim",
            name if name.starts_with("qemu") => "hypervisor",
            name if name.starts_with("virtiofsd") => "virtiofsd",
            name if name.starts_with("vhost-device") => "vsock",
            _ => continue,
        };
        // The VMM and the helpers are children of the shim, and counted as what they are.
        let family = if pid == own { vec![pid] } else { with_children(pid) };
        let mut sum = Usage::default();
        for pid in family {
            sum.add(pid);
        }
        found.push((component, sum));
    }
    found.sort_by_key(|(component, _)| *component);
    found.dedup_by_key(|(component, _)| *component);
    found
}

/// virtiofsd's sandbox is a child that does the work.
fn with_children(pid: u32) -> Vec<u32> {
    let mut family = vec![pid];
    let mut next = 0;
    while next < family.len() && family.len() < MOST {
        let pid = family[next];
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        family.extend(
            children
                .split_ascii_whitespace()
                .filter_map(|child| child.parse::<u32>().ok()),
        );
        next += 1;
    }
    family
}

impl Usage {
    /// User and system time.
    pub(super) fn cpu_seconds(&self) -> f64 {
        (self.user + self.system) / TICKS as f64
    }

    fn add(&mut self, pid: u32) {
        if let Some(stat) = stat(pid.cast_signed()) {
            self.user += stat.utime as f64;
            self.system += stat.stime as f64;
            self.threads += u64::try_from(stat.num_threads).unwrap_or(0);
        }
        self.resident += resident(pid.cast_signed()).unwrap_or(0);
        self.proportional += proportional(pid.cast_signed()).unwrap_or(0);
        if let Some(io) = io(pid.cast_signed()) {
            self.read += io.rchar;
            self.written += io.wchar;
        }
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
        self.descriptors += u64::try_from(descriptors).unwrap_or(u64::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_the_shim_and_uses_something() {
        let usage = usage(&[std::process::id(), u32::MAX]);
        assert_eq!(usage.len(), 1);
        let (component, usage) = usage[0];
        assert_eq!(component, "shim");
        assert!(usage.resident > 0 && usage.threads > 0 && usage.descriptors > 0);
    }
}
