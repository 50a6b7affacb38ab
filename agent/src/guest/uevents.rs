//! Waits for devices that appear and disappear.
//!
//! The kernel announces a device when all its files in /sys and its node in /dev exist (uevents, on a netlink socket).
//! The announcement is not parsed; it only means that the caller should look again.

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
        let mut ready = self.0.readable().await?;
        drain(self.0.get_ref())?;
        ready.clear_ready();
        Ok(())
    }
}

/// Reads everything that has been announced so far.
fn drain(socket: &OwnedFd) -> io::Result<()> {
    let mut message = [0; 8192];
    loop {
        match recv(socket, &mut message, RecvFlags::DONTWAIT) {
            // So many that some were lost: as good as one.
            Ok(_) | Err(rustix::io::Errno::INTR | rustix::io::Errno::NOBUFS) => {}
            Err(rustix::io::Errno::AGAIN) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}
