//! The preamble: the first bytes of every connection, which say what the connection is for.
//!
//! Layout, 24 bytes: `TATAMI` in ASCII, the version (1 byte), the kind (1 byte), a token (16 bytes; zero unless the kind
//! is a stream or a relay). The size is fixed, so that the reader needs no buffer that the guest could make grow.

/// Bytes of an encoded preamble.
pub const LENGTH: usize = 24;

/// Bytes of a stream's token.
pub const TOKEN_LENGTH: usize = 16;

const MAGIC: &[u8; 6] = b"TATAMI";
const VERSION: u8 = 1;

/// Names one stream, or one socket of the host: chosen at random by the shim, so that no program in the guest can guess it.
pub type Token = [u8; TOKEN_LENGTH];

/// What a connection carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preamble {
    /// ttrpc, with the agent as the client of `Host`.
    Host,
    /// ttrpc, with the agent as the server of `Agent`.
    Agent,
    /// One standard stream.
    Stream(Token),
    /// The agent's log.
    Log,
    /// A connection to a socket of the host.
    Relay(Token),
}

/// Why 24 bytes are no preamble.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what they are")]
pub enum PreambleError {
    #[error("the connection does not start with the agent's magic bytes")]
    Magic,
    /// An agent of another build than the shim.
    #[error("the agent speaks protocol version {0}, the shim version {VERSION}: the initrd is of another build")]
    Version(u8),
    /// A kind that this version does not have.
    #[error("unknown kind of connection: {0}")]
    Kind(u8),
}

impl Preamble {
    /// The bytes to send.
    #[must_use]
    pub fn encode(self) -> [u8; LENGTH] {
        let (kind, token) = match self {
            Preamble::Host => (1, [0; TOKEN_LENGTH]),
            Preamble::Agent => (2, [0; TOKEN_LENGTH]),
            Preamble::Stream(token) => (3, token),
            Preamble::Log => (4, [0; TOKEN_LENGTH]),
            Preamble::Relay(token) => (5, token),
        };
        let mut bytes = [0; LENGTH];
        bytes[..6].copy_from_slice(MAGIC);
        bytes[6] = VERSION;
        bytes[7] = kind;
        bytes[8..].copy_from_slice(&token);
        bytes
    }

    /// Reads what [`Preamble::encode`] wrote.
    ///
    /// # Errors
    /// The bytes come from another program, another version, or name a kind that does not exist.
    pub fn decode(bytes: &[u8; LENGTH]) -> Result<Self, PreambleError> {
        if &bytes[..6] != MAGIC {
            return Err(PreambleError::Magic);
        }
        if bytes[6] != VERSION {
            return Err(PreambleError::Version(bytes[6]));
        }
        let mut token = [0; TOKEN_LENGTH];
        token.copy_from_slice(&bytes[8..]);
        match bytes[7] {
            1 => Ok(Preamble::Host),
            2 => Ok(Preamble::Agent),
            3 => Ok(Preamble::Stream(token)),
            4 => Ok(Preamble::Log),
            5 => Ok(Preamble::Relay(token)),
            kind => Err(PreambleError::Kind(kind)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_stream_and_a_relay_keep_their_tokens(token: Token) {
            for preamble in [Preamble::Stream(token), Preamble::Relay(token)] {
                prop_assert_eq!(Preamble::decode(&preamble.encode()), Ok(preamble));
            }
        }

        #[test]
        fn any_bytes_decode_or_are_refused(bytes: [u8; LENGTH]) {
            let _ = Preamble::decode(&bytes);
        }
    }

    #[test]
    fn every_kind_comes_back() {
        for kind in [Preamble::Host, Preamble::Agent, Preamble::Log] {
            assert_eq!(Preamble::decode(&kind.encode()), Ok(kind));
        }
    }

    #[test]
    fn a_stranger_is_refused() {
        assert_eq!(Preamble::decode(&[0; LENGTH]), Err(PreambleError::Magic));
        let mut other = Preamble::Host.encode();
        other[6] = 9;
        assert_eq!(Preamble::decode(&other), Err(PreambleError::Version(9)));
        other[6] = VERSION;
        other[7] = 0;
        assert_eq!(Preamble::decode(&other), Err(PreambleError::Kind(0)));
    }

    #[test]
    fn fuzz_preamble() {
        fuzz::run("preamble", |bytes| {
            let mut preamble = [0; LENGTH];
            for (to, from) in preamble.iter_mut().zip(bytes) {
                *to = *from;
            }
            if let Ok(read) = Preamble::decode(&preamble) {
                assert_eq!(Preamble::decode(&read.encode()), Ok(read));
            }
        });
    }
}
