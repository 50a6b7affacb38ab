//! What is known of each container and each process, and the pid that stands for it on the host.

pub(super) mod container;
pub mod process;
pub(super) mod stand_in;
