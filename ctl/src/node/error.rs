//! Why a node is not changed or shown.

use std::io;
use std::path::PathBuf;

/// Why a node is not changed or shown.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NodeError {
    #[error("cannot {operation} {}", path.display())]
    Io {
        operation: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// Something else is where a configuration should be.
    #[error("{} is no configuration file: it is no file, or larger than 4 MiB", path.display())]
    NoConfiguration { path: PathBuf },
    /// A configuration that cannot be added to, or cleaned.
    #[error("{} {why}", path.display())]
    Configuration { path: PathBuf, why: String },
    /// A program of the node says no.
    #[error("`{command}` failed: {why}")]
    Program { command: String, why: String },
    #[error("no containerd, CRI-O, k3s or RKE2 on this node (programs and directories below {} were looked at)", root.display())]
    NoManager { root: PathBuf },
    /// A manager would not find the shim.
    #[error("no {} on the node: install the package, or unpack the archive, or use --copy-to", path.display())]
    NoShim { path: PathBuf },
    /// What was changed could not be taken back.
    #[error("{because}; taking the changes back failed, {} is left changed", path.display())]
    HalfWay {
        path: PathBuf,
        because: Box<Self>,
        source: Box<Self>,
    },
}
