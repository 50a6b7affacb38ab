//! The VM's own time: wall-clock time, less the time for which its processes waited for a CPU.
//!
//! If many VMs boot at once on a node, each gets a fraction of the CPUs, and a limit in wall-clock time would end all of
//! them. With this time a hanging VM reaches its limit as fast as before, whether busy or idle. A VM that only waits for
//! a CPU does not.

use std::fs;
use std::time::{Duration, Instant};

/// How many times its bound a VM may take by the clock, however little it gets of the CPUs.
const MOST: u32 = 20;

/// Shortest pause between two looks at the processes.
const PAUSE: Duration = Duration::from_millis(200);

/// Waits until the VM has had so much time since now. `pids` names its processes; those of one that has ended count no more.
pub async fn has_passed(bound: Duration, pids: impl Fn() -> Vec<u32>) {
    let (began, before) = (Instant::now(), waited(&pids()));
    loop {
        let elapsed = began.elapsed();
        let lost = waited(&pids()).saturating_sub(before);
        let left = left(bound, elapsed, lost);
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.max(PAUSE)).await;
    }
}

fn left(bound: Duration, elapsed: Duration, lost: Duration) -> Duration {
    let had = elapsed.saturating_sub(lost);
    let by_the_clock = (bound * MOST).saturating_sub(elapsed);
    bound.saturating_sub(had).min(by_the_clock)
}

/// How long the thread that has waited longest has been ready to run and did not: the second number of
/// `/proc/PID/task/TID/schedstat`, in nanoseconds (the kernel's sched-stats.rst). Nothing where the kernel does not count it.
fn waited(pids: &[u32]) -> Duration {
    let tasks = pids
        .iter()
        .filter_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).ok());
    let threads = tasks.flatten().filter_map(|thread| {
        let schedstat = fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        run_delay(&schedstat)
    });
    threads.max().unwrap_or_default()
}

fn run_delay(schedstat: &str) -> Option<Duration> {
    schedstat
        .split_ascii_whitespace()
        .nth(1)?
        .parse()
        .ok()
        .map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_secs(30);

    #[test]
    fn what_was_spent_in_line_is_not_counted_up_to_a_bound() {
        let seconds = Duration::from_secs;
        assert_eq!(left(BOUND, seconds(10), seconds(0)), seconds(20));
        assert_eq!(left(BOUND, seconds(40), seconds(25)), seconds(15));
        assert_eq!(left(BOUND, seconds(40), seconds(5)), seconds(0));
        assert_eq!(left(BOUND, seconds(599), seconds(598)), seconds(1));
        assert_eq!(left(BOUND, seconds(600), seconds(599)), seconds(0));
        // Threads that wait side by side have not waited longer than the clock.
        assert_eq!(left(BOUND, seconds(1), seconds(9)), BOUND);
    }

    #[test]
    fn the_kernels_figures_are_read() {
        assert_eq!(run_delay("4386893 1500000000 11\n"), Some(Duration::from_millis(1500)));
        assert_eq!(run_delay(""), None);
        assert!(waited(&[std::process::id()]) < Duration::from_secs(3600));
        assert_eq!(waited(&[u32::MAX]), Duration::ZERO);
    }

    #[tokio::test]
    async fn a_process_that_does_nothing_has_all_the_clocks_time() {
        let began = Instant::now();
        has_passed(Duration::from_millis(300), || vec![std::process::id()]).await;
        assert!(began.elapsed() >= Duration::from_millis(300));
    }
}
