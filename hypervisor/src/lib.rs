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

mod accel;
mod arch;
mod argv;
mod boot;
mod boot_error;
mod child_name;
mod children;
mod command_line;
mod console;
mod cpuinfo;
mod cpus;
mod descriptor;
mod disk_rates;
mod dump;
mod elf;
mod ended;
mod files;
mod hotplug;
mod jail;
mod listener;
mod mac_address;
mod nic;
mod pinning;
mod process_limits;
mod qemu_root;
mod qmp;
mod request;
mod rootless;
mod size;
mod spec;
mod stderr;
mod sys;
mod virtiofsd;
mod vm;
pub mod vm_time;
mod vsock;
mod vsock_daemon;

pub use accel::{Accel, AccelError, accelerator};
pub use boot::boot;
pub use boot_error::{BootError, CommandLineError};
pub use child_name::ChildName;
pub use children::{ChildDeath, SpawnError};
pub use cpus::{Sample, Vcpu};
pub use ended::{Cause, Ended};
pub use files::FileError;
pub use hotplug::cpu::CpuError;
pub use hotplug::memory::{MemoryError, plugged};
pub use hotplug::{Disk, DiskKind, HotplugError, NicHotplug, Sectors};
pub use listener::{GuestListener, GuestStream};
pub use mac_address::MacAddress;
pub use nic::Nic;
pub use pinning::PinError;
pub use process_limits::most_threads;
pub use qemu_root::QemuRootError;
pub use qmp::{Event, Qmp, QmpError};
pub use request::{Accounting, NetworkNamespace, VmRequest};
pub use size::{Size, boot_size, largest_size, overhead, vcpus};
pub use vm::Vm;
pub use vsock::VsockError;
