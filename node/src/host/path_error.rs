//! The error of a failed call on a file of the host, for every part of the shim.

use std::io;
use std::path::PathBuf;

/// What was tried, on what, and why it failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}", path.display())]
pub struct PathError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl PathError {
    /// `operation` stands between "cannot" and the path.
    pub fn new(operation: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        Self {
            operation,
            path: path.into(),
            source: source.into(),
        }
    }
}
