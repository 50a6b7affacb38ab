//! Why a launch failed: reported by the child and passed on by its parent.
//!
//! It distinguishes requests of the user that cannot be fulfilled from faults of the agent.

use std::{fmt, io};

use serde::{Deserialize, Serialize};

/// Longest text of a fault that crosses the channel, in bytes: names from a hostile image may be long.
const MAX_TEXT: usize = 4096;

/// What the child has to say when it gives up. The text is a whole sentence: what was tried, on what, and why not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub(super) enum Fault {
    /// The specification asks for something that cannot be carried out.
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Internal(String),
}

impl Fault {
    /// The user's request cannot be carried out, with the operating system's reason.
    pub(super) fn refused(what: impl fmt::Display, why: impl fmt::Display) -> Self {
        Fault::Refused(format!("{what}: {why}"))
    }

    /// A step of our own failed, with the operating system's reason.
    pub(super) fn internal(what: impl fmt::Display, why: impl fmt::Display) -> Self {
        Fault::Internal(format!("{what}: {why}"))
    }

    /// The same fault with a text that fits into one message.
    pub(super) fn bounded(self) -> Self {
        let cut = |mut text: String| {
            let mut end = text.len().min(MAX_TEXT);
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            text.truncate(end);
            text
        };
        match self {
            Fault::Refused(text) => Fault::Refused(cut(text)),
            Fault::Internal(text) => Fault::Internal(cut(text)),
        }
    }
}

/// What the steps of the child return.
pub(super) type Result<T> = std::result::Result<T, Fault>;

/// Names what was tried when a system call fails.
pub(super) trait Context<T> {
    /// The step is one that the specification asks for: its failure is an answer to the user.
    fn or_refuse<W: fmt::Display>(self, what: impl FnOnce() -> W) -> Result<T>;
    /// The step is ours: its failure is a fault of the guest.
    fn or_fail<W: fmt::Display>(self, what: impl FnOnce() -> W) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn or_refuse<W: fmt::Display>(self, what: impl FnOnce() -> W) -> Result<T> {
        self.map_err(|why| Fault::refused(what(), reason(&why.into())))
    }

    fn or_fail<W: fmt::Display>(self, what: impl FnOnce() -> W) -> Result<T> {
        self.map_err(|why| Fault::internal(what(), reason(&why.into())))
    }
}

/// The error's text as C programs print it, without the number that Rust adds to it.
pub(super) fn reason(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => nix::errno::Errno::from_raw(number).desc().to_lowercase(),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_at_a_character() {
        let Fault::Refused(text) = Fault::Refused("é".repeat(MAX_TEXT)).bounded() else {
            panic!("the kind of a fault changed");
        };
        assert_eq!(text.len(), MAX_TEXT);
    }

    #[test]
    fn an_error_number_reads_as_runc_prints_it() {
        assert_eq!(reason(&io::Error::from_raw_os_error(2)), "no such file or directory");
        assert_eq!(reason(&io::Error::from_raw_os_error(13)), "permission denied");
    }
}
