//! The socket on which a member is claimed or retired, with whole messages (SOCK_SEQPACKET, unix(7)).
//!
//! ```text
//! member → Hello            shows at once whether the member can be claimed
//! member ← Claim + lock     or Retire
//! member → Adopted          after this the member is the sandbox's shim
//! member ← a byte           `start` has printed the address; if it ends before, so does the member
//! ```
//! A member that does not say hello in time gets no claim, so no claim waits in the queue of a stopped process.

use std::ffi::OsString;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use node::process::ProcessRef;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, recvmsg, sendmsg,
    socket_with,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Longest message, in bytes: an environment may have 128 KiB for a single variable (execve(2)). What is longer is a miss.
const LONGEST: usize = 512 << 10;

/// Connections that may wait: as many starts at once as have a chance.
const BACKLOG: i32 = 1024;

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Hello {
    pub(super) ready: bool,
    /// The process, which is the sandbox's server once it has adopted.
    pub(super) process: ProcessRef,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// To be a sandbox's shim. The lock on the sandbox's directory comes with it.
    Claim(Box<Claim>),
    Retire,
}

/// What makes a shim a sandbox's: all that one that `start` launches has by its arguments and by inheritance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Claim {
    pub(super) namespace: String,
    pub(super) sandbox: String,
    pub(super) bundle: PathBuf,
    pub(super) config_path: Option<PathBuf>,
    pub(super) debug: bool,
    pub(super) environment: Vec<(OsString, OsString)>,
    /// `/proc/self/cgroup` (cgroups(7)).
    pub(super) cgroups: String,
    /// proc_pid_oom_score_adj(5).
    pub(super) oom_score_adj: i32,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Adopted;

fn socket() -> io::Result<OwnedFd> {
    Ok(socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Listens where nobody does.
pub(super) fn listen_at(path: &Path) -> io::Result<OwnedFd> {
    let socket = socket()?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// The next connection. Blocks.
pub(super) fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(accept_with(listener, SocketFlags::CLOEXEC)?)
}

/// Connects to a member. Never waits: a member that has stopped takes no connections, and its queue may be full.
pub(super) fn connect_to(path: &Path) -> io::Result<OwnedFd> {
    let socket = socket()?;
    rustix::io::ioctl_fionbio(&socket, true)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Sends a message, with a descriptor if there is one. Never waits for room: there is some, or the other side does not read.
pub(super) fn send(socket: BorrowedFd<'_>, message: &impl Serialize, with: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > LONGEST {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    // Doubled by the kernel, for what it needs itself (socket(7)). What it does not grant shows when it is too little.
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(socket, LONGEST);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<BorrowedFd<'_>> = with.into_iter().collect();
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    sendmsg(socket, &[IoSlice::new(&bytes)], &mut ancillary, flags)?;
    Ok(())
}

/// Receives a message within the limit, and the descriptor that came with it.
///
/// # Errors
/// The other side has gone, or says something else, or says nothing (`TimedOut`).
pub(super) fn receive<T: DeserializeOwned>(
    socket: BorrowedFd<'_>,
    limit: Duration,
) -> io::Result<(T, Option<OwnedFd>)> {
    if !readable(socket, limit)? {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let mut bytes = vec![0; LONGEST];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags)?;
    let mut with = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            with = descriptors.last();
        }
    }
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let message = serde_json::from_slice(bytes.get(..received.bytes).unwrap_or_default())?;
    Ok((message, with))
}

/// Waits until there is something to read, or the other side has gone.
pub(super) fn readable(descriptor: BorrowedFd<'_>, limit: Duration) -> io::Result<bool> {
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&descriptor, PollFlags::IN)], Some(&left)) {
            Ok(count) => return Ok(count > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// A listener and a member's other end of a connection to it, for tests of either side.
#[cfg(test)]
pub(super) fn pair() -> (OwnedFd, OwnedFd) {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
}

impl Request {
    /// Sends the request, with the lock of the sandbox if it is a claim.
    pub(super) fn send(&self, socket: &OwnedFd, lock: Option<BorrowedFd<'_>>) -> io::Result<()> {
        send(socket.as_fd(), self, lock)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::MetadataExt;

    const SHORT: Duration = Duration::from_millis(20);

    #[test]
    fn a_claim_arrives_whole_with_its_lock() {
        let (ours, theirs) = pair();
        let file = tempfile::tempfile().unwrap();
        let claim = Claim {
            namespace: "n".to_owned(),
            sandbox: "s".to_owned(),
            bundle: "/b".into(),
            config_path: None,
            debug: true,
            environment: vec![("A".into(), "x".repeat(100_000).into())],
            cgroups: "0::/\n".to_owned(),
            oom_score_adj: -5,
        };
        let request = Request::Claim(Box::new(claim.clone()));
        request.send(&ours, Some(file.as_fd())).unwrap();
        let (received, lock) = receive::<Request>(theirs.as_fd(), SHORT).unwrap();
        let Request::Claim(received) = received else {
            panic!("another request")
        };
        assert_eq!(*received, claim);
        let inode = |file: &File| file.metadata().unwrap().ino();
        assert_eq!(inode(&lock.unwrap().into()), inode(&file));
    }

    #[test]
    fn who_says_nothing_and_who_has_gone_are_told_apart() {
        let (ours, theirs) = pair();
        let error = receive::<Hello>(ours.as_fd(), SHORT).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(theirs);
        let error = receive::<Hello>(ours.as_fd(), SHORT).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    /// Messages of whoever connects to a member, or is one.
    #[test]
    fn fuzz_pool_messages() {
        let (ours, theirs) = pair();
        fuzz::run("pool-messages", |bytes| {
            if bytes.is_empty() {
                return;
            }
            for _ in 0..3 {
                rustix::net::send(&ours, bytes, SendFlags::NOSIGNAL).unwrap();
            }
            let _ = receive::<Request>(theirs.as_fd(), SHORT);
            let _ = receive::<Hello>(theirs.as_fd(), SHORT);
            let _ = receive::<Adopted>(theirs.as_fd(), SHORT);
        });
    }
}
