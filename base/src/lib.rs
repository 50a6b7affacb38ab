//! What several crates need of Linux and of the standard library: text of errors and of other programs, starting programs, BPF,
//! attributes of mounts, /proc.
//!
//! It knows neither containers nor VMs.

pub mod bpf;
mod error_chain;
pub mod idle;
pub mod meminfo;
pub mod mount_attributes;
pub mod net_dev;
pub mod process;
pub mod scale;
pub mod spawn;
pub mod tail;

pub use error_chain::chain;
