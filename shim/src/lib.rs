//! The shim: containerd's APIs, the sandbox, host mounts, streams, events, host hooks.
//!
//! There are two kinds of modules. The host's side: [`entry`], [`cli`], [`bundle`], [`options`], [`start`], [`delete`],
//! [`run_dir`], [`share`], [`host_ns`], [`guest_spec`], [`hooks`], [`host_cgroup`], [`cleanup`], [`logging`], [`stats`].
//! The service: [`server`] and the modules that it uses. Neither knows QEMU's arguments.

mod accept;
pub mod agent_client;
mod alive;
mod announcement;
pub mod boot_queue;
pub mod bundle;
pub mod cleanup;
pub mod cli;
pub mod connection;
pub mod context;
mod debug_image;
pub mod delete;
pub mod entry;
pub mod error;
pub mod events;
pub mod features;
pub mod forward;
mod guest_kernel;
pub mod guest_spec;
pub mod hooks;
pub mod host_cgroup;
mod host_mount;
pub mod host_ns;
pub mod host_sockets;
mod openat_beneath;
pub use lifecycle::id;
pub mod logging;
mod management;
pub mod memlock;
mod metrics;
mod mountinfo;
pub mod names;
pub mod network;
pub mod node;
pub mod options;
pub mod owners;
pub mod path_error;
pub mod pod_config;
pub mod pool;
pub mod process;
pub mod qemu;
mod rate_limited;
pub mod relays;
mod remove;
pub mod run_dir;
pub mod sandbox;
pub mod server;
pub mod service;
mod settings;
pub mod share;
pub mod sizing;
pub mod start;
pub mod stats;
pub mod streams;
mod sys;
pub mod vm;
pub mod volumes;
pub mod watch;
