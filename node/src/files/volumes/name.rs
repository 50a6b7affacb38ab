//! Names of storages.

use sha2::{Digest, Sha256};

/// A storage's name: the same for the same thing of the host.
pub(super) fn name(kind: &str, identity: &[u8]) -> String {
    let mut name = format!("{kind}-");
    for byte in &Sha256::digest(identity)[..8] {
        name.push(char::from(b"0123456789abcdef"[usize::from(byte >> 4)]));
        name.push(char::from(b"0123456789abcdef"[usize::from(byte & 15)]));
    }
    name
}
