//! Waits for devices that appear and disappear.
//!
//! The kernel announces a device when all its files in /sys and its node in /dev exist (uevents, on a netlink socket).
//! For most callers an announcement only means that they should look again. [`added`] says which device has appeared.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::common::sys;

/// The kernel's multicast group of device events (`NETLINK_KOBJECT_UEVENT`, lib/kobject_uevent.c).
const KERNEL_EVENTS: u32 = 1;

/// The announcements from its making on.
#[derive(Debug)]
pub(crate) struct Uevents(AsyncFd<OwnedFd>);

impl Uevents {
    /// Listens. Made before the first look, so that nothing is missed between the two.
    pub(crate) fn listen() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            flags,
            Some(netlink::KOBJECT_UEVENT),
        )?;
        bind(&socket, &SocketAddrNetlink::new(0, KERNEL_EVENTS))?;
        sys::watched(socket, Interest::READABLE).map(Self)
    }

    /// Waits for the next one, and takes all that there are.
    pub(crate) async fn next(&self) -> io::Result<()> {
        self.next_of(|_| {}).await
    }

    /// The same, and calls `read` with each; with none if some were lost.
    pub(crate) async fn next_of(&self, read: impl FnMut(Option<&[u8]>)) -> io::Result<()> {
        let mut ready = self.0.readable().await?;
        drain(self.0.get_ref(), read)?;
        ready.clear_ready();
        Ok(())
    }
}

/// Reads everything that has been announced so far.
fn drain(socket: &OwnedFd, mut read: impl FnMut(Option<&[u8]>)) -> io::Result<()> {
    let mut message = [0; 8192];
    loop {
        match recv(socket, &mut message, RecvFlags::DONTWAIT) {
            Ok((length, _)) => read(Some(&message[..length.min(message.len())])),
            Err(rustix::io::Errno::NOBUFS) => read(None),
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// The path below /sys of a device that has appeared; none if the announcement is of something else. It begins with `ACTION@PATH`
/// (lib/kobject_uevent.c).
pub(crate) fn added(announcement: &[u8]) -> Option<&str> {
    let first = announcement.split(|byte| *byte == 0).next()?;
    std::str::from_utf8(first).ok()?.strip_prefix("add@")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_appears_is_named_by_its_path() {
        let cpu =
            b"add@/devices/system/cpu/cpu3\0ACTION=add\0DEVPATH=/devices/system/cpu/cpu3\0SUBSYSTEM=cpu\0SEQNUM=900\0";
        assert_eq!(added(cpu), Some("/devices/system/cpu/cpu3"));
        for other in [
            &b"remove@/devices/system/cpu/cpu3\0ACTION=remove\0"[..],
            b"libudev\0\xfe\xed",
            b"\xff@/x\0",
            b"",
        ] {
            assert_eq!(added(other), None);
        }
    }
}
