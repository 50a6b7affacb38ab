//! What a command prints: a report to standard output, messages to standard error.

use std::io::{self, Write};

#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) text: String,
    /// False ends the program with status 1.
    pub(crate) good: bool,
}

/// Writes a line to standard error. If that fails, there is nowhere left to report it.
pub(crate) fn print_message(line: &str) {
    let _ = writeln!(io::stderr().lock(), "kata-ctl: {line}");
}
