//! The size of a stream's steps.

/// Bytes that a stream moves at a time, and the capacity of stdout's pipe. It is twice a pipe's default (pipe(7)): the process and the agent
/// take turns half as often, and a turn costs as much as some copies (docs/boot.md).
pub(super) const BUFFER: usize = 128 << 10;
