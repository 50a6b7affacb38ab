//! Runs a program to its end, within bounds of time and memory.
//!
//! What counts as the end is the end of the program's process, not that of its output: a mount helper leaves a daemon behind that may keep the
//! streams open.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use super::Program;
use crate::tail::Tail;

/// Bytes that are kept of each stream.
const KEPT: usize = 256 << 10;

/// Bytes that a pipe can hold, unless its writer has CAP_SYS_RESOURCE (`pipe-max-size`, proc_sys_fs(5)).
const LARGEST_PIPE: usize = 1 << 20;

/// How a program ended.
#[derive(Debug)]
pub struct Finished {
    /// As from wait(2).
    pub status: ExitStatus,
    /// The end of its standard output, harmless to a terminal.
    pub stdout: String,
    /// The end of its standard error, harmless to a terminal.
    pub stderr: String,
}

/// Why a program did not run to its end.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what they are")]
pub enum RunError {
    /// It cannot be started or waited for.
    #[error("cannot be run: {0}")]
    Start(#[source] io::Error),
    /// It was killed with its process group.
    #[error("did not end within {} s and was killed: {said}", limit.as_secs())]
    TimedOut { limit: Duration, said: String },
}

impl Program {
    /// Runs it to its end and keeps the end of what it prints. Blocks, for `limit` at most: then its process group is killed.
    ///
    /// # Errors
    /// It cannot be started, or did not end in time.
    pub fn run(self, limit: Duration) -> Result<Finished, RunError> {
        let deadline = Instant::now() + limit;
        let mut command = self
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .into_command()
            .map_err(RunError::Start)?;
        let child = command.spawn().map_err(RunError::Start)?;
        drop(command);
        let mut running = Running(Some(child));
        let mut streams = running.streams().map_err(RunError::Start)?;
        let status = running.wait(&mut streams, deadline).map_err(RunError::Start)?;
        let [stdout, stderr] = streams.map(|stream| stream.tail.text());
        match status {
            Some(status) => Ok(Finished { status, stdout, stderr }),
            None => Err(RunError::TimedOut { limit, said: stderr }),
        }
    }
}

/// One of its output streams; without a pipe at its end.
struct Stream {
    pipe: Option<OwnedFd>,
    tail: Tail,
}

impl Stream {
    fn new(pipe: Option<OwnedFd>) -> io::Result<Self> {
        if let Some(pipe) = &pipe {
            rustix::io::ioctl_fionbio(pipe, true)?;
        }
        Ok(Self {
            pipe,
            tail: Tail::new(KEPT),
        })
    }

    /// Takes what is there, and no more than a pipe can hold: somebody may write without end.
    fn drain(&mut self) {
        let mut buffer = [0; 16 << 10];
        for _ in 0..LARGEST_PIPE / buffer.len() {
            let Some(pipe) = &self.pipe else { return };
            match rustix::io::read(pipe, &mut buffer) {
                Ok(count @ 1..) => self.tail.push(&buffer[..count]),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                // An error is an end as well.
                Ok(_) | Err(_) => self.pipe = None,
            }
        }
    }
}

/// Its process, which is killed with its group if it is dropped before its end.
struct Running(Option<Child>);

impl Running {
    fn streams(&mut self) -> io::Result<[Stream; 2]> {
        let child = self.0.as_mut().ok_or(io::ErrorKind::InvalidInput)?;
        let stdout = child.stdout.take().map(OwnedFd::from);
        let stderr = child.stderr.take().map(OwnedFd::from);
        Ok([Stream::new(stdout)?, Stream::new(stderr)?])
    }

    /// None if it has not ended by then.
    fn wait(&mut self, streams: &mut [Stream; 2], deadline: Instant) -> io::Result<Option<ExitStatus>> {
        let child = self.0.as_mut().ok_or(io::ErrorKind::InvalidInput)?;
        let pid = pid(child).ok_or(io::ErrorKind::InvalidInput)?;
        // A pidfd is readable once the process is dead (pidfd_open(2)).
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        loop {
            if let Some(status) = child.try_wait()? {
                streams.iter_mut().for_each(Stream::drain);
                self.0 = None;
                return Ok(Some(status));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let left = Timespec::try_from(left).map_err(io::Error::other)?;
            let pipes = streams
                .iter()
                .filter_map(|stream| stream.pipe.as_ref())
                .map(AsFd::as_fd);
            let watched = pipes.chain([pidfd.as_fd()]);
            let mut watched: Vec<_> = watched.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
            match poll(&mut watched, Some(&left)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            drop(watched);
            streams.iter_mut().for_each(Stream::drain);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(mut child) = self.0.take() else { return };
        // Not reaped yet, so the number is still the group's.
        if let Some(group) = pid(&child) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        // In an uninterruptible wait it does not die before that ends, and nobody is to wait for it. Without a thread it stays a zombie until this
        // process's end.
        let _ = std::thread::Builder::new()
            .name(String::from("reaper"))
            .spawn(move || child.wait());
    }
}

fn pid(child: &Child) -> Option<Pid> {
    i32::try_from(child.id()).ok().and_then(Pid::from_raw)
}
