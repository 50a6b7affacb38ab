//! Sockets in the guest that represent sockets of the host: a container has one as a bind mount, and its connections are relayed.
//!
//! It owns each socket as long as a container has it. Only the host knows which of its sockets is meant.

mod datagrams;

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use protocol::agent::HostSocket;
use protocol::preamble::Token;
use relay::{Listener, Socket};
use rustix::fs::{Gid, Mode, Uid};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::common::ids::ContainerId;
use crate::connections::dial::Dialer;
use crate::connections::relays;

/// Connections to one socket at a time, and to all sockets of the sandbox: no one can have all.
const TO_ONE: usize = 128;
const TO_ALL: usize = 256;

/// Connections that wait to be accepted, as Docker's and SPIRE's servers have it at least.
const BACKLOG: i32 = 128;

#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    #[error("socket {number} of the host: {what} is out of range")]
    Description {
        /// The number that the host gave the socket.
        number: u32,
        what: &'static str,
    },
    #[error("socket {number} of the host: {step} {}", path.display())]
    Step {
        /// The number that the host gave the socket.
        number: u32,
        step: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

#[derive(Debug)]
pub(crate) struct HostSockets {
    dialer: Dialer,
    room: Arc<Semaphore>,
    shown: Mutex<HashMap<u32, Shown>>,
}

#[derive(Debug)]
struct Shown {
    users: HashSet<ContainerId>,
    path: PathBuf,
    _task: JoinSet<()>,
}

impl HostSockets {
    pub(crate) fn new(dialer: Dialer) -> Self {
        Self {
            dialer,
            room: Arc::new(Semaphore::new(TO_ALL)),
            shown: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Shown>> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes those that a container needs and that are not there.
    ///
    /// # Errors
    /// One cannot be made; what was made goes with [`HostSockets::release`].
    pub(crate) fn acquire(&self, id: &ContainerId, wanted: &[HostSocket]) -> Result<(), SocketError> {
        let mut shown = self.lock();
        for socket in wanted {
            if let Some(there) = shown.get_mut(&socket.number) {
                there.users.insert(id.clone());
                continue;
            }
            let path = Path::new(protocol::SOCKET_DIRECTORY).join(socket.number.to_string());
            let task = self.open(socket, &path)?;
            let users = HashSet::from([id.clone()]);
            shown.insert(
                socket.number,
                Shown {
                    users,
                    path,
                    _task: task,
                },
            );
        }
        Ok(())
    }

    /// Lets go of a container's. One that nobody has any more is removed, and its connections are broken.
    pub(crate) fn release(&self, id: &ContainerId) {
        self.lock().retain(|_, socket| {
            if !socket.users.remove(id) || !socket.users.is_empty() {
                return true;
            }
            if let Err(error) = std::fs::remove_file(&socket.path) {
                tracing::warn!(path = %socket.path.display(), %error, "a socket is not removed");
            }
            false
        });
    }

    fn open(&self, socket: &HostSocket, path: &Path) -> Result<JoinSet<()>, SocketError> {
        let number = socket.number;
        let wrong = |what| SocketError::Description { number, what };
        let token: Token = socket.token.as_slice().try_into().map_err(|_| wrong("token"))?;
        let kind = match socket.kind {
            1 => SocketType::STREAM,
            2 => SocketType::DGRAM,
            5 => SocketType::SEQPACKET,
            _ => return Err(wrong("kind")),
        };
        let step = |step| {
            move |source: io::Error| SocketError::Step {
                number,
                step,
                path: path.to_owned(),
                source,
            }
        };
        let bound = bound(kind, path).map_err(step("bind"))?;
        let (uid, gid) = (Uid::from_raw(socket.uid), Gid::from_raw(socket.gid));
        rustix::fs::chown(path, Some(uid), Some(gid)).map_err(|errno| step("chown")(errno.into()))?;
        let mode = Mode::from_raw_mode(socket.mode & 0o7777);
        rustix::fs::chmod(path, mode).map_err(|errno| step("chmod")(errno.into()))?;
        let mut task = JoinSet::new();
        if kind == SocketType::DGRAM {
            let socket = Socket::new(bound).map_err(step("watch"))?;
            task.spawn(datagrams::relay(self.dialer, socket, token));
        } else {
            listen(&bound, BACKLOG).map_err(|errno| step("listen on")(errno.into()))?;
            let listener = Listener::new(bound).map_err(step("watch"))?;
            let rooms = vec![Arc::new(Semaphore::new(TO_ONE)), Arc::clone(&self.room)];
            task.spawn(relays::accept(self.dialer, listener, token, rooms));
        }
        Ok(task)
    }
}

fn bound(kind: SocketType, path: &Path) -> io::Result<OwnedFd> {
    std::fs::create_dir_all(protocol::SOCKET_DIRECTORY)?;
    // One that failed half-way.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}
