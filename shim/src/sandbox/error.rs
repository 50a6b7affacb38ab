//! The errors of the sandbox. [`crate::service`] maps each to a status code.
//!
//! containerd and its clients print the message. So it names the operation, its object and the reason of the failure.

use std::sync::Arc;

use guest::agent_client::AgentError;
use guest::streams::StreamError;
use hypervisor::MemoryError;

use crate::id::IdError;
use crate::sandbox::host::HostError;
use crate::sandbox::host::disks::DiskError;
use crate::sandbox::vm::boot::GuestBootError;

/// A call that could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the request names no valid id")]
    Id(#[from] IdError),
    /// The request lacks something or holds something that cannot be read.
    #[error("{what} of {subject} cannot be used: {reason}")]
    Invalid {
        /// The field or part of the request.
        what: &'static str,
        subject: String,
        /// The reason, as the message gives it.
        reason: String,
    },
    #[error("{subject} does not exist in this sandbox")]
    NotFound { subject: String },
    #[error("{subject} exists already: delete it first or choose another id")]
    Exists { subject: String },
    /// A signal for, or a question about, what has ended. The wording is that of runc's shim, which clients look for.
    #[error("process already finished: {subject} has exited")]
    Finished { subject: String },
    #[error("cannot {operation} {subject}: it is {state}")]
    State {
        /// The operation, as the message names it: a verb.
        operation: &'static str,
        subject: String,
        /// The subject's state, as the message names it.
        state: &'static str,
    },
    #[error("cannot {operation} sandbox {sandbox}: {key} is off; set it, and start the sandbox anew")]
    NotEnabled {
        /// The operation, as the message names it: a verb.
        operation: &'static str,
        sandbox: String,
        /// Table and key, with the value that allows it.
        key: &'static str,
    },
    /// A request or an option that is not implemented, with its name.
    #[error("{0} is not supported by this runtime")]
    Unsupported(&'static str),
    #[error("sandbox {sandbox} did not start")]
    Boot {
        sandbox: String,
        #[source]
        source: GuestBootError,
    },
    #[error("cannot {operation} {subject}: the sandbox's VM has ended: {reason}")]
    VmEnded {
        /// The operation, as the message names it: a verb.
        operation: &'static str,
        subject: String,
        reason: String,
    },
    /// The client disconnected before the container was created.
    #[error("the creation of {subject} was interrupted")]
    Interrupted { subject: String },
    /// A step on the host failed: a mount, a hook, a file.
    #[error("cannot {operation} {subject}")]
    Host {
        /// The operation, as the message names it: a verb.
        operation: &'static str,
        subject: String,
        #[source]
        source: HostError,
    },
    /// A disk cannot be plugged in, enlarged or released.
    #[error("cannot {operation} {subject}")]
    Disk {
        /// The operation, as the message names it: a verb.
        operation: &'static str,
        subject: String,
        #[source]
        source: Box<DiskError>,
    },
    /// The VM does not get the memory for a container.
    #[error("cannot give the VM the memory that {subject} may use")]
    Memory {
        subject: String,
        #[source]
        source: MemoryError,
    },
    /// The standard streams of a process cannot be opened.
    #[error("cannot open the standard streams of {subject}")]
    Stream {
        subject: String,
        #[source]
        source: StreamError,
    },
    /// The guest's agent answers, but a deletion in the guest has got on no further.
    #[error("cannot delete {subject}: the guest has waited {seconds} s for {waits_for}")]
    Stalled {
        subject: String,
        waits_for: String,
        seconds: u64,
    },
    /// The agent refused the request, or did not answer it.
    #[error("cannot {operation} {subject}")]
    Agent {
        /// The operation, as the message names it: a verb.
        operation: &'static str,
        subject: String,
        #[source]
        source: AgentError,
    },
}

impl Error {
    /// The message with all its causes.
    #[must_use]
    pub fn message(&self) -> String {
        base::chain(self)
    }
}

/// An error with several receivers.
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
