//! The log: JSON lines into the bundle's `log` FIFO, which containerd reads.

/// Takes the lines that the agent wrote.
#[derive(Debug, Clone)]
pub struct LogHandle {}

impl LogHandle {
    /// Passes on one line of the agent's log. It may be anything: it is cut, and made part of a line of ours.
    pub fn relay(&self, line: &[u8]) {
        let _ = (self, line);
    }
}
