//! The part of the guest agent that its tests use: how a process of a container is started, and what it may lock.
#![allow(missing_docs, reason = "no other crate but its tests uses it")]

pub mod launch;
pub mod memlock;
mod proc;
