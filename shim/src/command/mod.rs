//! The program's commands: what containerd calls (`start`, `delete`, `-info`), and the server that `start` launches.
//!
//! They know files, sockets and processes. What the server does between its start and its end is in [`crate::server`].

pub mod cli;
pub mod delete;
pub mod entry;
pub mod features;
mod joined;
pub mod options;
pub mod start;
