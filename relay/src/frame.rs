//! Frames: a header of four bytes (the kind, then the payload's length in 24 bits, little-endian), and the payload.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Bytes of a header.
pub const HEADER: usize = 4;

/// Largest payload of a message, in bytes: more than a Unix socket takes by default (`net.core.wmem_default`, 212,992).
pub const LARGEST_MESSAGE: usize = 256 << 10;

/// Largest payload of a stream's frame, in bytes.
pub const LARGEST_CHUNK: usize = 16 << 10;

/// What a frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Bytes of a stream, or one message.
    Data = 1,
    /// There will be no more data from this side.
    End = 2,
    /// Nobody reads on this side any more: the other one need not send more.
    Stop = 3,
    /// The side that dialled has everything and has said all: the other one may close.
    Done = 4,
}

impl Kind {
    fn decode(byte: u8) -> Option<Self> {
        [Kind::Data, Kind::End, Kind::Stop, Kind::Done]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// The header of a payload. Its length must fit into 24 bits.
#[must_use]
pub fn header(kind: Kind, length: usize) -> [u8; HEADER] {
    let [low, middle, high, ..] = length.to_le_bytes();
    [kind as u8, low, middle, high]
}

/// A whole frame.
#[must_use]
pub fn encode(kind: Kind, payload: &[u8]) -> Vec<u8> {
    [&header(kind, payload.len())[..], payload].concat()
}

/// Reads the next frame; `payload` holds what it carries.
///
/// # Errors
/// The stream has ended (`UnexpectedEof`), or the frame is none, or larger than `most`.
pub async fn read(from: &mut (impl AsyncRead + Unpin), payload: &mut Vec<u8>, most: usize) -> io::Result<Kind> {
    let mut bytes = [0; HEADER];
    from.read_exact(&mut bytes).await?;
    let [kind, low, middle, high] = bytes;
    let length = usize::from(low) | usize::from(middle) << 8 | usize::from(high) << 16;
    let Some(kind) = Kind::decode(kind).filter(|kind| length <= most && (*kind == Kind::Data || length == 0)) else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("no frame: kind {kind}, {length} bytes"),
        ));
    };
    payload.resize(length, 0);
    from.read_exact(payload).await?;
    Ok(kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decoded(bytes: &[u8], most: usize) -> io::Result<(Kind, Vec<u8>)> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut payload = Vec::new();
        let kind = runtime.block_on(read(&mut &*bytes, &mut payload, most))?;
        Ok((kind, payload))
    }

    proptest! {
        #[test]
        fn a_frame_comes_back(payload: Vec<u8>) {
            prop_assert_eq!(decoded(&encode(Kind::Data, &payload), LARGEST_MESSAGE).unwrap(), (Kind::Data, payload));
        }

        #[test]
        fn any_bytes_are_a_frame_or_an_error(bytes: Vec<u8>) {
            if let Ok((_, payload)) = decoded(&bytes, 16) {
                prop_assert!(payload.len() <= 16);
            }
        }
    }

    #[test]
    fn what_is_too_large_or_no_frame_is_refused_before_its_payload_is_read() {
        for bytes in [[1, 17, 0, 0], [1, 0, 0, 1], [2, 1, 0, 0], [0, 0, 0, 0], [9, 0, 0, 0]] {
            assert_eq!(decoded(&bytes, 16).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn fuzz_relay_frames() {
        fuzz::run("relay-frames", |bytes| {
            if let Ok((_, payload)) = decoded(bytes, 64) {
                assert!(payload.len() <= 64);
            }
        });
    }
}
