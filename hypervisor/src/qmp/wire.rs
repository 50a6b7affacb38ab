//! QMP's messages as bytes: one JSON object per line, of bounded size.

use std::io;

use base::tail::harmless;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};

use super::event::Event;

/// Longest line accepted, in bytes. What we ask for is answered in less than a hundredth of it.
const MAX_LINE: usize = 1 << 20;

/// Longest event, in bytes: those who wait for one keep up to 64, whose values take ten times their bytes and more.
const LONGEST_EVENT: usize = 8 << 10;

/// Longest part of a refusal that is told, in bytes.
const LONGEST_REASON: usize = 1 << 10;

/// Why a connection cannot be read on.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    #[error("reading from QEMU's monitor")]
    Read(#[source] io::Error),
    #[error("a line of QEMU's monitor has more than {MAX_LINE} bytes")]
    TooLong,
    #[error("an event of QEMU's monitor has more than {LONGEST_EVENT} bytes")]
    LongEvent,
    #[error("a line of QEMU's monitor is no QMP message")]
    Json(#[source] serde_json::Error),
}

#[derive(Debug, PartialEq)]
pub(super) enum Message {
    Greeting,
    Answer {
        id: u64,
        result: Result<Value, Refusal>,
    },
    /// An error without an id: QEMU could not parse what it read.
    Complaint(Refusal),
    Event(Event),
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(super) struct Refusal {
    pub(super) class: String,
    #[serde(rename = "desc")]
    pub(super) description: String,
}

impl Refusal {
    /// What fits an error and a line of the log.
    fn bounded(mut self) -> Self {
        for text in [&mut self.class, &mut self.description] {
            text.truncate(text.floor_char_boundary(LONGEST_REASON));
            *text = harmless(text.as_bytes());
        }
        self
    }
}

/// The line that runs a command.
pub(super) fn command(name: &str, arguments: Value, id: u64) -> Vec<u8> {
    let mut command = json!({ "execute": name, "id": id });
    if !arguments.is_null() {
        command["arguments"] = arguments;
    }
    let mut line = command.to_string().into_bytes();
    line.push(b'\n');
    line
}

pub(super) fn parse(line: &[u8]) -> Result<Message, WireError> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Raw {
        Answer {
            #[serde(rename = "return")]
            value: Value,
            id: u64,
        },
        Error {
            error: Refusal,
            id: Option<u64>,
        },
        Event {
            event: String,
            #[serde(default)]
            data: Value,
        },
        Greeting {
            #[serde(rename = "QMP")]
            _versions: Value,
        },
    }
    Ok(match serde_json::from_slice(line).map_err(WireError::Json)? {
        Raw::Answer { value, id } => Message::Answer { id, result: Ok(value) },
        Raw::Error { error, id: Some(id) } => {
            let result = Err(error.bounded());
            Message::Answer { id, result }
        }
        Raw::Error { error, id: None } => Message::Complaint(error.bounded()),
        Raw::Event { .. } if line.len() > LONGEST_EVENT => return Err(WireError::LongEvent),
        Raw::Event { event, data } => Message::Event(Event { name: event, data }),
        Raw::Greeting { .. } => Message::Greeting,
    })
}

/// Splits a stream into messages.
pub(super) struct Lines<R> {
    reader: BufReader<R>,
    line: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    pub(super) fn new(stream: R) -> Self {
        Self {
            reader: BufReader::new(stream),
            line: Vec::new(),
        }
    }

    /// The next message; none at the end, where a started line is dropped.
    pub(super) async fn next(&mut self) -> Result<Option<Message>, WireError> {
        self.line.clear();
        loop {
            let bytes = self.reader.fill_buf().await.map_err(WireError::Read)?;
            if bytes.is_empty() {
                return Ok(None);
            }
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let part = &bytes[..end.unwrap_or(bytes.len())];
            if self.line.len() + part.len() > MAX_LINE {
                return Err(WireError::TooLong);
            }
            self.line.extend_from_slice(part);
            let used = part.len() + usize::from(end.is_some());
            self.reader.consume(used);
            if end.is_some() {
                return parse(&self.line).map(Some);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_kind_of_message_is_read() {
        let greeting = br#"{"QMP": {"version": {"qemu": {"major": 10}}, "capabilities": ["oob"]}}"#;
        assert_eq!(parse(greeting).unwrap(), Message::Greeting);
        let answer = parse(b"{\"return\": {}, \"id\": 4}\r").unwrap();
        assert_eq!(
            answer,
            Message::Answer {
                id: 4,
                result: Ok(json!({}))
            }
        );
        let refused = br#"{"error": {"class": "GenericError", "desc": "no"}, "id": 5}"#;
        let refusal = Refusal {
            class: String::from("GenericError"),
            description: String::from("no"),
        };
        assert_eq!(
            parse(refused).unwrap(),
            Message::Answer {
                id: 5,
                result: Err(refusal.clone())
            }
        );
        let complaint = br#"{"error": {"class": "GenericError", "desc": "no"}}"#;
        assert_eq!(parse(complaint).unwrap(), Message::Complaint(refusal));
        let event = br#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}"#;
        assert_eq!(
            parse(event).unwrap(),
            Message::Event(Event {
                name: String::from("STOP"),
                data: Value::Null
            })
        );
    }

    #[test]
    fn an_event_that_is_too_long_is_refused_and_a_refusal_cut_off() {
        let lists = "[],".repeat(LONGEST_EVENT / 3);
        let event = format!("{{\"event\": \"STOP\", \"data\": [{lists}[]]}}");
        assert!(matches!(parse(event.as_bytes()), Err(WireError::LongEvent)));
        let reason = "\u{20ac}\u{1b}".repeat(LONGEST_REASON);
        let refused = json!({ "error": { "class": &reason, "desc": &reason } }).to_string();
        let Ok(Message::Complaint(refusal)) = parse(refused.as_bytes()) else {
            panic!("it is no complaint");
        };
        for text in [refusal.class, refusal.description] {
            assert!(text.len() <= 4 * LONGEST_REASON && !text.contains('\u{1b}'), "{text}");
        }
    }

    #[test]
    fn a_command_is_one_line() {
        let line = command("device_del", json!({ "id": "a\nb" }), 7);
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        let read: Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(
            read,
            json!({ "execute": "device_del", "arguments": { "id": "a\nb" }, "id": 7 })
        );
    }

    async fn all(bytes: &[u8]) -> Result<Vec<Message>, WireError> {
        let mut lines = Lines::new(bytes);
        let mut messages = Vec::new();
        while let Some(message) = lines.next().await? {
            messages.push(message);
        }
        Ok(messages)
    }

    #[tokio::test]
    async fn a_line_without_end_is_given_up() {
        assert!(matches!(all(&vec![b' '; MAX_LINE + 1]).await, Err(WireError::TooLong)));
    }

    #[tokio::test]
    async fn a_started_line_at_the_end_is_dropped() {
        assert_eq!(all(b"{\"event\": \"STOP\"}\n{\"ev").await.unwrap().len(), 1);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_an_error(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }

        #[test]
        fn any_object_is_a_message_or_an_error(
            key in "return|error|event|QMP|id|class",
            value in prop_oneof![Just(json!(null)), Just(json!(-1)), Just(json!({"class": 1})), Just(json!([[]]))],
        ) {
            let _ = parse(json!({ key: value, "id": 1 }).to_string().as_bytes());
        }
    }

    #[test]
    fn fuzz_qmp() {
        fuzz::run("qmp", |bytes| drop(parse(bytes)));
    }
}
