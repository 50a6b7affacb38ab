//! Which of many messages are logged: how many there are is decided by a guest or a stranger, and the log is on the host's disk.

/// Whether something is logged that happened so many times before: the first time, and then each time that the number has doubled.
pub(crate) fn is_told(before: u64) -> bool {
    (before + 1).is_power_of_two()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_million_times_are_twenty_lines_of_the_log() {
        assert_eq!((0..1_000_000).filter(|before| is_told(*before)).count(), 20);
    }
}
