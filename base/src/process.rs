//! What the kernel tells of a process: /proc/PID/stat, status, smaps_rollup and io (proc_pid_stat(5), proc_pid_status(5), proc_pid_smaps(5),
//! proc_pid_io(5)).

use std::fs::File;
use std::io::BufReader;

pub use procfs_core::process::{Io, Stat};
use procfs_core::process::{SmapsRollup, Status};
use procfs_core::{FromBufRead, FromRead};

/// Clock ticks of a second in /proc: USER_HZ is 100 on every architecture that has VMs (time(7)).
pub const TICKS: u64 = 100;

/// The process that has this pid now; none if there is none.
#[must_use]
pub fn stat(pid: i32) -> Option<Stat> {
    Stat::from_read(File::open(format!("/proc/{pid}/stat")).ok()?).ok()
}

/// The memory that a process has in RAM, in bytes (VmRSS). None if there is no such process, or it has no memory of its own.
#[must_use]
pub fn resident(pid: i32) -> Option<u64> {
    let file = File::open(format!("/proc/{pid}/status")).ok()?;
    let status = Status::from_buf_read(BufReader::new(file)).ok()?;
    status.vmrss?.checked_mul(1024)
}

/// A process's proportional set size, in bytes: what it shares counts in equal parts for all who share it. Needs the right to trace it.
#[must_use]
pub fn proportional(pid: i32) -> Option<u64> {
    let file = File::open(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let rollup = SmapsRollup::from_buf_read(BufReader::new(file)).ok()?;
    rollup
        .memory_map_rollup
        .into_iter()
        .next()?
        .extension
        .map
        .get("Pss")
        .copied()
}

/// What a process has read and written, in bytes. None without the right to trace it.
#[must_use]
pub fn io(pid: i32) -> Option<Io> {
    let file = File::open(format!("/proc/{pid}/io")).ok()?;
    Io::from_buf_read(BufReader::new(file)).ok()
}

/// The stat of the calling process.
#[must_use]
pub fn own_stat() -> Option<Stat> {
    Stat::from_read(File::open("/proc/self/stat").ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("a) b (c");
        std::os::unix::fs::symlink("/bin/sleep", &program).unwrap();
        let mut child = Command::new(&program).arg("600").spawn().unwrap();
        let found = stat(child.id().try_into().unwrap()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let own = own_stat().unwrap();
        assert_eq!((found.comm.as_str(), found.ppid), ("a) b (c", own.pid));
        assert!(found.starttime >= own.starttime);
        assert_eq!(own.pid.cast_unsigned(), std::process::id());
        assert!(stat(i32::MAX).is_none());
    }

    #[test]
    fn what_a_process_has_in_memory_is_in_bytes_and_what_it_shares_counts_in_part() {
        let own = std::process::id().cast_signed();
        let (resident, proportional) = (resident(own).unwrap(), proportional(own).unwrap());
        assert!(resident > 1 << 20, "{resident}");
        assert!(
            proportional > 1 << 18 && proportional < resident + (4 << 20),
            "{proportional} of {resident}"
        );
        assert!(super::resident(i32::MAX).is_none() && super::proportional(i32::MAX).is_none());
    }

    #[test]
    fn what_a_process_has_read_counts() {
        let own = std::process::id().cast_signed();
        let before = io(own).unwrap().rchar;
        std::fs::read("/proc/self/stat").unwrap();
        assert!(io(own).unwrap().rchar > before);
        assert!(io(i32::MAX).is_none());
    }
}
