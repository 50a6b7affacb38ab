//! The shim: containerd's APIs, the sandbox, the guest's connections, streams, events.
//!
//! There are two kinds of modules. What runs before and after the server: [`entry`], [`cli`], [`options`], [`start`], [`delete`],
//! [`cleanup`], [`logging`]. The service: [`server`] and the modules that it uses. Neither knows QEMU's arguments; what is
//! done on the host for a sandbox is in the crate `node`.

mod alive;
mod announcement;
pub mod cleanup;
pub mod cli;
pub mod context;
mod debug_image;
pub mod delete;
pub mod entry;
pub mod error;
pub mod events;
pub mod features;
pub mod forward;
mod guest_kernel;
pub use lifecycle::id;
pub mod logging;
mod management;
mod metrics;
pub mod options;
pub mod pod_config;
pub mod pool;
pub mod qemu;
pub mod sandbox;
pub mod server;
pub mod service;
mod settings;
pub mod start;
pub mod stats;
