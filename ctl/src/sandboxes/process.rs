//! A process of a sandbox on the host, from /proc: whether it is still the recorded one, and its resource usage.

use std::fmt;
use std::fs;
use std::time::Duration;

use base::process::{TICKS, proportional, resident, stat};
use serde::Deserialize;

/// A pid and when that process started, in clock ticks since the host's boot (proc_pid_stat(5), field 22).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) start_time: u64,
}

/// What a process uses, in bytes; none where it cannot be read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Use {
    pub(crate) command: String,
    /// One letter (proc_pid_stat(5)).
    pub(crate) state: String,
    pub(crate) resident: Option<u64>,
    pub(crate) proportional: Option<u64>,
}

impl Process {
    /// Whether it is still the same process, and no zombie.
    pub(crate) fn lives(&self) -> bool {
        stat(self.pid).is_some_and(|stat| stat.starttime == self.start_time && stat.state != 'Z')
    }

    pub(crate) fn usage(&self) -> Use {
        let (command, state) = stat(self.pid)
            .map(|stat| (stat.comm, stat.state.to_string()))
            .unwrap_or_default();
        Use {
            command,
            state,
            resident: resident(self.pid),
            proportional: proportional(self.pid),
        }
    }

    /// Since its start; none if the host's uptime cannot be read.
    pub(crate) fn age(&self) -> Option<Age> {
        let uptime = fs::read_to_string("/proc/uptime").ok()?;
        let seconds: f64 = uptime.split(' ').next()?.parse().ok()?;
        let started = self.start_time as f64 / TICKS as f64;
        Duration::try_from_secs_f64(seconds - started).ok().map(Age)
    }
}

/// How long something is there, as a human says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Age(pub(crate) Duration);

impl fmt::Display for Age {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let (days, hours, minutes) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60);
        match (days, hours, minutes) {
            (0, 0, 0) => write!(formatter, "{seconds} s"),
            (0, 0, _) => write!(formatter, "{minutes} min {} s", seconds % 60),
            (0, _, _) => write!(formatter, "{hours} h {minutes} min"),
            _ => write!(formatter, "{days} d {hours} h"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_itself_and_not_another_of_its_number() {
        let stat = base::process::own_stat().unwrap();
        let own = Process {
            pid: stat.pid,
            start_time: stat.starttime,
        };
        assert!(own.lives());
        assert!(own.usage().resident.unwrap() > 0);
        assert!(own.age().is_some());
        let other = Process {
            start_time: own.start_time + 1,
            ..own
        };
        assert!(!other.lives());
    }

    #[test]
    fn an_age_has_the_units_that_matter() {
        let age = |seconds| Age(Duration::from_secs(seconds)).to_string();
        assert_eq!(age(59), "59 s");
        assert_eq!(age(61), "1 min 1 s");
        assert_eq!(age(3600 + 120), "1 h 2 min");
        assert_eq!(age(86400 * 3 + 7200), "3 d 2 h");
    }
}
