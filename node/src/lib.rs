//! The node's side of a sandbox: what is mounted, shared, watched, limited and run on the host, and what a specification
//! means for it.
//!
//! It knows neither containerd's services nor the guest's agent, and of QEMU only its devices.

pub mod boot_queue;
pub mod bundle;
mod guest_path;
pub mod guest_spec;
pub mod hooks;
pub mod host_cgroup;
pub mod host_mount;
pub mod host_ns;
pub mod memlock;
pub mod mountinfo;
pub mod network;
pub mod openat_beneath;
pub mod owners;
pub mod path_error;
pub mod process;
pub mod remove;
pub mod run_dir;
pub mod settings;
pub mod share;
pub mod sizing;
pub mod sys;
pub mod volumes;
pub mod watch;
