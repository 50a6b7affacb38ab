//! A file that cannot be opened for writing for the time being, as a block device that hangs: a lease of it is not given up
//! (fcntl(2), "Leases"; for 45 s, if the host's `fs.lease-break-time` is the kernel's).
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::time::Duration;

/// `F_SETSIG` of `linux/fcntl.h`.
const SET_SIGNAL: libc::c_int = 10;

pub(crate) struct HungFile(File);

impl HungFile {
    pub(crate) fn new(path: &Path) -> Self {
        let hung = Self(File::open(path).unwrap());
        // One that is ignored, and not SIGIO, which would end the test.
        hung.fcntl(SET_SIGNAL, libc::SIGURG);
        hung.fcntl(libc::F_SETLEASE, libc::F_RDLCK);
        hung
    }

    fn fcntl(&self, command: libc::c_int, argument: libc::c_int) -> libc::c_int {
        // SAFETY: these commands take an integer or nothing.
        let answer = unsafe { libc::fcntl(self.0.as_raw_fd(), command, argument) };
        assert!(answer >= 0, "{command}: {}", std::io::Error::last_os_error());
        answer
    }

    /// Whether somebody waits for it to be opened.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.fcntl(libc::F_GETLEASE, 0) != libc::F_RDLCK
    }

    pub(crate) async fn is_opened(&self) {
        while !self.is_waited_for() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
