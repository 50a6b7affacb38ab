//! Sockets among the host's files: finds them, determines their type, and connects to them.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use node::host_ns::HostNamespace;
use node::openat_beneath::name_of;
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, open, openat2, readlink};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

/// How long a service may take to accept, when its backlog is full.
const ACCEPTS: Duration = Duration::from_secs(10);

/// A socket of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// The path after all links are resolved.
    pub(super) path: PathBuf,
    pub(super) kind: SocketType,
    /// With the bits of its type (inode(7)).
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// The socket that a path leads to; none if it is something else. Its kind is not looked for. Blocks.
///
/// # Errors
/// There is nothing.
pub(super) fn socket(host: &HostNamespace, path: &Path) -> io::Result<Option<Found>> {
    let path = path.to_owned();
    let look = move || -> io::Result<Option<Found>> {
        let file = open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let stat = fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
            return Ok(None);
        }
        let path = readlink(name_of(&file), Vec::new())?.into_bytes();
        Ok(Some(Found {
            path: PathBuf::from(OsString::from_vec(path)),
            kind: SocketType::STREAM,
            mode: stat.st_mode,
            uid: stat.st_uid,
            gid: stat.st_gid,
        }))
    };
    host.run(look).map_err(io::Error::other)?
}

/// What kind it is, by which kind of socket it can be connected with: the kernel tells no other way that reaches across network
/// namespaces. Nobody sees the question for datagrams; a service of SOCK_SEQPACKET sees a connection that ends at once. Blocks.
pub(super) fn kind(host: &HostNamespace, path: &Path) -> (SocketType, Option<String>) {
    for kind in [SocketType::DGRAM, SocketType::SEQPACKET] {
        match connected_now(host, path, kind) {
            // EAGAIN: its backlog is full (unix(7)).
            Ok(()) | Err(Errno::AGAIN) => return (kind, None),
            Err(Errno::PROTOTYPE) => {}
            Err(errno) => {
                let warning = format!(
                    "{} on the host is taken for a socket of streams, because nobody can be asked now: {errno}",
                    path.display()
                );
                return (SocketType::STREAM, Some(warning));
            }
        }
    }
    (SocketType::STREAM, None)
}

fn connected_now(host: &HostNamespace, path: &Path, kind: SocketType) -> Result<(), Errno> {
    let path = path.to_owned();
    host.run(move || connect_to(&path, kind, SocketFlags::NONBLOCK).map(drop))
        .unwrap_or(Err(Errno::AGAIN))
}

/// Connects with what is there now. A link that has been put into the path leads nowhere. Blocks.
///
/// # Errors
/// There is no socket, or nobody listens.
pub(super) fn connected(host: &HostNamespace, path: &Path, kind: SocketType) -> io::Result<OwnedFd> {
    let path = path.to_owned();
    let made = host.run(move || connect_to(&path, kind, SocketFlags::empty()));
    Ok(made.map_err(io::Error::other)??)
}

fn connect_to(path: &Path, kind: SocketType, flags: SocketFlags) -> Result<OwnedFd, Errno> {
    let opened = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat2(CWD, path, opened, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
    if FileType::from_raw_mode(fstat(&file)?.st_mode) != FileType::Socket {
        return Err(Errno::NOTSOCK);
    }
    let socket = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC | flags, None)?;
    // connect(2) waits as long as send(2) would (socket(7), SO_SNDTIMEO).
    set_socket_timeout(&socket, Timeout::Send, Some(ACCEPTS))?;
    connect(&socket, &SocketAddrUnix::new(name_of(&file))?)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixDatagram, UnixListener};

    use rustix::net::{bind, listen};

    use super::*;

    #[test]
    fn a_socket_is_known_by_what_it_answers_to() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let host = HostNamespace::start_thread().unwrap();
        let _stream = UnixListener::bind(path("stream")).unwrap();
        let _datagrams = UnixDatagram::bind(path("dgram")).unwrap();
        let messages = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        bind(&messages, &SocketAddrUnix::new(path("seqpacket")).unwrap()).unwrap();
        listen(&messages, 1).unwrap();
        drop(UnixListener::bind(path("stale")).unwrap());
        for (name, wanted) in [
            ("stream", SocketType::STREAM),
            ("dgram", SocketType::DGRAM),
            ("seqpacket", SocketType::SEQPACKET),
        ] {
            assert_eq!(kind(&host, &path(name)), (wanted, None), "{name}");
            assert!(connected(&host, &path(name), wanted).is_ok(), "{name}");
        }
        let (stale, warning) = kind(&host, &path("stale"));
        assert!(stale == SocketType::STREAM && warning.is_some());
        assert!(connected(&host, &path("stale"), stale).is_err());
    }

    #[test]
    fn a_link_that_takes_a_sockets_place_leads_nowhere() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let host = HostNamespace::start_thread().unwrap();
        let _other = UnixListener::bind(path("other")).unwrap();
        std::os::unix::fs::symlink(path("other"), path("socket")).unwrap();
        let error = connected(&host, &path("socket"), SocketType::STREAM).unwrap_err();
        // The link itself is opened, and it is no socket.
        assert_eq!(error.raw_os_error(), Some(Errno::NOTSOCK.raw_os_error()));
        std::fs::write(path("file"), "").unwrap();
        connected(&host, &path("file"), SocketType::STREAM).unwrap_err();
    }
}
