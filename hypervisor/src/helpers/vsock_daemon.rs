//! vhost-device-vsock: carries one guest's vsock connections to Unix sockets.
//!
//! Unlike virtiofsd it cannot be given a listening socket. It makes its own socket without any notification, so the
//! directory is watched for the file. The daemon parses what the guest writes. So it sees only that directory, which also
//! contains our socket for the guest's connections ([`Jail`]).

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixListener;

use crate::boot_error::BootError;
use crate::machine::request::VmRequest;
use crate::machine::vsock::Cid;
use crate::process::child_name::ChildName;
use crate::process::children::{Child, Program, spawn};
use crate::process::files::SocketFile;
use crate::process::jail::Jail;
use crate::process::rootless::User;
use crate::process::sys::child::{Network, ProcessLimits};
use crate::process::vm_time;

/// Buffers of its connections.
pub(crate) const LIMITS: ProcessLimits = ProcessLimits {
    data: 256 << 20,
    threads: Some(16),
};

/// Timeout for the daemon to listen, in time that it has had. It needs some milliseconds.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes of a connection that the guest may send before it hears that the host has taken some (the daemon's default: 65536). The daemon says so
/// after three quarters of them. A guest has at most its own socket's buffer on the way, 256 KiB in Linux (`virtio_transport_tx_buf_size`):
/// more than a third above that, and it would wait for ever.
const TX_BUFFER: &str = "131072";

/// The pause while the daemon's socket has its name and does not listen yet.
const BETWEEN_BIND_AND_LISTEN: Duration = Duration::from_millis(1);

/// A daemon that listens, the socket that QEMU is to have, and ours for the guest's connections.
#[derive(Debug)]
pub(crate) struct VsockDaemon {
    pub(crate) child: Child,
    pub(crate) socket: OwnedFd,
    pub(crate) listener: UnixListener,
    pub(crate) listener_file: SocketFile,
    pub(crate) files: Vec<SocketFile>,
}

/// The directory of the daemon's sockets, below the run directory: all that it sees.
const DIRECTORY: &str = "vsock";

/// Listens for the guest on `port`, starts the daemon below the VM's directory, and connects to it for QEMU.
pub(crate) async fn start(program: PathBuf, request: &VmRequest, port: u32) -> Result<VsockDaemon, BootError> {
    let directory = request.run_dir.join(DIRECTORY);
    make(&directory).map_err(|source| BootError::Socket {
        path: directory.clone(),
        source,
    })?;
    let host_side = SocketFile::new(directory.join("vsock.sock"))?;
    // The daemon connects to the host side's name with the port at its end.
    let listener_file = SocketFile::new(directory.join(format!("vsock.sock_{port}")))?;
    let device_side = SocketFile::new(directory.join("vhost-vsock.sock"))?;
    let prepared = prepare(&program, &directory, listener_file.path());
    let (jail, listener) = prepared.map_err(|source| BootError::Socket {
        path: listener_file.path().to_owned(),
        source,
    })?;

    let waiting = NewFiles::watch(&directory).map_err(|source| BootError::Watch {
        path: directory.clone(),
        source,
    })?;
    let program = Program {
        child: ChildName::VsockDaemon,
        path: program,
        args: args(),
        // The jail has an empty one.
        network: Network::Inherited,
        root: None,
        user: None,
        capabilities: None,
        jail: Some(jail),
        limits: LIMITS,
        cgroup_procs: request.cgroup_procs.clone(),
        score: request.score,
        pass: Vec::new(),
    };
    let child = spawn(program).await?;
    let pid = child.handle().pid;
    let path = || device_side.path().to_owned();
    let socket = tokio::select! {
        death = child.handle().death() => return Err(BootError::ChildDied(death)),
        connected = connect(device_side.path(), waiting) => {
            connected.map_err(|source| BootError::Socket { path: path(), source })?
        }
        () = vm_time::has_passed(request.scale.of(START_TIMEOUT), || vec![pid]) => return Err(BootError::NotListening { path: path() }),
    };
    Ok(VsockDaemon {
        child,
        socket,
        listener,
        listener_file,
        files: vec![host_side, device_side],
    })
}

/// Makes the directory anew. A VM that ran here before leaves it empty, and another user's.
fn make(directory: &Path) -> io::Result<()> {
    match fs::remove_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    DirBuilder::new().mode(0o700).create(directory)
}

/// The directory and our socket in it, both the daemon's user's: it makes its sockets in the one and connects to the other.
fn prepare(program: &Path, directory: &Path, listener: &Path) -> io::Result<(Jail, UnixListener)> {
    let user = User::random()?;
    let bound = UnixListener::bind(listener)?;
    for path in [listener, directory] {
        chown(path, Some(user.number()), Some(user.number()))?;
    }
    let jail = Jail::of_vsock_daemon(program, directory.to_owned(), user)?;
    Ok((jail, bound))
}

/// Its sockets by their names alone: the directory is where it starts.
fn args() -> Vec<OsString> {
    let cid = Cid::ALONE.to_string();
    [
        "--guest-cid",
        &cid,
        "--socket",
        "vhost-vsock.sock",
        "--uds-path",
        "vsock.sock",
        "--tx-buffer-size",
        TX_BUFFER,
    ]
    .map(OsString::from)
    .to_vec()
}

/// Connects as soon as the socket is there and listens.
async fn connect(path: &Path, mut new_files: NewFiles) -> io::Result<OwnedFd> {
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return Ok(stream.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => new_files.next().await?,
            // bind(2) made the file, listen(2) is the daemon's next system call, and the kernel has no event for it.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                tokio::time::sleep(BETWEEN_BIND_AND_LISTEN).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Tells when a file has been made in a directory.
struct NewFiles(AsyncFd<OwnedFd>);

impl NewFiles {
    fn watch(directory: &Path) -> io::Result<Self> {
        let inotify = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        inotify::add_watch(&inotify, directory, inotify::WatchFlags::CREATE)?;
        Ok(Self(crate::process::sys::watch_readable(inotify)?))
    }

    async fn next(&mut self) -> io::Result<()> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        loop {
            let mut ready = self.0.readable().await?;
            let read = ready.try_io(|fd| Ok(inotify::Reader::new(fd, &mut buffer).next().map(drop)?));
            if let Ok(result) = read {
                return result;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_appears_later_is_connected_to() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let waiting = NewFiles::watch(directory.path()).unwrap();
        let daemon = async {
            fs::write(directory.path().join("other"), "").unwrap();
            tokio::task::yield_now().await;
            UnixListener::bind(&path).unwrap().accept().await.unwrap()
        };
        let (connected, _) = tokio::join!(connect(&path, waiting), daemon);
        connected.unwrap();
    }
}
