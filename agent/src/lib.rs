//! The part of the guest agent that its tests use: how a process of a container is started, and what it may lock.

pub mod launch;
pub mod memlock;
mod proc;
