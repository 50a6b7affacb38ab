//! The socket between the agent and the child. It carries small, complete messages (SOCK_SEQPACKET, unix(7)).
//!
//! A successful `execve` closes the child's end: if the channel ends without a message after the gate was opened, the
//! launch has succeeded. The child uses only `read` and `write` when a seccomp filter may be active, because every
//! program needs these two.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::io::{Interest, unix::AsyncFd};

use super::{fault::Fault, sys};

/// Largest message, in bytes: a fault's text as JSON, at its worst, with room.
const MAX_MESSAGE: usize = 32 << 10;

/// Most descriptors in one message (SCM_MAX_FD, unix(7)).
const MAX_DESCRIPTORS: usize = 253;

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Order {
    /// The descriptors beside it are a [`super::instructions::Transfer`].
    Prepare,
    /// The gate is open: execute the program.
    Go,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Report {
    /// The process is made; its number in the guest's root PID namespace. Beside it goes a pidfd of it.
    Made(i32),
    /// Everything before the gate is done. Beside it goes the terminal's master, if there is a terminal.
    Ready,
    /// It cannot be done.
    Failed(Fault),
}

/// The two ends: the agent's, which does not block, and the child's, which does.
pub(super) fn pair() -> io::Result<(AgentEnd, OwnedFd)> {
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((AgentEnd(sys::watch(ours)?), theirs))
}

#[derive(Debug)]
pub(super) struct AgentEnd(AsyncFd<OwnedFd>);

impl AgentEnd {
    pub(super) async fn send(&self, order: &Order, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = serde_json::to_vec(order)?;
        self.0
            .async_io(Interest::WRITABLE, |socket| send(socket.as_fd(), &bytes, fds))
            .await
    }

    /// The next report, or nothing when the child has closed its end.
    pub(super) async fn receive(&self) -> io::Result<Option<(Report, Vec<OwnedFd>)>> {
        self.0
            .async_io(Interest::READABLE, |socket| receive(socket.as_fd()))
            .await
    }
}

#[derive(Debug)]
pub(super) struct ChildEnd(OwnedFd);

impl ChildEnd {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    pub(super) fn send(&self, report: &Report, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        send(self.0.as_fd(), &serde_json::to_vec(report)?, fds)
    }

    /// Sends by `write`, for when a seccomp filter may be in force.
    pub(super) fn say(&self, report: &Report) -> io::Result<()> {
        rustix::io::write(&self.0, &serde_json::to_vec(report)?)?;
        Ok(())
    }

    /// The next order, or nothing when the agent has lost interest.
    pub(super) fn receive(&self) -> io::Result<Option<(Order, Vec<OwnedFd>)>> {
        receive(self.0.as_fd())
    }
}

fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = vec![MaybeUninit::uninit(); SendAncillaryMessage::ScmRights(fds).size()];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && (fds.len() > MAX_DESCRIPTORS || !beside.push(SendAncillaryMessage::ScmRights(fds))) {
        return Err(io::Error::other("too many file descriptors for one message"));
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut beside, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive<T: DeserializeOwned>(socket: BorrowedFd<'_>) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let got = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut beside,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut fds = Vec::new();
    for message in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    if got.bytes == 0 {
        return Ok(None);
    }
    Ok(Some((serde_json::from_slice(&bytes[..got.bytes])?, fds)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn words_and_descriptors_arrive_and_the_end_is_seen() {
        let (agent, child) = pair().unwrap();
        let child = ChildEnd::new(child);
        let file = std::fs::File::open("/dev/null").unwrap();
        agent
            .send(&Order::Prepare, &[file.as_fd(), file.as_fd()])
            .await
            .unwrap();
        let (order, fds) = child.receive().unwrap().unwrap();
        assert!(matches!(order, Order::Prepare));
        assert_eq!(fds.len(), 2);
        child
            .send(&Report::Failed(Fault::Refused("\u{1}".repeat(9000)).bounded()), &[])
            .unwrap();
        child.say(&Report::Ready).unwrap();
        drop(child);
        assert!(matches!(
            agent.receive().await.unwrap(),
            Some((Report::Failed(Fault::Refused(_)), _))
        ));
        assert!(matches!(agent.receive().await.unwrap(), Some((Report::Ready, _))));
        assert!(agent.receive().await.unwrap().is_none());
    }

    /// Whatever comes through the socket from the child.
    #[tokio::test]
    async fn fuzz_child_channel() {
        let (agent, child) = pair().unwrap();
        let reader = rustix::io::dup(agent.0.get_ref()).unwrap();
        fuzz::run("child-channel", |bytes| {
            if bytes.is_empty() {
                return;
            }
            send(child.as_fd(), bytes, &[]).unwrap();
            let _ = receive::<Report>(reader.as_fd());
            let _ = serde_json::from_slice::<Order>(bytes);
        });
    }
}
