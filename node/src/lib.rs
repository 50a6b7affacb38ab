//! The node's side of a sandbox: what is mounted, shared, watched, limited and run on the host, and what a specification
//! means for it.
//!
//! It knows neither containerd's services nor the guest's agent, and of QEMU only its devices.

pub mod boot_queue;
mod files;
pub mod hooks;
mod host;
mod limits;
pub mod network;
pub mod run_dir;
mod spec;

pub use files::{share, volumes, watch};
pub use host::{host_ns, openat_beneath, path_error, process, settings, sys};
pub use limits::{host_cgroup, memlock, sizing};
pub use spec::{bundle, guest_spec};
