//! The settings with which the server is started. Filled in by [`crate::command::start`], used by [`crate::server`].

use std::path::PathBuf;
use std::sync::Mutex;

use node::host_ns::HostNamespace;
use node::run_dir::RunDir;

use crate::id::{Namespace, SandboxId};
use crate::program::logging::LogHandle;
use crate::qemu::parked::Parked;

/// Everything that identifies one sandbox's server.
#[derive(Debug)]
pub struct ServerContext {
    pub namespace: Namespace,
    pub id: SandboxId,
    /// The bundle of the container that the sandbox was started for. Absolute.
    pub bundle: PathBuf,
    /// containerd's ttrpc socket for events: `TTRPC_ADDRESS` in the environment. Empty where it gave none.
    pub ttrpc_address: String,
    /// The sandbox's files. It exists and holds the listening socket.
    pub run_dir: RunDir,
    /// The thread that stays in the host's mount namespace.
    pub host: HostNamespace,
    /// The configuration file that the runtime options named.
    pub config_path: Option<PathBuf>,
    /// Whether containerd was started for debugging (`-debug`).
    pub debug: bool,
    /// The log, for lines that the agent wrote.
    pub log: LogHandle,
    /// The VM that has booted before the sandbox was asked for. Taken by the sandbox's start.
    pub parked: Mutex<Option<Parked>>,
}
