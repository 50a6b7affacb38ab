//! A `ctr` that runs on a terminal of its own.

use std::{
    fs::File,
    io::{Read, Write},
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use nix::{
    pty::{Winsize, openpty},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{Error, Result, wait};

#[derive(Debug)]
pub struct Terminal {
    line: String,
    child: Child,
    screen: File,
    seen: String,
    deadline: Instant,
    limit: Duration,
}

impl Terminal {
    pub(crate) fn spawn(mut command: Command, line: String, rows: u16, columns: u16, limit: Duration) -> Result<Self> {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pty = openpty(Some(&size), None).map_err(|error| Error::io("opening a terminal")(error.into()))?;
        let screen = File::from(pty.master);
        command
            .stdin(pty.slave.try_clone()?)
            .stdout(pty.slave.try_clone()?)
            .stderr(pty.slave);
        let child = command.spawn().map_err(Error::io(format!("starting {line}")))?;
        Ok(Self {
            line,
            child,
            screen,
            seen: String::new(),
            deadline: Instant::now() + limit,
            limit,
        })
    }

    pub fn types(&mut self, text: &str) -> Result<()> {
        self.screen
            .write_all(text.as_bytes())
            .map_err(Error::io(format!("typing to {}", self.line)))
    }

    /// Waits until `text` has appeared, and forgets everything up to and including it.
    pub fn shows(&mut self, text: &str) -> Result<String> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        wait::text(&self.screen, left, &mut self.seen, |seen| seen.contains(text))
            .map_err(|error| Error::unexpected(format!("{}: waiting for {text:?}: {error}", self.line)))?;
        let end = self.seen.find(text).map_or(self.seen.len(), |at| at + text.len());
        let rest = self.seen.split_off(end);
        Ok(std::mem::replace(&mut self.seen, rest))
    }

    /// Everything that is shown until the end, read in pieces of at most `piece` bytes with a `pause` before each.
    pub fn read_slowly(&mut self, piece: usize, pause: Duration) -> Result<Vec<u8>> {
        let mut shown = std::mem::take(&mut self.seen).into_bytes();
        let mut buffer = vec![0; piece];
        loop {
            thread::sleep(pause);
            let left = self.deadline.saturating_duration_since(Instant::now());
            if !wait::readable(&self.screen, left)? {
                return Err(Error::Timeout {
                    what: format!("{} ends; it has shown {} bytes", self.line, shown.len()),
                    limit: self.limit,
                });
            }
            match self.screen.read(&mut buffer) {
                Ok(count) => shown.extend_from_slice(&buffer[..count]),
                Err(error) if error.raw_os_error() == Some(nix::libc::EIO) => break,
                Err(error) => return Err(error.into()),
            }
        }
        // The kernel looks for bytes before it looks whether the writers have gone: some can have come in between.
        while let Ok(count @ 1..) = self.screen.read(&mut buffer) {
            shown.extend_from_slice(&buffer[..count]);
        }
        Ok(shown)
    }

    /// Changes the size, as a user does who drags the window's corner.
    pub fn resize(&mut self, rows: u16, columns: u16) -> Result<()> {
        let size = rustix::termios::Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(&self.screen, size)
            .map_err(|error| Error::io("resizing the terminal")(error.into()))?;
        // The kernel signals the terminal's foreground process group; `ctr` is not its session's leader, so it is told.
        let pid = i32::try_from(self.child.id()).map_err(|_| Error::unexpected("a pid that is no pid"))?;
        kill(Pid::from_raw(pid), Signal::SIGWINCH)
            .map_err(|error| Error::io("signalling the window's change")(error.into()))
    }

    /// Waits for the end; gives the exit code.
    pub fn wait(mut self) -> Result<Option<i32>> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if wait::gone(self.child.id(), left).is_err() {
            self.child.kill()?;
            self.child.wait()?;
            let what = format!("{} ends; on its terminal: {:?}", self.line, self.seen);
            return Err(Error::Timeout {
                what,
                limit: self.limit,
            });
        }
        Ok(self.child.wait()?.code())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
