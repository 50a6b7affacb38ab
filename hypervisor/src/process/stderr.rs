//! A child's standard error: its end is kept for error messages, and all of it is logged, within bounds.

use std::io;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::time::Duration;

use base::tail::{Tail, harmless};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::sync::watch;

use crate::process::child_name::ChildName;

/// How long the end of a dead child's output is waited for.
pub(crate) const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Longest line logged, in bytes; the rest of a longer one is logged as another.
const MAX_LINE: usize = 1024;

/// Most bytes logged of one child: some of what the helpers say is the guest's doing.
const MAX_LOGGED: usize = 1 << 20;

/// Reads until the end; what is returned becomes true there.
pub(crate) fn collect(child: ChildName, pid: u32, stderr: OwnedFd, tail: Tail) -> io::Result<watch::Receiver<bool>> {
    let mut stderr = pipe::Receiver::from_owned_fd(stderr)?;
    let (sender, drained) = watch::channel(false);
    tokio::spawn(async move {
        let mut lines = Lines {
            child,
            pid,
            line: Vec::new(),
            logged: 0,
        };
        let mut buffer = [0; 4096];
        // An error is an end as well.
        while let Ok(count @ 1..) = stderr.read(&mut buffer).await {
            tail.push(&buffer[..count]);
            lines.push(&buffer[..count]);
        }
        lines.flush();
        sender.send_replace(true);
    });
    Ok(drained)
}

/// What a pipe without writers still holds, up to a line's length.
pub(crate) fn read_rest(pipe: &OwnedFd) -> String {
    let mut bytes = Vec::new();
    if let Ok(copy) = pipe.try_clone() {
        // What cannot be read is not told.
        let _ = std::fs::File::from(copy).take(MAX_LINE as u64).read_to_end(&mut bytes);
    }
    harmless(&bytes)
}

struct Lines {
    child: ChildName,
    pid: u32,
    line: Vec<u8>,
    logged: usize,
}

impl Lines {
    fn push(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if *byte == b'\n' || self.line.len() == MAX_LINE {
                self.flush();
            }
            if *byte != b'\n' {
                self.line.push(*byte);
            }
        }
    }

    fn flush(&mut self) {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() || self.logged > MAX_LOGGED {
            return;
        }
        self.logged += line.len();
        let Self { child, pid, .. } = self;
        tracing::info!(%child, pid, "{}", harmless(&line));
        if self.logged > MAX_LOGGED {
            tracing::warn!(%child, pid, "it says too much: nothing more of it is logged");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_helper_that_says_too_much_is_logged_within_bounds() {
        let mut lines = Lines {
            child: ChildName::Virtiofsd,
            pid: 1,
            line: Vec::new(),
            logged: 0,
        };
        for _ in 0..64 {
            lines.push(&vec![b'x'; 64 << 10]);
            assert!(lines.line.len() <= MAX_LINE);
        }
        lines.flush();
        assert!(lines.logged <= MAX_LOGGED + MAX_LINE, "{}", lines.logged);
    }
}
