//! The status code that containerd gets for each error: the one table, without a catch-all. containerd and its clients decide by it.

use guest::agent_client::{AgentError, Refusal};
use guest::streams::StreamError;
use guest::vm::VmLaunchError;
use hypervisor::{HotplugError, MemoryError};
use node::volumes::VolumeError;
use ttrpc::Code;

use crate::sandbox::DiskError;
use crate::sandbox::boot::GuestBootError;
use crate::sandbox::error::{Error, Shared};
use crate::sandbox::host::HostError;

fn code(error: &Error) -> Code {
    match error {
        Error::Id(_) | Error::Invalid { .. } => Code::INVALID_ARGUMENT,
        Error::NotFound { .. } | Error::Finished { .. } => Code::NOT_FOUND,
        Error::Exists { .. } => Code::ALREADY_EXISTS,
        Error::State { .. } | Error::NotEnabled { .. } => Code::FAILED_PRECONDITION,
        Error::Unsupported(_) => Code::UNIMPLEMENTED,
        Error::Boot { source, .. } => match source {
            GuestBootError::TimedOut { .. } => Code::DEADLINE_EXCEEDED,
            GuestBootError::Launch(VmLaunchError::Configuration(_)) => Code::INVALID_ARGUMENT,
            GuestBootError::Launch(_) | GuestBootError::Guest { .. } | GuestBootError::Stopped => Code::UNAVAILABLE,
        },
        Error::VmEnded { .. } => Code::UNAVAILABLE,
        Error::Interrupted { .. } => Code::CANCELLED,
        Error::Host { source, .. } => match source {
            HostError::Spec(_) => Code::INVALID_ARGUMENT,
            HostError::Other(_) => Code::INTERNAL,
        },
        Error::Disk { source, .. } => match &**source {
            DiskError::Open(VolumeError::InUse { .. })
            | DiskError::ReadOnly { .. }
            | DiskError::Leaving { .. }
            | DiskError::Grow { .. } => Code::FAILED_PRECONDITION,
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
        Error::Stalled { .. } => Code::DEADLINE_EXCEEDED,
        Error::Agent { source, .. } => match source {
            AgentError::Refused { refusal, .. } => refused(*refusal),
            AgentError::TimedOut(_) => Code::DEADLINE_EXCEEDED,
            AgentError::Broken(_) => Code::UNAVAILABLE,
        },
    }
}

/// The agent's own code is passed on.
fn refused(refusal: Refusal) -> Code {
    match refusal {
        Refusal::Missing => Code::NOT_FOUND,
        Refusal::Exists => Code::ALREADY_EXISTS,
        Refusal::Invalid => Code::INVALID_ARGUMENT,
        Refusal::Phase => Code::FAILED_PRECONDITION,
        Refusal::Unanswered => Code::DEADLINE_EXCEEDED,
        Refusal::Unsupported => Code::UNIMPLEMENTED,
        Refusal::Exhausted => Code::RESOURCE_EXHAUSTED,
        Refusal::GivenUp => Code::CANCELLED,
        Refusal::Failed => Code::INTERNAL,
    }
}

impl From<Shared> for ttrpc::Error {
    fn from(error: Shared) -> Self {
        ttrpc::Error::RpcStatus(ttrpc::get_status(code(&error), error.message()))
    }
}

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        ttrpc::Error::RpcStatus(ttrpc::get_status(code(&error), error.message()))
    }
}
