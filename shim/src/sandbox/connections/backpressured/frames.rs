//! Recognizes ttrpc's frames in a stream of pieces of any size (ttrpc's PROTOCOL.md): a header of ten bytes has the length of the payload,
//! the stream's number, the kind of frame and flags. Does not know the payloads.

use std::io;

/// Bytes of a frame's header.
pub(super) const HEADER: usize = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Request,
    Response,
    /// Part of a stream of messages, of which the two sides have none, or nothing that is known.
    Other(u8),
}

impl Kind {
    fn of(number: u8) -> Self {
        match number {
            1 => Kind::Request,
            2 => Kind::Response,
            other => Kind::Other(other),
        }
    }

    pub(super) fn number(self) -> u8 {
        match self {
            Kind::Request => 1,
            Kind::Response => 2,
            Kind::Other(number) => number,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// Length of the payload in bytes.
    pub(super) length: usize,
    pub(super) stream: u32,
    pub(super) kind: Kind,
}

/// Frames that go by in one direction.
#[derive(Debug, Default)]
pub(super) struct Frames {
    bytes: [u8; HEADER],
    /// Bytes of the header that are there.
    have: usize,
    /// Bytes of the current frame that are still to come.
    left: usize,
}

impl Frames {
    /// Takes note of bytes, and tells of each frame whose header is complete with them.
    pub(super) fn pass(&mut self, mut bytes: &[u8], mut tell: impl FnMut(Header)) {
        while !bytes.is_empty() {
            if self.left > 0 {
                let part = self.left.min(bytes.len());
                self.left -= part;
                bytes = &bytes[part..];
                continue;
            }
            let part = (HEADER - self.have).min(bytes.len());
            self.bytes[self.have..self.have + part].copy_from_slice(&bytes[..part]);
            self.have += part;
            bytes = &bytes[part..];
            if self.have == HEADER {
                let header = header(self.bytes);
                self.have = 0;
                self.left = header.length;
                tell(header);
            }
        }
    }
}

fn header(bytes: [u8; HEADER]) -> Header {
    let [a, b, c, d, e, f, g, h, kind, _flags] = bytes;
    Header {
        length: usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX),
        stream: u32::from_be_bytes([e, f, g, h]),
        kind: Kind::of(kind),
    }
}

/// What is not taken from the guest: it ends the connection.
pub(super) fn refuse(why: String) -> io::Result<()> {
    Err(io::Error::new(io::ErrorKind::InvalidData, why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_frame_is_told_wherever_it_is_cut(
            lengths in prop::collection::vec(0_usize..40, 1..20), cut in 1_usize..30,
        ) {
            let mut bytes = Vec::new();
            for (number, length) in (1_u32..).zip(&lengths) {
                bytes.extend(u32::try_from(*length).unwrap().to_be_bytes());
                bytes.extend(number.to_be_bytes());
                bytes.extend([2, 0]);
                bytes.extend(std::iter::repeat_n(u8::try_from(number).unwrap(), *length));
            }
            let mut frames = Frames::default();
            let mut told = Vec::new();
            for piece in bytes.chunks(cut) {
                frames.pass(piece, |header| told.push(header));
            }
            prop_assert_eq!(told.len(), lengths.len());
            for ((number, length), header) in (1_u32..).zip(&lengths).zip(told) {
                prop_assert_eq!(header, Header { length: *length, stream: number, kind: Kind::Response });
            }
        }
    }
}
