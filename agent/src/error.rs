//! The errors of the host's requests. `rpc::status` maps each of them to a status code.

use crate::cgroup;
use crate::common::ids::{ContainerId, ExecId, InvalidId};
use crate::connections::host_sockets::SocketError;
use crate::connections::names::NamesError;
use crate::connections::streams::StdioError;
use crate::files::storage::StorageError;
use crate::guest::cpus::OnlineError;
use crate::network::NetworkError;
use protocol::phase::{Phase, Verb};
use tatami_agent::launch::LaunchError;
use tatami_agent::memlock::ProbeError;

/// Why the VM's size is not taken note of.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResizeError {
    #[error(transparent)]
    Cpus(#[from] OnlineError),
    /// What is left to the agent and the kernel.
    #[error(transparent)]
    Reserve(#[from] cgroup::Error),
    #[error("set what is left to the agent and the kernel")]
    Thread(#[source] std::io::Error),
}

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Id(#[from] InvalidId),
    #[error("container {0}: not found")]
    NoContainer(ContainerId),
    #[error("container {0}: {1}: not found")]
    NoProcess(ContainerId, ExecId),
    #[error("container {0}: {1}: process already finished")]
    Finished(ContainerId, ExecId),
    /// The network is not what the host wants.
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Names(#[from] NamesError),
    /// A socket that stands for one of the host's.
    #[error("container {id}: {source}")]
    Socket {
        id: ContainerId,
        #[source]
        source: SocketError,
    },
    /// The VM's size is not taken note of.
    #[error("take note of the VM's size")]
    Resize(#[source] ResizeError),
    /// The name of a container is taken.
    #[error("container {0}: already exists")]
    ContainerExists(ContainerId),
    /// The name of an exec is taken.
    #[error("container {0}: {1}: already exists")]
    ProcessExists(ContainerId, ExecId),
    /// The container is in a phase in which this cannot be done.
    #[error("container {id}: cannot {verb} while it is {phase}")]
    Phase { id: ContainerId, verb: Verb, phase: Phase },
    /// Deleted, or not waited for, while it was being made.
    #[error("container {0}: given up while it was being created")]
    GivenUp(ContainerId),
    #[error("container {0}: {1}: still running")]
    Running(ContainerId, ExecId),
    /// JSON that is not what it should be.
    #[error("container {id}: {what} is not valid: {source}")]
    Json {
        id: ContainerId,
        what: &'static str,
        #[source]
        source: serde_json::Error,
    },
    /// The kernel has no way to tell that a file has changed on the host.
    #[error("this guest kernel cannot tell programs of the host's changes")]
    NoChanges(#[source] std::io::Error),
    #[error("container {id}: join the {kind} namespace of {of}: {reason}")]
    Namespace {
        id: ContainerId,
        kind: String,
        of: String,
        reason: String,
    },
    #[error("container {0}: {1} is out of range")]
    Range(ContainerId, &'static str),
    #[error("container {id}: {source}")]
    Launch {
        id: ContainerId,
        #[source]
        source: LaunchError,
    },
    #[error("container {id}: cgroup: {source}")]
    Cgroup {
        id: ContainerId,
        #[source]
        source: cgroup::Error,
    },
    #[error("container {id}: {exec}: {source}")]
    Stream {
        id: ContainerId,
        exec: ExecId,
        #[source]
        source: StdioError,
    },
    /// What there is to say about locked memory.
    #[error("container {id}: locked memory: {source}")]
    Memlock {
        id: ContainerId,
        #[source]
        source: ProbeError,
    },
    /// A storage that the host asks about.
    #[error(transparent)]
    Volume(StorageError),
    /// A file system or a disk of the container.
    #[error("container {id}: {source}")]
    Storage {
        id: ContainerId,
        #[source]
        source: StorageError,
    },
    #[error("container {id}: {what}")]
    System {
        id: ContainerId,
        what: &'static str,
        #[source]
        source: std::io::Error,
    },
}
