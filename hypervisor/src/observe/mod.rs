//! What is learned of a running VM: its console, its registers, a dump of its memory, and how it ended.

pub(crate) mod console;
pub(crate) mod cpus;
pub(crate) mod dump;
pub(crate) mod ended;
