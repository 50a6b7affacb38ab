//! Whether a sandbox's server listens. In doubt it counts as alive, because `start` and `delete` remove a sandbox that has no server.

use std::path::Path;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

/// Whether somebody listens on the socket, or may: only a socket that is not there, or that nobody has open, is known to be dead.
/// Never blocks: a server that is too busy to accept is one.
pub(crate) fn is_alive(socket: &Path) -> bool {
    match attempt(socket) {
        Ok(()) => true,
        Err(Errno::NOENT | Errno::CONNREFUSED) => false,
        Err(error) => {
            tracing::warn!(%error, socket = %socket.display(), "the sandbox's server cannot be reached, and is left alone");
            true
        }
    }
}

fn attempt(socket: &Path) -> rustix::io::Result<()> {
    let address = SocketAddrUnix::new(socket)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    connect(
        &socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?,
        &address,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn only_what_is_gone_is_dead() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("shim.sock");
        assert!(!is_alive(&path));
        let listener = UnixListener::bind(&path).unwrap();
        assert!(is_alive(&path));
        // Until nobody fits into its queue (EAGAIN).
        rustix::net::listen(&listener, 0).unwrap();
        let full: Vec<_> = (0..4).map(|_| attempt(&path)).collect();
        assert!(full.contains(&Err(Errno::AGAIN)), "{full:?}");
        assert!(is_alive(&path));
        drop(listener);
        assert!(!is_alive(&path));
        assert!(UnixStream::connect(&path).is_err());
        // EINVAL and ENOTDIR say nothing about a server.
        assert!(is_alive(&directory.path().join("x".repeat(200))));
        assert!(is_alive(&path.join("below")));
    }
}
