//! Runs work that may block on a separate thread, so that the agent's single thread continues to answer signals and pings.

use std::io;

use tokio::sync::oneshot;

/// Runs it. Dropped, the work goes on.
///
/// Not on the runtime's own threads for this: there are at most 512, work that hangs would keep others from theirs, and where no thread
/// can be made the runtime panics.
///
/// # Errors
/// There can be no thread, or the work has panicked.
pub(crate) async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let (tell, told) = oneshot::channel();
    std::thread::Builder::new().name("work".to_owned()).spawn(move || {
        // Whoever asked may have gone.
        let _ = tell.send(work());
    })?;
    told.await.map_err(io::Error::other)
}
