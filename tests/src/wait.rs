//! Waits for events, each with a bound. Nothing here sleeps or polls.
//!
//! The bounds are for a machine that runs the tests itself. Where it is emulated, everything takes a multiple of that:
//! [`patience`].

use std::{
    env,
    ffi::OsStr,
    io::{self, Read},
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::inotify,
    process::{Pid, PidfdFlags, pidfd_open},
};

use crate::{Error, Result};

/// A bound as it is on this machine: `TATAMI_TEST_PATIENCE` times as long, if that is set.
pub fn patience(bound: Duration) -> Duration {
    let factor = env::var("TATAMI_TEST_PATIENCE")
        .ok()
        .and_then(|factor| factor.parse().ok());
    bound * factor.unwrap_or(1)
}

/// Waits until `fd` is readable. False when `limit` has passed.
pub fn readable(fd: impl AsFd, limit: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// A handle to a process that stays valid when its pid is given to another (pidfd_open(2)). None if it is gone.
pub fn handle(pid: u32) -> Option<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

/// Waits until a process, which need not be a child, has ended.
pub fn gone(pid: u32, limit: Duration) -> Result<()> {
    let Some(process) = handle(pid) else { return Ok(()) };
    if readable(&process, limit).map_err(Error::io(format!("waiting for process {pid}")))? {
        return Ok(());
    }
    Err(Error::Timeout {
        what: format!("process {pid} ends"),
        limit,
    })
}

/// Waits, with [`patience`], until `done` holds of the directory `dir`, looking again after each change that inotify(7) reports there.
pub fn changed<T>(dir: &Path, limit: Duration, mut done: impl FnMut() -> Option<T>) -> Result<T> {
    let what = || format!("watching {}", dir.display());
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC).map_err(|error| Error::io(what())(error.into()))?;
    // Not what reading does: `done` reads, and would find its own traces for ever.
    let changes = inotify::WatchFlags::CREATE
        | inotify::WatchFlags::DELETE
        | inotify::WatchFlags::MOVE
        | inotify::WatchFlags::MODIFY
        | inotify::WatchFlags::ATTRIB
        | inotify::WatchFlags::CLOSE_WRITE;
    inotify::add_watch(&watch, dir, changes).map_err(|error| Error::io(what())(error.into()))?;
    let limit = patience(limit);
    let deadline = Instant::now() + limit;
    let mut space = [MaybeUninit::<u8>::uninit(); 4096];
    loop {
        if let Some(found) = done() {
            return Ok(found);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if !readable(&watch, left).map_err(Error::io(what()))? {
            return Err(Error::Timeout {
                what: format!("the wanted change in {}", dir.display()),
                limit,
            });
        }
        inotify::Reader::new(&watch, &mut space)
            .next()
            .map_err(|error| Error::io(what())(error.into()))?;
    }
}

/// Waits until the file `name` in `dir` has the wanted content, and gives that content.
pub fn content(dir: &Path, name: impl AsRef<OsStr>, limit: Duration, wanted: impl Fn(&str) -> bool) -> Result<String> {
    let file = dir.join(name.as_ref());
    changed(dir, limit, || {
        std::fs::read_to_string(&file).ok().filter(|text| wanted(text))
    })
}

/// Reads from `source` until what came satisfies `wanted`; gives everything that came.
pub fn text(
    mut source: impl Read + AsFd,
    limit: Duration,
    seen: &mut String,
    wanted: impl Fn(&str) -> bool,
) -> Result<()> {
    let deadline = Instant::now() + limit;
    let mut buffer = [0_u8; 4096];
    while !wanted(seen) {
        let left = deadline.saturating_duration_since(Instant::now());
        if !readable(&source, left)? {
            return Err(Error::Timeout {
                what: format!("the wanted text; so far: {seen:?}"),
                limit,
            });
        }
        // A terminal whose last writer has gone answers EIO (pty(7)), which is its end of file.
        let count = match source.read(&mut buffer) {
            Ok(count) => count,
            Err(error) if error.raw_os_error() == Some(nix::libc::EIO) => 0,
            Err(error) => return Err(error.into()),
        };
        if count == 0 {
            return Err(Error::unexpected(format!(
                "the stream ended before the wanted text: {seen:?}"
            )));
        }
        seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    Ok(())
}
