//! The errors of the service, and the status code that containerd gets for each.
//!
//! containerd and its clients decide by the code and print the message. So a message names the operation, its object and
//! the reason of the failure.

use std::sync::Arc;

use guest::agent_client::AgentError;
use guest::streams::StreamError;
use guest::vm::LaunchError;
use hypervisor::{HotplugError, MemoryError};
use node::volumes::VolumeError;
use ttrpc::Code;

use crate::id::IdError;
use crate::sandbox::boot::BootError;
use crate::sandbox::disks::DiskError;
use crate::sandbox::host::HostError;

/// A call that could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An id that nothing can have.
    #[error("the request names no valid id")]
    Id(#[from] IdError),
    /// The request lacks something or holds something that cannot be read.
    #[error("{what} of {subject} cannot be used: {reason}")]
    Invalid {
        /// The field.
        what: &'static str,
        /// The container or process.
        subject: String,
        /// Why.
        reason: String,
    },
    /// No such container or process.
    #[error("{subject} does not exist in this sandbox")]
    NotFound {
        /// The container or process.
        subject: String,
    },
    /// The id is in use.
    #[error("{subject} exists already: delete it first or choose another id")]
    Exists {
        /// The container or process.
        subject: String,
    },
    /// A signal for, or a question about, what has ended. The wording is that of runc's shim, which clients look for.
    #[error("process already finished: {subject} has exited")]
    Finished {
        /// The process.
        subject: String,
    },
    /// The state does not allow it.
    #[error("cannot {operation} {subject}: it is {state}")]
    State {
        /// The verb.
        operation: &'static str,
        /// The container or process.
        subject: String,
        /// Its state.
        state: &'static str,
    },
    /// The configuration does not allow it.
    #[error("cannot {operation} sandbox {sandbox}: {key} is off; set it, and start the sandbox anew")]
    NotEnabled {
        /// The verb.
        operation: &'static str,
        /// The sandbox.
        sandbox: String,
        /// Table and key, with the value that allows it.
        key: &'static str,
    },
    /// Not made.
    #[error("{0} is not supported by this runtime")]
    Unsupported(&'static str),
    /// The VM did not come up.
    #[error("sandbox {sandbox} did not start")]
    Boot {
        /// The sandbox.
        sandbox: String,
        /// Why.
        #[source]
        source: BootError,
    },
    /// The VM is gone.
    #[error("cannot {operation} {subject}: the sandbox's VM has ended: {reason}")]
    VmEnded {
        /// The verb.
        operation: &'static str,
        /// The container or process.
        subject: String,
        /// Why it ended.
        reason: String,
    },
    /// Whoever asked went away.
    #[error("the creation of {subject} was interrupted")]
    Interrupted {
        /// The container.
        subject: String,
    },
    /// Something on the host.
    #[error("cannot {operation} {subject}")]
    Host {
        /// The verb.
        operation: &'static str,
        /// The container.
        subject: String,
        /// Why.
        #[source]
        source: HostError,
    },
    /// A disk of the guest.
    #[error("cannot {operation} {subject}")]
    Disk {
        /// The verb.
        operation: &'static str,
        /// The container, or the sandbox.
        subject: String,
        /// Why.
        #[source]
        source: Box<DiskError>,
    },
    /// The VM's memory.
    #[error("cannot give the VM the memory that {subject} may use")]
    Memory {
        /// The container.
        subject: String,
        /// Why.
        #[source]
        source: MemoryError,
    },
    /// A standard stream.
    #[error("cannot open the standard streams of {subject}")]
    Stream {
        /// The process.
        subject: String,
        /// Why.
        #[source]
        source: StreamError,
    },
    /// The guest said no, or nothing.
    #[error("cannot {operation} {subject}")]
    Agent {
        /// The verb.
        operation: &'static str,
        /// The container or process.
        subject: String,
        /// Why.
        #[source]
        source: AgentError,
    },
}

impl Error {
    /// The status code.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Error::Id(_) | Error::Invalid { .. } => Code::INVALID_ARGUMENT,
            Error::NotFound { .. } | Error::Finished { .. } => Code::NOT_FOUND,
            Error::Exists { .. } => Code::ALREADY_EXISTS,
            Error::State { .. } | Error::NotEnabled { .. } => Code::FAILED_PRECONDITION,
            Error::Unsupported(_) => Code::UNIMPLEMENTED,
            Error::Boot { source, .. } => match source {
                BootError::TimedOut { .. } => Code::DEADLINE_EXCEEDED,
                BootError::Launch(LaunchError::Configuration(_)) => Code::INVALID_ARGUMENT,
                BootError::Launch(_) | BootError::Guest { .. } | BootError::Stopped => Code::UNAVAILABLE,
            },
            Error::VmEnded { .. } => Code::UNAVAILABLE,
            Error::Interrupted { .. } => Code::CANCELLED,
            Error::Host { source, .. } => match source {
                HostError::Spec(_) => Code::INVALID_ARGUMENT,
                HostError::Other(_) => Code::INTERNAL,
            },
            Error::Disk { source, .. } => match &**source {
                DiskError::Open(VolumeError::InUse { .. }) | DiskError::ReadOnly { .. } | DiskError::Grow { .. } => {
                    Code::FAILED_PRECONDITION
                }
                DiskError::Open(_) => Code::INVALID_ARGUMENT,
                DiskError::Plug {
                    source: HotplugError::Full,
                    ..
                } => Code::RESOURCE_EXHAUSTED,
                DiskError::Plug { .. } => Code::INTERNAL,
                DiskError::Interrupted => Code::CANCELLED,
            },
            Error::Memory { source, .. } => match source {
                MemoryError::TooMuch { .. } | MemoryError::Full | MemoryError::Stuck { .. } => Code::RESOURCE_EXHAUSTED,
                MemoryError::Step { .. } | MemoryError::Interrupted => Code::INTERNAL,
            },
            Error::Stream { source, .. } => match source {
                StreamError::Uri { .. } => Code::INVALID_ARGUMENT,
                StreamError::Open { .. } | StreamError::Logger { .. } => Code::INTERNAL,
                StreamError::NotDialled => Code::DEADLINE_EXCEEDED,
            },
            Error::Agent { source, .. } => source.code(),
        }
    }

    /// The message with all its causes.
    #[must_use]
    pub fn message(&self) -> String {
        base::chain(self)
    }
}

/// An error that several are told.
#[derive(Debug, Clone)]
pub struct Shared(Arc<Error>);

impl From<Error> for Shared {
    fn from(error: Error) -> Self {
        Self(Arc::new(error))
    }
}

impl std::ops::Deref for Shared {
    type Target = Error;

    fn deref(&self) -> &Error {
        &self.0
    }
}

impl From<Shared> for ttrpc::Error {
    fn from(error: Shared) -> Self {
        ttrpc::Error::RpcStatus(ttrpc::get_status(error.code(), error.message()))
    }
}

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        ttrpc::Error::RpcStatus(ttrpc::get_status(error.code(), error.message()))
    }
}
