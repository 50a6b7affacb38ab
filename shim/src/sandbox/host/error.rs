//! Why the host could not do something for a container, and blocking work for one.

use std::error::Error;

/// The host could not do it.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The bundle's specification asks for what cannot be done.
    #[error(transparent)]
    Spec(Box<dyn Error + Send + Sync>),
    #[error(transparent)]
    Other(Box<dyn Error + Send + Sync>),
}

pub(super) fn other(error: impl Error + Send + Sync + 'static) -> HostError {
    HostError::Other(Box::new(error))
}

/// Runs blocking work on a thread of its own.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, HostError> + Send + 'static,
) -> Result<T, HostError> {
    tokio::task::spawn_blocking(work).await.map_err(other)?
}
