//! A span that has ended, within the limits of its names and texts, and its form on the agent's log connection.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{ATTRIBUTES_MAX, Context, ERROR_MAX, Kind, NAME_MAX, VALUE_MAX};

/// A span that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The span itself.
    pub context: Context,
    /// The span that it is part of.
    pub parent: Option<Context>,
    /// What was done.
    pub name: String,
    /// For whom.
    pub kind: Kind,
    /// Its start, in nanoseconds since the epoch.
    pub start: u64,
    /// Its end, in nanoseconds since the epoch.
    pub end: u64,
    /// What it was done on.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
    /// Why it failed, if it did.
    #[serde(default)]
    pub error: Option<String>,
}

/// A line of the log connection that is a span.
#[derive(Serialize, Deserialize)]
struct Line {
    span: Record,
}

/// What every line of a span begins with.
const START: &[u8] = br#"{"span":"#;

impl Record {
    /// Cuts what is too long, removes control characters, and drops attributes that are too many.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        self.name = plain(&self.name, NAME_MAX);
        let attributes = self.attributes.iter().take(ATTRIBUTES_MAX);
        self.attributes = attributes
            .map(|(name, value)| (plain(name, NAME_MAX), plain(value, VALUE_MAX)))
            .collect();
        self.error = self.error.map(|error| plain(&error, ERROR_MAX));
        self.end = self.end.max(self.start);
        self
    }

    /// One line of JSON, its line feed included.
    #[must_use]
    pub fn to_line(&self) -> Vec<u8> {
        let line = Line { span: self.clone() };
        // Its maps have strings for keys: it is always written.
        let mut line = serde_json::to_vec(&line).unwrap_or_default();
        line.push(b'\n');
        line
    }

    /// Reads a line that [`Record::to_line`] has written; None if it is something else.
    #[must_use]
    pub fn from_line(line: &[u8]) -> Option<Self> {
        if !line.starts_with(START) {
            return None;
        }
        let line: Line = serde_json::from_slice(line).ok()?;
        Some(line.span.bounded())
    }
}

fn plain(text: &str, longest: usize) -> String {
    let cut = &text[..text.floor_char_boundary(longest)];
    cut.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Longest line of the agent's log that the shim reads.
    const LINE: usize = 8 << 10;

    fn record(name: &str, value: &str, count: usize, error: Option<&str>) -> Record {
        let root = Context::root();
        Record {
            context: root.child(),
            parent: Some(root),
            name: name.to_owned(),
            kind: Kind::Server,
            start: 7,
            end: 9,
            attributes: (0..count)
                .map(|number| (format!("{name}{number}"), value.to_owned()))
                .collect(),
            error: error.map(str::to_owned),
        }
    }

    #[test]
    fn a_span_survives_its_line_and_other_lines_are_none() {
        let span = record("create_container", "c1", 2, Some("no such file"));
        let line = span.to_line();
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        assert_eq!(Record::from_line(&line), Some(span));
        assert_eq!(Record::from_line(br#"{"level":"INFO","message":"ready"}"#), None);
        assert_eq!(Record::from_line(br#"{"span":{}}"#), None);
    }

    #[test]
    fn a_span_that_ends_before_it_begins_takes_no_time() {
        let mut span = record("x", "", 0, None);
        (span.start, span.end) = (9, 7);
        assert_eq!(span.bounded().end, 9);
    }

    #[test]
    fn fuzz_span() {
        fuzz::run("span", |bytes| {
            if let Some(span) = Record::from_line(bytes) {
                assert_eq!(Record::from_line(&span.to_line()), Some(span));
            }
        });
    }

    proptest! {
        #[test]
        fn any_span_fits_a_line_of_the_log(name in "(\\PC|\u{1}){0,300}", value in "(\\PC|\u{1}|\"){0,2000}", count in 0usize..40) {
            let line = record(&name, &value, count, Some(&value)).bounded().to_line();
            prop_assert!(line.len() <= LINE);
            prop_assert!(Record::from_line(&line).is_some());
        }

        #[test]
        fn any_bytes_are_a_span_or_not(bytes: Vec<u8>) {
            let _ = Record::from_line(&[START, &bytes].concat());
        }
    }
}
