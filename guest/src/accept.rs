//! Accepts the next connection. An error of accept(2), such as EMFILE, is not final: the call is repeated.

use std::io;
use std::time::Duration;

use hypervisor::{GuestListener, GuestStream};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// Pause between two attempts where the process or the host has no descriptor or memory left for one more: others end meanwhile,
/// and nothing tells when.
const PAUSE: Duration = Duration::from_millis(100);

/// Where connections come from.
pub trait Accept {
    /// An accepted connection.
    type Connection;
    /// Waits for the next connection; the errors are those of accept(2).
    fn accept(&mut self) -> impl Future<Output = io::Result<Self::Connection>> + Send;
}

impl Accept for GuestListener {
    type Connection = GuestStream;
    fn accept(&mut self) -> impl Future<Output = io::Result<GuestStream>> + Send {
        GuestListener::accept(self)
    }
}

impl Accept for TcpListener {
    type Connection = TcpStream;
    async fn accept(&mut self) -> io::Result<TcpStream> {
        TcpListener::accept(self).await.map(|(connection, _)| connection)
    }
}

impl Accept for UnixListener {
    type Connection = UnixStream;
    async fn accept(&mut self) -> io::Result<UnixStream> {
        UnixListener::accept(self).await.map(|(connection, _)| connection)
    }
}

/// The next connection. An error of accept(2) is about that connection or about what is short at the moment, not about the
/// socket that listens, which is as good as before.
pub async fn next<A: Accept>(what: &'static str, from: &mut A) -> A::Connection {
    let mut told = false;
    loop {
        match from.accept().await {
            Ok(connection) => return connection,
            // Whoever dialled has gone.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(%error, "{what} cannot be accepted at the moment");
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Short(Vec<i32>);

    impl Accept for Short {
        type Connection = &'static str;
        async fn accept(&mut self) -> io::Result<&'static str> {
            self.0
                .pop()
                .map_or(Ok("it"), |errno| Err(io::Error::from_raw_os_error(errno)))
        }
    }

    #[tokio::test]
    async fn a_connection_that_could_not_be_accepted_is_not_the_last() {
        let mut from = Short(vec![libc::EMFILE, libc::ECONNABORTED, libc::ENFILE]);
        assert_eq!(next("a connection", &mut from).await, "it");
    }
}
