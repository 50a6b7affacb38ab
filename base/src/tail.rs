//! The last bytes of a text of unlimited length, and their safe display.
//!
//! Does not know the source of the text. The guest and other programs write it, so nothing in it may control the terminal of a person who
//! reads an error message.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes that [`Tail::default`] keeps.
pub const LIMIT: usize = 16 << 10;

/// A shared, bounded tail. Clones are the same tail.
#[derive(Debug, Clone)]
pub struct Tail {
    kept: Arc<Mutex<VecDeque<u8>>>,
    limit: usize,
}

impl Default for Tail {
    fn default() -> Self {
        Self::new(LIMIT)
    }
}

impl Tail {
    /// Keeps that many bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            kept: Arc::default(),
            limit,
        }
    }

    /// Appends, and forgets what is older than the limit's bytes.
    pub fn push(&self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(self.limit)..];
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let excess = (kept.len() + bytes.len()).saturating_sub(self.limit);
        kept.drain(..excess);
        kept.extend(bytes);
    }

    /// What is kept, without what could drive a terminal, and without blank space around it.
    #[must_use]
    pub fn text(&self) -> String {
        let bytes: Vec<u8> = self
            .kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .copied()
            .collect();
        harmless(&bytes).trim().to_owned()
    }
}

/// The text with control characters written out, apart from newline and tab; carriage returns are dropped.
#[must_use]
pub fn harmless(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for character in String::from_utf8_lossy(bytes).chars() {
        match character {
            '\n' | '\t' => text.push(character),
            '\r' => {}
            control if control.is_control() => {
                // Writing to a String does not fail.
                let _ = write!(text, "\\x{:02x}", u32::from(control));
            }
            other => text.push(other),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_escape_sequence_is_written_out() {
        assert_eq!(harmless(b"\x1b[2Jboom\r\n\x07"), "\\x1b[2Jboom\n\\x07");
    }

    proptest! {
        #[test]
        fn the_tail_is_the_end_of_all_that_was_pushed(
            parts in proptest::collection::vec(proptest::collection::vec(b'a'..=b'z', 0..9000), 0..6),
        ) {
            let tail = Tail::default();
            for part in &parts {
                tail.push(part);
            }
            let all = parts.concat();
            let end = &all[all.len().saturating_sub(LIMIT)..];
            prop_assert_eq!(tail.text(), String::from_utf8_lossy(end));
        }

        #[test]
        fn no_control_character_survives(bytes: Vec<u8>) {
            prop_assert!(harmless(&bytes).chars().all(|c| c == '\n' || c == '\t' || !c.is_control()));
        }
    }
}
