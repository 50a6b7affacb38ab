//! Why the streams of a process cannot be set up.

use std::io;
use std::path::PathBuf;

/// Why streams cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// Neither a FIFO's path nor a URI that is understood.
    #[error("{uri:?} is neither a FIFO's absolute path nor a file:// or binary:// URI: {reason}")]
    Uri {
        /// The URI that containerd named.
        uri: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// It is there, or not, and cannot be opened.
    #[error("cannot open {} for {name}", path.display())]
    Open {
        /// stdin, stdout or stderr.
        name: &'static str,
        /// The path of the FIFO or file.
        path: PathBuf,
        /// The operating system's error.
        #[source]
        source: io::Error,
    },
    /// The program of a binary:// URI.
    #[error("the logging program {} does not run", path.display())]
    Logger {
        /// The path of the logging program.
        path: PathBuf,
        /// The operating system's error.
        #[source]
        source: io::Error,
    },
    /// The process is there, and its streams are not connected.
    #[error("the guest did not connect the streams")]
    NotDialled,
}
