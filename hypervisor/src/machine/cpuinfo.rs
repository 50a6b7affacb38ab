//! `/proc/cpuinfo` of the host.

use std::fs::File;
use std::io::Read as _;

/// The beginning of `/proc/cpuinfo`: all CPUs of a host have the same flags, so the first one is enough.
pub(crate) fn cpuinfo() -> Option<String> {
    let mut text = Vec::new();
    File::open("/proc/cpuinfo")
        .ok()?
        .take(16 << 10)
        .read_to_end(&mut text)
        .ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

/// Whether the first CPU has a flag.
pub(crate) fn has_flag(cpuinfo: &str, wanted: &str) -> bool {
    cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("flags"))
        .is_some_and(|flags| flags.split_whitespace().any(|flag| flag == wanted))
}
