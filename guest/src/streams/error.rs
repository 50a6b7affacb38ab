//! Why the streams of a process cannot be set up.

use std::io;
use std::path::PathBuf;

/// Why the streams of a process cannot be set up.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what they are")]
pub enum StreamError {
    /// Neither a FIFO's path nor a URI that is understood.
    #[error("{uri:?} is neither a FIFO's absolute path nor a file:// or binary:// URI: {reason}")]
    Uri { uri: String, reason: &'static str },
    /// It is there, or not, and cannot be opened.
    #[error("cannot open {} for {name}", path.display())]
    Open {
        /// stdin, stdout or stderr.
        name: &'static str,
        /// The path of the FIFO or file.
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the logging program {} does not run", path.display())]
    Logger {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The process is there, and its streams are not connected.
    #[error("the guest did not connect the streams")]
    NotDialled,
}
