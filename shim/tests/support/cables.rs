//! The connections between the fake guest and the host.

use std::io;
use std::sync::Mutex;

use tokio::net::UnixStream;

/// The guest's ends of its connections: they break when the VM ends.
#[derive(Default)]
pub(super) struct Cables(Mutex<Vec<std::os::unix::net::UnixStream>>);

impl Cables {
    /// A new connection: the guest's end, the host's end.
    pub(super) fn lay(&self) -> io::Result<(UnixStream, UnixStream)> {
        let (guest, host) = std::os::unix::net::UnixStream::pair()?;
        guest.set_nonblocking(true)?;
        host.set_nonblocking(true)?;
        self.0.lock().unwrap().push(guest.try_clone()?);
        Ok((UnixStream::from_std(guest)?, UnixStream::from_std(host)?))
    }

    /// Waits until the host has hung up the first few; false if it has not after 5 s. Blocks.
    pub(super) fn hung_up(&self, count: usize) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let cables: Vec<_> = {
            let cables = self.0.lock().unwrap();
            cables[..count].iter().map(|cable| cable.try_clone().unwrap()).collect()
        };
        let limit = Timespec { tv_sec: 5, tv_nsec: 0 };
        cables
            .iter()
            .all(|cable| poll(&mut [PollFd::new(cable, PollFlags::RDHUP)], Some(&limit)).unwrap() > 0)
    }

    pub(super) fn cut(&self) {
        for cable in self.0.lock().unwrap().drain(..) {
            // One that has been closed already is as good as cut.
            let _ = cable.shutdown(std::net::Shutdown::Both);
        }
    }
}
