//! Typed configuration, in the layout of kata-containers' `configuration.toml` (3.x, QEMU).
//!
//! [`locate`] finds the file, [`load`] reads it with its drop-ins, [`annotations::apply`] changes the result as far as
//! the configuration allows. Every error names file, line and key. The crate knows neither QEMU nor containerd, and it
//! starts nothing.

pub mod annotations;
mod codec;
mod installation;
pub mod kernel;
mod load;
mod locked;
mod model;
mod modules;
mod raw;
mod reference;
mod row;
mod settings;
mod show;
mod unsupported;
mod value;
mod virtiofsd;
mod warning;

pub use installation::{Installation, Replacement};
pub use load::{ConfigError, DEFAULT_PATHS, Loaded, MAX_DROP_INS, MAX_FILE_SIZE, OTLP_PATH, load, load_for, locate};
pub use locked::{CapPolicy, LockLimit, OnExcess, PerfEventKb};
pub use model::{Agent, CapIpcLock, Config, Factory, Hypervisor, Memlock, Runtime};
pub use modules::{MODULES, modules_beside};
pub use reference::reference;
pub use row::{Row, Status};
pub use value::{
    Accelerator, BlockAio, EmptyDirMode, Factor, HostNetwork, InterNetworking, MAX_VCPUS, MachineType, Mebibytes,
    MilliCpus, NamePattern, PathPattern, SandboxBind, Secret, SharedFs, Vcpus, VirtioFsCache, Vsock,
};
pub use warning::{Place, Reason, Warning};
