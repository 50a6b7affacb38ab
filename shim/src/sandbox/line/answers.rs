//! What the guest may answer: what was asked, once, and no longer than an answer of that kind can be.
//!
//! Decoded, a message can take fifty times its bytes (a list of empty messages), in this process, which no cgroup of the pod
//! bounds. The longest is the longest that an honest agent gives, with room.

use std::collections::HashMap;
use std::io;

use super::frames::{Frames, Kind, refuse};

/// Longest answer in bytes, for a method that is not in [`LONGER`]: numbers, or the text of an error.
const LONGEST: usize = 64 << 10;

/// Those with lists: some 20,000 processes.
const LONGER: [(&str, usize); 1] = [("ListProcesses", 256 << 10)];

/// Bytes at the beginning of a request that have its service and method.
const NAMES: usize = 96;

/// The calls that have not been answered.
#[derive(Debug)]
pub(super) struct Answers {
    requests: Frames,
    answers: Frames,
    /// By the stream's number, the longest answer.
    outstanding: HashMap<u32, usize>,
}

impl Default for Answers {
    fn default() -> Self {
        Self {
            requests: Frames::with_beginnings(NAMES),
            answers: Frames::default(),
            outstanding: HashMap::new(),
        }
    }
}

impl Answers {
    /// Takes note of requests that the guest is sent.
    pub(super) fn asked(&mut self, bytes: &[u8]) {
        let outstanding = &mut self.outstanding;
        self.requests.pass(bytes, |header, beginning| {
            let longer = LONGER
                .iter()
                .find(|(name, _)| method(beginning) == Some(name.as_bytes()));
            outstanding.insert(header.stream, longer.map_or(LONGEST, |(_, longest)| *longest));
        });
    }

    /// Takes note of what the guest answers.
    ///
    /// # Errors
    /// It is not an answer that is waited for.
    pub(super) fn read(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut refused = Ok(());
        let outstanding = &mut self.outstanding;
        self.answers.pass(bytes, |header, _| {
            let number = header.stream;
            let asked = outstanding.remove(&number);
            refused = match asked {
                _ if refused.is_err() => return,
                _ if header.kind != Kind::Response => refuse(format!(
                    "a frame of kind {} where answers are given",
                    header.kind.number()
                )),
                None => refuse(format!("an answer to call {number}, which nobody waits for")),
                Some(longest) if header.length > longest => refuse(format!(
                    "an answer of {} bytes, and {longest} are possible",
                    header.length
                )),
                Some(_) => return,
            };
        });
        refused
    }
}

/// The method in a request of ttrpc: its first field is the service, its second the method, both shorter than 128 bytes.
fn method(request: &[u8]) -> Option<&[u8]> {
    let (service, rest) = field(request, 0x0a)?;
    let (method, _) = field(rest, 0x12)?;
    (!service.is_empty()).then_some(method)
}

/// A field of bytes with this tag, and what follows it.
fn field(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (head, rest) = bytes.split_at_checked(2)?;
    (head[0] == tag && head[1] < 0x80)
        .then(|| rest.split_at_checked(usize::from(head[1])))
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use protobuf::Message as _;

    fn frame(stream: u32, kind: u8, body: &[u8]) -> Vec<u8> {
        let mut frame = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
        frame.extend(stream.to_be_bytes());
        frame.extend([kind, 0]);
        frame.extend(body);
        frame
    }

    fn request(stream: u32, method: &str) -> Vec<u8> {
        let request = ttrpc::proto::Request {
            service: "tatami.agent.v1.Agent".into(),
            method: method.into(),
            payload: vec![1; 300],
            timeout_nano: 1,
            ..Default::default()
        };
        frame(stream, 1, &request.write_to_bytes().unwrap())
    }

    fn refused(answers: &mut Answers, bytes: &[u8]) -> String {
        answers.read(bytes).unwrap_err().to_string()
    }

    #[test]
    fn each_call_is_answered_once_and_what_was_not_asked_is_refused() {
        let mut answers = Answers::default();
        for byte in [request(1, "Signal"), request(3, "Stats")].concat() {
            answers.asked(&[byte]);
        }
        answers.read(&frame(3, 2, &[0; 100])).unwrap();
        assert!(refused(&mut answers, &frame(3, 2, &[])).contains("nobody waits"));
        assert!(refused(&mut answers, &frame(5, 2, &[])).contains("nobody waits"));
        assert!(refused(&mut answers, &frame(1, 3, &[])).contains("kind 3"));
    }

    #[test]
    fn an_answer_is_as_long_as_one_of_its_kind_can_be() {
        let mut answers = Answers::default();
        answers.asked(
            &[
                request(1, "Signal"),
                request(3, "ListProcesses"),
                request(5, "ListProcesses"),
            ]
            .concat(),
        );
        answers.read(&frame(3, 2, &vec![0; 256 << 10])).unwrap();
        let long = vec![0; (256 << 10) + 1];
        assert!(refused(&mut answers, &frame(5, 2, &long)).contains("262144 are possible"));
        // The header alone is enough.
        assert!(refused(&mut answers, &frame(1, 2, &long)[..10]).contains("65536 are possible"));
    }

    /// The first half is what the shim asks, the second what the guest answers.
    #[test]
    fn fuzz_agent_frames() {
        fuzz::run("agent-frames", |bytes| {
            let (asked, answered) = bytes.split_at(bytes.len() / 2);
            let mut answers = Answers::default();
            for piece in asked.chunks(7) {
                answers.asked(piece);
            }
            for piece in answered.chunks(5) {
                if answers.read(piece).is_err() {
                    break;
                }
            }
            let mut strict = Answers::default();
            strict.asked(bytes);
            let _ = strict.read(bytes);
        });
    }
}
