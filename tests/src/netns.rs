//! A network namespace of the test's own. It lives as long as somebody has it open or runs in it, and has no name.

use std::{
    ffi::OsStr,
    fs::File,
    os::fd::{AsFd, AsRawFd},
    path::PathBuf,
    process::Command,
    thread,
};

use nix::sched::{CloneFlags, setns, unshare};

use crate::{Error, Result};

/// A network namespace.
#[derive(Debug)]
pub struct NetworkNamespace(File);

impl NetworkNamespace {
    /// Makes one in which nothing but loopback is up.
    pub fn new() -> Result<Self> {
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| Error::io("making a network namespace")(errno.into()))?;
            let file = File::open("/proc/thread-self/ns/net").map_err(Error::io("opening the network namespace"))?;
            let up = Command::new("ip").args(["link", "set", "lo", "up"]).output();
            let up = up.map_err(Error::io("running ip"))?;
            if up.status.success() {
                Ok(Self(file))
            } else {
                Err(Error::unexpected(String::from_utf8_lossy(&up.stderr)))
            }
        });
        joined(made)
    }

    /// A path by which other processes enter it, while this one has it open.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()))
    }

    /// A command that runs a program in it. The program keeps the pid of what is spawned.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.path().display()))
            .arg("--")
            .arg(program);
        command
    }

    /// Does something in it, in a thread of its own; a socket made there stays there.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        let file = self.0.try_clone().map_err(Error::io("sharing the network namespace"))?;
        joined(thread::spawn(move || {
            setns(file.as_fd(), CloneFlags::CLONE_NEWNET)
                .map_err(|errno| Error::io("entering the network namespace")(errno.into()))?;
            work()
        }))
    }
}

fn joined<T>(thread: thread::JoinHandle<Result<T>>) -> Result<T> {
    thread
        .join()
        .unwrap_or_else(|_| Err(Error::unexpected("a thread in a network namespace panicked")))
}
