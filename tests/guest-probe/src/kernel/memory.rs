//! What programs are told of the machine's memory.

use std::fs;

use super::verdict::Verdict;
use crate::error::Result;

/// Whether a VM that grows when its programs need memory says so: in /proc/meminfo, and by sysinfo(2), beyond what it has now.
pub(super) fn to_come() -> Result<Verdict> {
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let total = line
        .and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok())
        .ok_or("/proc/meminfo has no MemTotal")?;
    let told = nix::sys::sysinfo::sysinfo()?.ram_total() / 1024;
    let zones = fs::read_to_string("/proc/zoneinfo")?;
    let managed = zones.lines().filter_map(|line| line.trim().strip_prefix("managed"));
    let pages: u64 = managed.filter_map(|pages| pages.trim().parse::<u64>().ok()).sum();
    let there = pages * 4;
    let says = format!("{there} kB are there, /proc/meminfo says {total} kB, sysinfo(2) {told} kB");
    if there == 0 {
        return Err(format!("/proc/zoneinfo names no pages: {says}").into());
    }
    Ok(if total > there && told == total {
        Verdict::Right(says)
    } else {
        Verdict::Wrong(says)
    })
}
