//! Local sockets without blocking, of any kind that has connections, and datagrams.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::net::{
    RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, accept_with, recv, send, shutdown, sockopt,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::frame::{LARGEST_CHUNK, LARGEST_MESSAGE};
use crate::sys;

fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    fcntl_setfl(&fd, fcntl_getfl(&fd)? | OFlags::NONBLOCK)?;
    sys::watched(fd, interest)
}

/// A connected socket.
#[derive(Debug)]
pub struct Socket {
    fd: AsyncFd<OwnedFd>,
    /// Whether what is sent in one call is received in one.
    messages: bool,
}

impl Socket {
    /// Takes a socket over.
    ///
    /// # Errors
    /// It is none, or cannot be watched.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let messages = sockopt::socket_type(&fd)? != SocketType::STREAM;
        let fd = watch(fd, Interest::READABLE | Interest::WRITABLE)?;
        Ok(Self { fd, messages })
    }

    /// The most that one call receives or sends, in bytes.
    #[must_use]
    pub fn largest(&self) -> usize {
        if self.messages { LARGEST_MESSAGE } else { LARGEST_CHUNK }
    }

    /// What has come; 0: the end. Descriptors and credentials that came along are dropped by the kernel. May be given up at any time.
    ///
    /// # Errors
    /// The connection is broken, or a message does not fit.
    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let flags = if self.messages {
            RecvFlags::TRUNC
        } else {
            RecvFlags::empty()
        };
        let receive = |fd: &OwnedFd| Ok(recv(fd, &mut *buffer, flags)?);
        let (received, length) = self.fd.async_io(Interest::READABLE, receive).await?;
        if length > received {
            return Err(Errno::MSGSIZE.into());
        }
        Ok(received)
    }

    /// Sends all of it: bytes of a stream, or one message.
    ///
    /// # Errors
    /// Nobody receives it.
    pub async fn send(&self, mut bytes: &[u8]) -> io::Result<()> {
        loop {
            let pass = |fd: &OwnedFd| Ok(send(fd, bytes, SendFlags::NOSIGNAL)?);
            let sent = self.fd.async_io(Interest::WRITABLE, pass).await?;
            bytes = bytes.get(sent..).unwrap_or_default();
            if bytes.is_empty() {
                return Ok(());
            }
        }
    }

    /// The peer reads the end after what has been sent.
    pub fn end_writing(&self) {
        // ENOTCONN: the peer is gone.
        let _ = shutdown(&self.fd, Shutdown::Write);
    }

    /// The peer cannot send any more (a Unix socket's gets EPIPE).
    pub fn end_reading(&self) {
        // As above.
        let _ = shutdown(&self.fd, Shutdown::Read);
    }

    /// Waits until nothing can be sent nor received any more (EPOLLHUP, epoll_ctl(2)): the peer has closed its socket, or both
    /// directions have ended.
    ///
    /// # Errors
    /// It cannot be watched for.
    pub async fn hung_up(&self) -> io::Result<()> {
        // The runtime keeps that the peer has ended its direction for good, and would not wait any more for the rest. An epoll of
        // its own is asked for nothing, and reports EPOLLHUP and EPOLLERR.
        let events = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(
            &events,
            &self.fd,
            epoll::EventData::new_u64(0),
            epoll::EventFlags::empty(),
        )?;
        let events = sys::watched(events, Interest::READABLE)?;
        events.readable().await?.retain_ready();
        Ok(())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A socket that connections come to.
#[derive(Debug)]
pub struct Listener(AsyncFd<OwnedFd>);

impl Listener {
    /// Takes over a socket that listens.
    ///
    /// # Errors
    /// It cannot be watched.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        watch(fd, Interest::READABLE).map(Self)
    }

    /// The next connection. May be given up at any time.
    ///
    /// # Errors
    /// As accept(2): there may be no descriptors left.
    pub async fn accept(&self) -> io::Result<Socket> {
        let accept = |fd: &OwnedFd| Ok(accept_with(fd, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?);
        Socket::new(self.0.async_io(Interest::READABLE, accept).await?)
    }
}
