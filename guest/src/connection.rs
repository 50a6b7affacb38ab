//! A connection that the guest has dialled. It does not know its data.

use tokio::io::{AsyncRead, AsyncWrite};

/// The raw bytes of one connection that the guest has dialled.
pub trait GuestStream: AsyncRead + AsyncWrite + Send + Sync + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin + 'static> GuestStream for T {}

/// One connection that the guest has dialled.
pub type Connection = Box<dyn GuestStream>;
