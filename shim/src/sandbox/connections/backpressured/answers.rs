//! Checks the guest's answers: one answer for each request, no longer than [`LONGEST`].
//!
//! Decoded, a message can take fifty times its bytes (a list of empty messages), in this process, which no cgroup of the pod
//! limits. An honest agent's longest answer is shorter than the bound.

use std::collections::HashSet;
use std::io;

use super::frames::{Frames, Kind, refuse};

/// Longest answer in bytes: numbers, or the text of an error.
const LONGEST: usize = 64 << 10;

/// The calls that have not been answered.
#[derive(Debug, Default)]
pub(super) struct Answers {
    requests: Frames,
    answers: Frames,
    /// Stream numbers of requests that have no answer yet.
    outstanding: HashSet<u32>,
}

impl Answers {
    /// Takes note of requests that the guest is sent.
    pub(super) fn asked(&mut self, bytes: &[u8]) {
        let outstanding = &mut self.outstanding;
        self.requests.pass(bytes, |header| {
            outstanding.insert(header.stream);
        });
    }

    /// Takes note of what the guest answers.
    ///
    /// # Errors
    /// It is not an answer that is waited for, or it is too long.
    pub(super) fn read(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut refused = Ok(());
        let outstanding = &mut self.outstanding;
        self.answers.pass(bytes, |header| {
            let number = header.stream;
            let asked = outstanding.remove(&number);
            refused = match asked {
                _ if refused.is_err() => return,
                _ if header.kind != Kind::Response => refuse(format!(
                    "a frame of kind {} where answers are given",
                    header.kind.number()
                )),
                false => refuse(format!("an answer to call {number}, which nobody waits for")),
                true if header.length > LONGEST => refuse(format!(
                    "an answer of {} bytes, and {LONGEST} are possible",
                    header.length
                )),
                true => return,
            };
        });
        refused
    }
}

#[cfg(test)]
mod tests {
    use super::super::frames::HEADER;
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
    fn an_answer_that_is_too_long_is_refused_by_its_header() {
        let mut answers = Answers::default();
        answers.asked(&[request(1, "Signal"), request(3, "Stats")].concat());
        answers.read(&frame(3, 2, &vec![0; LONGEST])).unwrap();
        let long = frame(1, 2, &vec![0; LONGEST + 1]);
        assert!(refused(&mut answers, &long[..HEADER]).contains("65536 are possible"));
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
