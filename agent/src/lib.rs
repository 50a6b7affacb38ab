//! The part of the guest agent that its tests reach: how a process of a container is started.

pub mod launch;
