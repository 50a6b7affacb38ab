//! Why a VM did not start.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::hotplug::HotplugError;
use crate::machine::accel::AccelError;
use crate::machine::vsock::VsockError;
use crate::observe::ended::Ended;
use crate::process::children::{ChildDeath, SpawnError};
use crate::process::files::FileError;
use crate::process::qemu_root::QemuRootError;
use crate::process::rootless::RootlessError;
use crate::qmp::QmpError;

/// A command line that the kernel would cut off.
#[derive(Debug, thiserror::Error)]
#[error("the kernel's command line has {length} bytes, and {limit} are possible")]
pub struct CommandLineError {
    pub(crate) length: usize,
    pub(crate) limit: usize,
}

/// Why a VM could not be started.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what they are")]
pub enum BootError {
    /// A file of the configuration or the run directory.
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Rootless(#[from] RootlessError),
    /// The files that QEMU is to see.
    #[error(transparent)]
    QemuRoot(#[from] QemuRootError),
    #[error(transparent)]
    Accelerator(#[from] AccelError),
    #[error(transparent)]
    Vsock(#[from] VsockError),
    #[error(transparent)]
    CommandLine(#[from] CommandLineError),
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// A socket cannot be made or connected to.
    #[error("socket {path:?} cannot be used")]
    Socket {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The run directory cannot be watched for the daemon's socket.
    #[error("{path:?} cannot be watched")]
    Watch {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The guest's connections cannot be listened for.
    #[error("no vsock port to listen on")]
    Listen(#[source] io::Error),
    /// A pair of sockets for QEMU cannot be made.
    #[error("no sockets for QEMU")]
    SocketPair(#[source] io::Error),
    /// The network devices' descriptors cannot be duplicated for QEMU.
    #[error("no descriptors for QEMU's network devices")]
    Nics(#[source] io::Error),
    /// The vsock daemon runs and does not listen.
    #[error("vhost-device-vsock does not listen on {path:?}")]
    NotListening { path: PathBuf },
    /// A helper ended before QEMU was started.
    #[error("{0}")]
    ChildDied(ChildDeath),
    /// QEMU or a helper ended before QEMU's monitor answered.
    #[error("the VM with kernel {kernel:?} did not start: {ended}")]
    Ended {
        /// Its kernel, the part that QEMU complains about without naming it.
        kernel: PathBuf,
        ended: Arc<Ended>,
    },
    #[error("QEMU's monitor cannot be used")]
    Monitor(#[from] QmpError),
    /// A VM cannot be saved, or a saved one cannot be loaded.
    #[error("cannot {step} the VM's memory and state: {reason}")]
    Saved {
        /// `save` or `load`.
        step: &'static str,
        reason: String,
    },
    /// QEMU or a helper was killed while a VM was saved or loaded.
    #[error("the VM has ended while its memory and state were saved or loaded: {0}")]
    Interrupted(Arc<Ended>),
    /// A device cannot be plugged into a copy of a saved VM.
    #[error(transparent)]
    Hotplug(#[from] HotplugError),
    /// The guest does not say that it waits to be saved.
    #[error("the guest does not get as far as to be saved; its console ends with: {console}")]
    NotParked { console: String },
    /// A thread of ours ended before its work.
    #[error("the boot was not finished: {0}")]
    Task(String),
    /// QEMU runs and its monitor does not answer.
    #[error("QEMU's monitor has not answered within {} s of its own time", .0.as_secs())]
    MonitorTimeout(Duration),
}
