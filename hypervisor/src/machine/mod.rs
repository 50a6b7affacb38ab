//! What a VM is made of: its accelerator and architecture, its size, its devices, and the caller's request for them.
//!
//! Plain data and what is read of the host to choose it. Knows no process of the VM.

pub(crate) mod accel;
pub(crate) mod arch;
pub(crate) mod cpuinfo;
pub(crate) mod descriptor;
pub(crate) mod disk_rates;
pub(crate) mod mac_address;
pub(crate) mod nic;
pub(crate) mod request;
pub(crate) mod size;
pub(crate) mod spec;
mod sys;
pub(crate) mod vsock;
