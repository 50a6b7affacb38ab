//! The one error of the framework. It owns how a failure is shown at the end of a test.

use std::{fmt, io, path::PathBuf, time::Duration};

/// What a fallible step of a test returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a step of a test did not succeed. `Debug` is what libtest prints, so it is the readable form.
#[derive(thiserror::Error)]
pub enum Error {
    /// A file that `make` should have made is not there.
    #[error("{path} is missing: `make {target}` makes it", path = path.display())]
    Missing { path: PathBuf, target: &'static str },
    /// A program that the machine should have is not in PATH.
    #[error("no {program} in PATH: `make deps` installs it")]
    NoProgram { program: String },
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    #[error("not within {limit:?}: {what}")]
    Timeout { what: String, limit: Duration },
    /// A command ended with a failure, or with a success where a failure was wanted.
    #[error("{command}\nexit code {code:?}\nstdout: {stdout}\nstderr: {stderr}")]
    Command {
        command: String,
        /// Its exit code; none after a signal.
        code: Option<i32>,
        stdout: String,
        stderr: String,
    },
    /// A call of CRI was answered with an error.
    #[error("{method}: {code:?}: {message}")]
    Rpc {
        method: String,
        code: tonic::Code,
        message: String,
    },
    /// The machine is not as it should be.
    #[error("{0}")]
    Unexpected(String),
}

impl Error {
    /// Wraps an I/O error with what was tried.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// A state that the test did not expect.
    pub fn unexpected(what: impl Into<String>) -> Self {
        Self::Unexpected(what.into())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        Self::Unexpected(format!("not the expected JSON: {error}"))
    }
}

impl From<io::Error> for Error {
    fn from(source: io::Error) -> Self {
        Self::Io {
            what: "in the test".to_owned(),
            source,
        }
    }
}
