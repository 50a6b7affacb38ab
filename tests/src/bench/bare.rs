//! A running bare guest, and the processes that serve it.

use std::{
    fs,
    io::Read,
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use super::pss::pss;
use crate::{Error, Result, sys, wait};

/// How long a bare guest may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(300);

/// A running bare guest. Dropped, it is killed.
pub(crate) struct Bare {
    qemu: Helper,
    console: ChildStdout,
    seen: String,
    begun: Instant,
    agent: Option<UnixListener>,
    _helpers: Vec<Helper>,
}

/// How long a guest took to a point.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// By the clock, in seconds.
    pub(crate) wall: f64,
    /// Of QEMU's threads on CPUs, in seconds.
    pub(crate) cpu: f64,
}

impl Bare {
    pub(crate) fn start(qemu: &mut Command, agent: Option<UnixListener>, helpers: Vec<Helper>) -> Result<Self> {
        let begun = Instant::now();
        let (qemu, console) = Helper::piped(qemu)?;
        Ok(Self {
            qemu,
            console,
            seen: String::new(),
            begun,
            agent,
            _helpers: helpers,
        })
    }

    /// Waits for a text on the console.
    pub(crate) fn shows(&mut self, text: &str) -> Result<Cost> {
        wait::text(&mut self.console, LIMIT, &mut self.seen, |seen| seen.contains(text))?;
        self.cost()
    }

    /// The first whole line on the console that starts with a text, and what it took until then.
    pub(crate) fn line(&mut self, start: &str) -> Result<(String, Cost)> {
        let find = |seen: &str| {
            let from = seen.find(start)?;
            let end = seen[from..].find('\n')?;
            Some(seen[from + start.len()..from + end].trim().to_owned())
        };
        wait::text(&mut self.console, LIMIT, &mut self.seen, |seen| find(seen).is_some())?;
        let line = find(&self.seen).ok_or_else(|| Error::unexpected("a line that was there is gone"))?;
        Ok((line, self.cost()?))
    }

    /// Waits for the first byte of the guest's first connection.
    pub(crate) fn calls(&self) -> Result<Cost> {
        self.first_call()?;
        self.cost()
    }

    /// Reads so many bytes from the guest's first connection; the seconds from the first to the last.
    pub(crate) fn pours(&self, bytes: usize) -> Result<f64> {
        let mut stream = self.first_call()?;
        let begun = Instant::now();
        let mut buffer = vec![0; 256 << 10];
        // One has been read.
        let mut left = bytes - 1;
        while left > 0 {
            match stream.read(&mut buffer)? {
                0 => {
                    return Err(Error::unexpected(format!(
                        "the guest's connection ends {left} bytes early"
                    )));
                }
                count => left = left.saturating_sub(count),
            }
        }
        Ok(begun.elapsed().as_secs_f64())
    }

    /// The guest's first connection, after its first byte.
    fn first_call(&self) -> Result<UnixStream> {
        let listener = self
            .agent
            .as_ref()
            .ok_or_else(|| Error::unexpected("a guest without vsock"))?;
        let late = || Error::Timeout {
            what: format!("the guest calls; its console: {}", self.seen),
            limit: LIMIT,
        };
        if !wait::readable(listener, LIMIT)? {
            return Err(late());
        }
        let (mut stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.read_exact(&mut [0])?;
        Ok(stream)
    }

    /// QEMU's memory, in MiB.
    pub(crate) fn memory(&self) -> Result<f64> {
        pss(self.qemu.0.id())
    }

    fn cost(&self) -> Result<Cost> {
        let wall = self.begun.elapsed().as_secs_f64();
        Ok(Cost {
            wall,
            cpu: cpu_seconds(self.qemu.0.id())?,
        })
    }
}

/// A process that ends with this one.
pub(crate) struct Helper(Child);

impl Helper {
    /// One that listens on `socket` when this returns.
    pub(crate) fn listening(command: &mut Command, socket: &Path) -> Result<Self> {
        let _ = fs::remove_file(socket);
        sys::die_with_parent(command);
        let helper = Self(
            command
                .stdin(Stdio::null())
                .spawn()
                .map_err(Error::io(format!("{command:?}")))?,
        );
        let dir = socket.parent().unwrap_or(Path::new("/"));
        wait::changed(dir, LIMIT, || socket.exists().then_some(()))?;
        Ok(helper)
    }

    /// One whose output is read.
    pub(crate) fn piped(command: &mut Command) -> Result<(Self, ChildStdout)> {
        sys::die_with_parent(command);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(Error::io(format!("{command:?}")))?;
        let stdout = child.stdout.take();
        let helper = Self(child);
        Ok((
            helper,
            stdout.ok_or_else(|| Error::unexpected("a child without its pipe"))?,
        ))
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // One that has ended already needs nothing.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The time of a process's threads on CPUs (`/proc/PID/task/TID/schedstat`, its first number, in ns).
fn cpu_seconds(pid: u32) -> Result<f64> {
    let mut nanoseconds = 0.0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread that has just ended is not there any more.
        let text = fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
        nanoseconds += text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0.0);
    }
    Ok(nanoseconds / 1e9)
}
