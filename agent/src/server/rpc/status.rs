//! Maps each error to a status code: the one table, without a catch-all.

use tatami_agent::launch::LaunchError;
use tatami_agent::memlock::ProbeError;
use ttrpc::Code;

use crate::cgroup;
use crate::connections::host_sockets::SocketError;
use crate::connections::names::NamesError;
use crate::connections::streams::StdioError;
use crate::error::{Error, ResizeError};
use crate::files::storage::StorageError;
use crate::guest::cpus::OnlineError;
use crate::network::NetworkError;

pub(super) fn code(error: &Error) -> Code {
    match error {
        Error::Id(_) | Error::Json { .. } | Error::Namespace { .. } | Error::Range(..) => Code::INVALID_ARGUMENT,
        // containerd takes NOT_FOUND from Kill to mean that the process has ended, as runc's shim has it.
        Error::NoContainer(_) | Error::NoProcess(..) | Error::Finished(..) => Code::NOT_FOUND,
        Error::ContainerExists(_) | Error::ProcessExists(..) => Code::ALREADY_EXISTS,
        Error::GivenUp(_) => Code::CANCELLED,
        Error::Phase { .. } | Error::Running(..) => Code::FAILED_PRECONDITION,
        Error::Launch { source, .. } => launch(source),
        Error::Cgroup { source, .. } => cgroup(source),
        Error::Stream { source, .. } => stream(source),
        Error::NoChanges(_) => Code::UNIMPLEMENTED,
        Error::Memlock { source, .. } => probe(source),
        Error::Network(error) => network(error),
        Error::Names(error) => names(error),
        Error::Socket { source, .. } => socket(source),
        Error::Storage { source, .. } | Error::Volume(source) => storage(source),
        Error::Resize(error) => resize(error),
        Error::System { .. } => Code::INTERNAL,
    }
}

fn network(error: &NetworkError) -> Code {
    match error {
        NetworkError::Message { .. } => Code::INVALID_ARGUMENT,
        NetworkError::Socket(_)
        | NetworkError::Thread(_)
        | NetworkError::Parking(_)
        | NetworkError::NoDevice { .. }
        | NetworkError::Step { .. }
        | NetworkError::Sysctl { .. } => Code::INTERNAL,
    }
}

fn names(error: &NamesError) -> Code {
    match error {
        NamesError::Token(_) => Code::INVALID_ARGUMENT,
        NamesError::Listen(_) | NamesError::Redirect(_) => Code::INTERNAL,
    }
}

fn socket(error: &SocketError) -> Code {
    match error {
        SocketError::Description { .. } => Code::INVALID_ARGUMENT,
        SocketError::Step { .. } => Code::INTERNAL,
    }
}

fn resize(error: &ResizeError) -> Code {
    match error {
        ResizeError::Cpus(OnlineError::NoPlace { .. }) => Code::FAILED_PRECONDITION,
        ResizeError::Cpus(OnlineError::Missing { .. }) => Code::DEADLINE_EXCEEDED,
        ResizeError::Cpus(OnlineError::Io { .. }) => Code::INTERNAL,
        ResizeError::Reserve(error) => cgroup(error),
        ResizeError::Thread(_) => Code::INTERNAL,
    }
}

fn launch(error: &LaunchError) -> Code {
    match error {
        LaunchError::Refused(_) => Code::INVALID_ARGUMENT,
        LaunchError::Internal(_) | LaunchError::Vanished | LaunchError::Child { .. } => Code::INTERNAL,
    }
}

fn cgroup(error: &cgroup::Error) -> Code {
    match error {
        cgroup::Error::Invalid(_) | cgroup::Error::Refused { .. } => Code::INVALID_ARGUMENT,
        cgroup::Error::Io { .. } | cgroup::Error::Slow { .. } => Code::INTERNAL,
    }
}

fn probe(error: &ProbeError) -> Code {
    match error {
        ProbeError::NotAPowerOfTwo(_) => Code::INVALID_ARGUMENT,
        ProbeError::TooMany { .. } => Code::FAILED_PRECONDITION,
        ProbeError::Gone(_) | ProbeError::Foreign(_) => Code::NOT_FOUND,
        ProbeError::System(..) | ProbeError::NoAnswer | ProbeError::Child(_) => Code::INTERNAL,
    }
}

fn stream(error: &StdioError) -> Code {
    match error {
        StdioError::Token { .. } | StdioError::Mixed => Code::INVALID_ARGUMENT,
        StdioError::NoTerminal => Code::FAILED_PRECONDITION,
        StdioError::Dial(..) | StdioError::Pipe(..) | StdioError::TerminalMissing | StdioError::Resize(_) => {
            Code::INTERNAL
        }
    }
}

fn storage(error: &StorageError) -> Code {
    match error {
        StorageError::Invalid(_) | StorageError::Mount { .. } | StorageError::Different { .. } => {
            Code::INVALID_ARGUMENT
        }
        StorageError::NotMounted(_) => Code::NOT_FOUND,
        StorageError::Grow { .. } => Code::FAILED_PRECONDITION,
        StorageError::NoRoom { .. } => Code::RESOURCE_EXHAUSTED,
        StorageError::Events(_)
        | StorageError::NoDisk { .. }
        | StorageError::Io { .. }
        | StorageError::Entries { .. }
        | StorageError::Busy { .. }
        | StorageError::Thread(_) => Code::INTERNAL,
    }
}
