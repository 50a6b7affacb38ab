//! Why a cgroup does not do what it should.

use std::path::PathBuf;
use std::time::Duration;

use crate::common::timeouts::scaled;

/// How long the kernel may take to freeze, thaw or kill a cgroup: a process in an uninterruptible wait holds it up.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Why a cgroup does not do what it should.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The specification asks for what cgroup v2 cannot do.
    #[error("{0}")]
    Invalid(String),
    /// The kernel refuses a value of the specification.
    #[error("set {file} to {value:?}")]
    Refused {
        file: String,
        value: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{what} {path}")]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The kernel did not get there in time.
    #[error("the processes of {path} were not {what} within {} s", scaled(PATIENCE).as_secs_f64())]
    Slow { what: &'static str, path: PathBuf },
}

pub(super) fn failed(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::Io {
        what,
        path: path.into(),
        source,
    }
}
