//! The size of a stream's steps.

/// Bytes that a stream moves at a time: a pipe's default capacity (pipe(7)).
pub(super) const BUFFER: usize = 64 << 10;
