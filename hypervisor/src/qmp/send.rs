//! Sends one line to QEMU, with the descriptor that a command may carry (unix(7), `SCM_RIGHTS`).

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::unix::OwnedWriteHalf;

#[derive(Debug)]
pub(super) struct Line {
    pub(super) bytes: Vec<u8>,
    /// QEMU takes the descriptors that have arrived by the time it runs the command.
    pub(super) file: Option<OwnedFd>,
}

impl Line {
    /// Writes all of it; the descriptor goes with the first byte.
    pub(super) async fn send(self, writer: &mut OwnedWriteHalf) -> io::Result<()> {
        let sent = match &self.file {
            Some(file) => {
                let socket = writer.as_ref();
                loop {
                    socket.writable().await?;
                    match socket.try_io(Interest::WRITABLE, || send_with(socket, &self.bytes, file)) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        sent => break sent?,
                    }
                }
            }
            None => 0,
        };
        writer.write_all(&self.bytes[sent..]).await
    }
}

fn send_with(socket: &tokio::net::UnixStream, bytes: &[u8], file: &OwnedFd) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files = [file.as_fd()];
    if !control.push(SendAncillaryMessage::ScmRights(&files)) {
        return Err(io::Error::other("no room for a descriptor in a message"));
    }
    Ok(sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?)
}
