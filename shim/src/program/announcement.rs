//! How the server learns that `start` has printed its address. If `start` dies before, containerd considers the start as failed and does not
//! clean up, so the server has to end by itself.

use std::os::fd::OwnedFd;

use node::process::ProcessRef;
use node::sys;

/// `start`'s side: a server that it has started.
#[derive(Debug)]
pub(crate) struct Launched {
    /// None if it has ended by now.
    pub(crate) process: Option<ProcessRef>,
    /// A pipe or a socket whose other end is the server's [`Announcement`].
    pub(crate) announcement: OwnedFd,
}

impl Launched {
    /// Tells the server that its address has been printed.
    pub(crate) fn announced(self) {
        // containerd finds out that a server has ended.
        let _ = rustix::io::write(self.announcement, &[0]);
    }
}

#[derive(Debug)]
pub struct Announcement(OwnedFd);

impl From<OwnedFd> for Announcement {
    fn from(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }
}

impl Announcement {
    /// Resolves if `start` has ended without it.
    pub(crate) async fn lost(self) {
        if let Ok(announcement) = sys::watch(self.0)
            && announcement.readable().await.is_ok()
            // A socket whose other end has gone with something unread in it gives ECONNRESET, and no end of file.
            && rustix::io::retry_on_intr(|| rustix::io::read(announcement.get_ref(), &mut [0; 1])) != Ok(1)
        {
            return;
        }
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    #[tokio::test]
    async fn a_server_whose_start_dies_before_it_has_printed_the_address_learns_of_it() {
        let (ours, theirs) = rustix::pipe::pipe().unwrap();
        drop(theirs);
        Announcement(ours).lost().await;
        // With the member's answer unread.
        let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        let (ours, theirs) = pair.unwrap();
        rustix::io::write(&ours, b"adopted").unwrap();
        drop(theirs);
        Announcement(ours).lost().await;
        let (ours, announcement) = rustix::pipe::pipe().unwrap();
        let process = None;
        Launched { process, announcement }.announced();
        let limit = Duration::from_millis(20);
        tokio::time::timeout(limit, Announcement(ours).lost())
            .await
            .unwrap_err();
    }
}
