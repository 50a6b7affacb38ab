//! What the kernel tells of a process in /proc/PID/stat (proc_pid_stat(5)).

use std::fs::File;

use procfs_core::FromRead;
pub use procfs_core::process::Stat;

/// Clock ticks of a second in /proc: USER_HZ is 100 on every architecture that has VMs (time(7)).
pub const TICKS: u64 = 100;

/// The process that has this pid now; none if there is none.
#[must_use]
pub fn stat(pid: i32) -> Option<Stat> {
    Stat::from_read(File::open(format!("/proc/{pid}/stat")).ok()?).ok()
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
}
