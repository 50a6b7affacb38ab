//! The shim: containerd's APIs and the sandbox.
//!
//! [`command`] is the program that containerd calls, [`server`] sets up what it leaves running, [`service`] answers containerd, [`management`]
//! answers Kata's tools, and [`sandbox`] does the work. None of them knows QEMU's arguments. What is done on the host for a sandbox is in
//! the crate `node`, and the guest's connections are in the crate `guest`.
#![allow(missing_docs, reason = "no other crate but its tests uses it")]

pub mod cleanup;
pub mod command;
pub mod events;
pub mod forward;
mod management;
mod metrics;
pub mod pool;
pub mod program;
pub mod qemu;
pub mod sandbox;
pub mod server;
pub mod service;
pub mod spans;

pub use lifecycle::id;
pub use sandbox::error::Error;
