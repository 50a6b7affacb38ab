//! Boots and controls one QEMU microVM and its helper daemons.
//!
//! ```text
//! VmRequest + config ──boot──► files checked ──► virtiofsd, vsock daemon ──► QEMU ──► monitor answers
//!                                                                                         │
//!                          Vm: pause, resume, qmp, stop, ended  ◄─────────────────────────┤
//!                          GuestListener: the guest's connections ◄───────────────────────┘
//! ```
//!
//! Knows nothing about the guest's protocol, containers or containerd. [`Vm`] and [`GuestListener`] own everything that a
//! VM needs on the host. If they are dropped, or [`boot`] is cancelled, no process and no socket is left.

mod boot;
mod boot_error;
mod doublings;
mod helpers;
mod hotplug;
mod listener;
mod machine;
mod observe;
mod process;
mod qmp;
#[cfg(any(test, feature = "scripted"))]
pub mod scripted;
mod vm;

pub use boot::boot;
pub use boot::process_limits::most_threads;
pub use boot::template::{boot_copy, save_booted};
pub use boot_error::{BootError, CommandLineError};
pub use hotplug::cpu::CpuError;
pub use hotplug::memory::{MemoryError, plugged};
pub use hotplug::{Disk, DiskKind, HotplugError, NicHotplug, Sectors};
pub use listener::{GuestListener, GuestStream};
pub use machine::accel::{Accel, AccelError, accelerator};
pub use machine::mac_address::MacAddress;
pub use machine::nic::Nic;
pub use machine::request::{NetworkNamespace, VmRequest};
pub use machine::size::{Size, boot_size, largest_size, overhead, vcpus};
pub use machine::vsock::VsockError;
pub use observe::cpus::{Sample, Vcpu};
pub use observe::ended::{Cause, Ended};
pub use process::child_name::ChildName;
pub use process::children::{ChildDeath, SpawnError};
pub use process::files::FileError;
pub use process::pinning::PinError;
pub use process::qemu_root::QemuRootError;
pub use process::vm_time;
pub use qmp::{Event, Qmp, QmpError};
pub use vm::Vm;
