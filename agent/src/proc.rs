//! The kernel's data about a process: its limits and its status (proc_pid_limits(5), proc_pid_status(5)).

use std::io;

/// `/proc/PID/limits`.
#[derive(Debug)]
pub(crate) struct Limits(String);

/// Where the values begin: the name is padded to 25 characters (fs/proc/base.c, `proc_pid_limits`).
const NAME_WIDTH: usize = 25;

impl Limits {
    /// Reads them.
    ///
    /// # Errors
    /// There is no such process.
    pub(crate) fn of(pid: i32) -> io::Result<Self> {
        std::fs::read_to_string(format!("/proc/{pid}/limits")).map(Self)
    }

    /// Soft and hard limit of that name; the largest number where there is none.
    pub(crate) fn get(&self, name: &str) -> Option<(u64, u64)> {
        let values = self.0.lines().find_map(|line| {
            let (this, values) = line.split_at_checked(NAME_WIDTH)?;
            (this.trim_end() == name).then_some(values)
        })?;
        let mut numbers = values.split_whitespace().map(|word| match word {
            "unlimited" => Some(u64::MAX),
            number => number.parse().ok(),
        });
        Some((numbers.next()??, numbers.next()??))
    }
}

/// `/proc/PID/status`.
#[derive(Debug)]
pub(crate) struct Status(String);

impl Status {
    /// Reads it.
    ///
    /// # Errors
    /// There is no such process.
    pub(crate) fn of(pid: i32) -> io::Result<Self> {
        std::fs::read_to_string(format!("/proc/{pid}/status")).map(Self)
    }

    fn value(&self, key: &str) -> Option<&str> {
        let mut lines = self.0.lines();
        lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(':').map(str::trim))
    }

    /// A set of capabilities, such as `CapEff`, as a mask.
    pub(crate) fn mask(&self, key: &str) -> Option<u64> {
        u64::from_str_radix(self.value(key)?, 16).ok()
    }

    /// A size, such as `VmPin`, in bytes. A process without memory of its own has none.
    pub(crate) fn bytes(&self, key: &str) -> u64 {
        let kib = self
            .value(key)
            .and_then(|value| value.strip_suffix(" kB")?.parse().ok());
        kib.unwrap_or(0_u64).saturating_mul(1024)
    }

    /// `Uid` or `Gid`: real, effective and saved.
    pub(crate) fn ids(&self, key: &str) -> Option<[u32; 3]> {
        let mut ids = self.value(key)?.split_whitespace().map(|id| id.parse().ok());
        Some([ids.next()??, ids.next()??, ids.next()??])
    }

    /// A number, such as `Seccomp`.
    pub(crate) fn number(&self, key: &str) -> Option<u32> {
        self.value(key)?.parse().ok()
    }

    /// Numbers, such as `NSpid`; those that are none are left out.
    pub(crate) fn numbers(&self, key: &str) -> Vec<u32> {
        let words = self.value(key).unwrap_or_default().split_whitespace();
        words.filter_map(|word| word.parse().ok()).collect()
    }

    /// Its name. Whoever named it may have used any characters; the kernel escapes a line's end.
    pub(crate) fn name(&self) -> &str {
        self.value("Name").unwrap_or_default()
    }
}

#[cfg(test)]
impl From<&str> for Limits {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

#[cfg(test)]
impl From<&str> for Status {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_kernels_tables_are_read() {
        let limits = Limits::from(concat!(
            "Limit                     Soft Limit           Hard Limit           Units     \n",
            "Max cpu time              unlimited            unlimited            seconds   \n",
            "Max locked memory         8388608              unlimited            bytes     \n",
        ));
        assert_eq!(limits.get("Max locked memory"), Some((8 << 20, u64::MAX)));
        assert_eq!(limits.get("Max locked"), None);
        assert_eq!(limits.get("Limit"), None);
        let status = Status::from(concat!(
            "Name:\tsleep\nUid:\t1000\t1001\t1002\t1003\nVmPin:\t      12 kB\nCapEff:\t0000000000004000\nNSpid:\t312\t7\n",
            "Seccomp:\t2\nSeccomp_filters:\t1\n",
        ));
        assert_eq!(status.name(), "sleep");
        assert_eq!(
            (status.numbers("NSpid"), status.numbers("NSsid")),
            (vec![312, 7], vec![])
        );
        assert_eq!(status.ids("Uid"), Some([1000, 1001, 1002]));
        assert_eq!((status.bytes("VmPin"), status.bytes("VmLck")), (12 << 10, 0));
        assert_eq!(
            (status.mask("CapEff"), status.number("Seccomp")),
            (Some(1 << 14), Some(2))
        );
    }

    #[test]
    fn our_own_are_read() {
        let own = std::process::id().cast_signed();
        assert!(Limits::of(own).unwrap().get("Max open files").is_some());
        let status = Status::of(own).unwrap();
        assert!(status.mask("CapBnd").is_some() && status.ids("Gid").is_some() && status.bytes("VmRSS") > 0);
    }

    proptest! {
        #[test]
        fn any_text_is_read(text: String, key: String) {
            let _ = Limits::from(text.as_str()).get(&key);
            let status = Status::from(text.as_str());
            let _ = (status.mask(&key), status.bytes(&key), status.ids(&key), status.number(&key), status.name());
        }
    }
}
