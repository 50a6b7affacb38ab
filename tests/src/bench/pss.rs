//! The proportional set size of a process (proc(5), `/proc/PID/smaps_rollup`).

use std::fs;

use crate::{Error, Result};

/// A process's proportional set size, in MiB.
pub(super) fn pss(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).map_err(Error::io(path.clone()))?;
    let kibibytes = text
        .lines()
        .find_map(|line| {
            line.strip_prefix("Pss:")?
                .trim()
                .strip_suffix(" kB")?
                .trim()
                .parse::<f64>()
                .ok()
        })
        .ok_or_else(|| Error::unexpected(format!("no Pss in {path}")))?;
    Ok(kibibytes / 1024.0)
}
