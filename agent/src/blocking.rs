//! Work that may block runs on a thread of its own: the agent answers signals and pings on its one thread meanwhile.

use std::io;

/// Runs it. Dropped, the work goes on.
///
/// # Errors
/// There can be no thread, or the work has panicked.
pub(crate) async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}
