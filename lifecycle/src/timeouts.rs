//! The time-outs of a sandbox, in one table, with one scale factor for slow nodes.

use std::ops::RangeInclusive;
use std::time::Duration;

use base::scale::Scale;

use crate::message::Timer;

/// How long things may take. All are multiplied by one factor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timeouts {
    scale: Scale,
}

/// Timeout for the guest to take a SIGKILL: it only has to ask the guest's kernel.
const KILL_ANSWER: Duration = Duration::from_secs(10);
/// Timeout for a process to die of SIGKILL, and as long again of its cgroup.kill: freeing much memory takes its time.
const DEATH: Duration = Duration::from_secs(15);
/// Longest time without progress that the output of an ended process is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// Timeout for hooks that follow a deletion, if they have no limit of their own.
const STOP_HOOKS: Duration = Duration::from_secs(120);
/// Timeout for the agent to answer a ping.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// Timeout for a container's figures: containerd asks for those of all tasks one after the other, and has no limit of its own.
const FIGURES: Duration = Duration::from_secs(4);
/// Longest time without progress that a deletion in the guest is waited for: of its writing to disks, for one.
const NO_PROGRESS: Duration = Duration::from_secs(120);
/// Timeout for a deletion in the guest in all. What it can still have to write is in its memory; that it gets on is its own word.
const DELETION: Duration = Duration::from_secs(3600);
/// Timeout for the guest to power itself off.
const POWER_OFF: Duration = Duration::from_secs(2);
/// Timeout for the guest to connect the streams of a process: it does so before it says that the process is there.
const STREAMS: Duration = Duration::from_secs(10);
/// Timeout for a connection of the guest to say what it is: its preamble is its first bytes.
const PREAMBLE: Duration = Duration::from_secs(5);
/// Timeout for the program of a console to die of SIGKILL.
const CONSOLE_DEATH: Duration = Duration::from_secs(10);
/// Timeout for what the connections of a dead VM still hold.
const LAST_OUTPUT: Duration = Duration::from_secs(1);
/// Pause before a network update that has failed is tried again, the first time.
const NETWORK_RETRY: Duration = Duration::from_secs(1);
/// The longest such wait: it doubles each time.
const LONGEST_NETWORK_RETRY: Duration = Duration::from_secs(30);

impl Default for Timeouts {
    fn default() -> Self {
        Self::scaled(1.0)
    }
}

impl Timeouts {
    /// All time-outs multiplied by a factor, within the bounds of [`Scale`].
    #[must_use]
    pub fn scaled(factor: f64) -> Self {
        Self {
            scale: Scale::new(factor),
        }
    }

    /// The factor, for the time-outs of those who know nothing of this table: the hypervisor, the streams, the agent.
    #[must_use]
    pub fn scale(&self) -> Scale {
        self.scale
    }

    /// A time-out that the core asks for.
    #[must_use]
    pub fn of(&self, timer: Timer) -> Duration {
        self.times(match timer {
            Timer::KillAnswer => KILL_ANSWER,
            Timer::Death => DEATH,
            Timer::ExecExits => PATIENCE,
            Timer::StopHooks => STOP_HOOKS,
        })
    }

    /// Longest time without progress that the output of an ended process is waited for.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.times(PATIENCE)
    }

    /// For the agent to answer a ping.
    #[must_use]
    pub fn heartbeat(&self) -> Duration {
        self.times(HEARTBEAT)
    }

    /// For a container's figures.
    #[must_use]
    pub fn figures(&self) -> Duration {
        self.times(FIGURES)
    }

    /// Longest time without progress that a deletion in the guest is waited for.
    #[must_use]
    pub fn no_progress(&self) -> Duration {
        self.times(NO_PROGRESS)
    }

    /// For a deletion in the guest in all.
    #[must_use]
    pub fn deletion(&self) -> Duration {
        self.times(DELETION)
    }

    /// The shortest and the longest wait before a network update that has failed is tried again.
    #[must_use]
    pub fn network_retries(&self) -> RangeInclusive<Duration> {
        self.times(NETWORK_RETRY)..=self.times(LONGEST_NETWORK_RETRY)
    }

    /// For the guest to power itself off.
    #[must_use]
    pub fn power_off(&self) -> Duration {
        self.times(POWER_OFF)
    }

    /// For what the connections of a dead VM still hold.
    #[must_use]
    pub fn last_output(&self) -> Duration {
        self.times(LAST_OUTPUT)
    }

    /// For the guest to connect the streams of a process.
    #[must_use]
    pub fn streams(&self) -> Duration {
        self.times(STREAMS)
    }

    /// For a connection of the guest to say what it is.
    #[must_use]
    pub fn preamble(&self) -> Duration {
        self.times(PREAMBLE)
    }

    /// For the program of a console to die of SIGKILL.
    #[must_use]
    pub fn console_death(&self) -> Duration {
        self.times(CONSOLE_DEATH)
    }

    fn times(&self, duration: Duration) -> Duration {
        self.scale.of(duration)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_scale_applies_to_all_and_nonsense_is_none() {
        let slow = Timeouts::scaled(3.0);
        assert_eq!(slow.of(Timer::Death), DEATH * 3);
        assert_eq!(slow.patience(), PATIENCE * 3);
        assert_eq!(Timeouts::scaled(f64::NAN), Timeouts::default());
        assert!(Timeouts::scaled(-1.0).heartbeat() > Duration::ZERO);
    }
}
