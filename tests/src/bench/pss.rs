//! The proportional set size of a process (proc(5), `/proc/PID/smaps_rollup`), and that of the code that an emulator has translated.

use std::fs;

use crate::{Error, Result};

/// A process's proportional set size, in MiB.
pub(super) fn pss(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).map_err(Error::io(path.clone()))?;
    let kibibytes = text.lines().find_map(kibibytes);
    kibibytes
        .map(|kibibytes| kibibytes / 1024.0)
        .ok_or_else(|| Error::unexpected(format!("no Pss in {path}")))
}

/// The part of it, in MiB, that may be written and executed. QEMU has only its translated code there (`/proc/PID/smaps`).
pub(super) fn translated(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/smaps");
    let text = fs::read_to_string(&path).map_err(Error::io(path))?;
    Ok(writable_code(&text) / 1024.0)
}

fn writable_code(smaps: &str) -> f64 {
    let mut is_code = false;
    let mut sum = 0.0;
    for line in smaps.lines() {
        match line.split_whitespace().collect::<Vec<_>>().as_slice() {
            // The first line of a mapping: its addresses, permissions, offset, device and inode.
            [_, permissions, _, _, _, ..] if permissions.len() == 4 => is_code = permissions.starts_with("rwx"),
            _ if is_code => sum += kibibytes(line).unwrap_or(0.0),
            _ => {}
        }
    }
    sum
}

/// Of a line with the proportional set size.
fn kibibytes(line: &str) -> Option<f64> {
    let value = line.strip_prefix("Pss:")?.trim().strip_suffix(" kB")?;
    value.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_written_and_executed_is_counted_alone() {
        let smaps = "\
00400000-00500000 r-xp 00000000 08:01 12 /usr/bin/qemu
Pss:                 700 kB
Pss_Dirty:             0 kB
VmFlags: rd ex mr mw me
7f00000000-7f10000000 rwxp 00000000 00:00 0
Size:            1048576 kB
Pss:               60000 kB
VmFlags: rd wr ex mr mw me ac
7f20000000-7f20100000 rw-s 00000000 00:01 77 /memfd:ram (deleted)
Pss:                  40 kB
";
        assert_eq!(writable_code(smaps), 60000.0);
    }
}
