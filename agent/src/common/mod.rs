//! What the other groups share: ids, the log, time limits, the thread pool for calls that block, and system calls.

pub(crate) mod blocking;
pub(crate) mod ids;
pub(crate) mod log;
pub(crate) mod sys;
pub(crate) mod timeouts;
