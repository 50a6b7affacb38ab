//! Standard streams: one vsock connection each, raw bytes, between the host and a process's pipes or terminal.
//!
//! No connection is half-closed, and the agent does not close one first while its bytes matter, because vhost-user-vsock
//! drops data in flight at a close. The lengths are sent on another connection instead (`CloseStdin`, `ProcessExit`).
//!
//! Every stream is a task with one buffer: a slow host blocks only the process.

mod buffer;
mod channel;
mod input;
mod output;

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use protocol::agent::Stdio;
use protocol::preamble::{Preamble, TOKEN_LENGTH, Token};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use crate::connections::dial::Dialer;
use buffer::BUFFER;
use channel::Channel;
use tatami_agent::launch;

pub(crate) trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

type BoxedConnection = Box<dyn Connection>;

/// Why the streams of a process cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StdioError {
    #[error("the token of {stream} has {length} bytes instead of {TOKEN_LENGTH}")]
    Token {
        stream: &'static str,
        /// The token's length in bytes.
        length: usize,
    },
    /// A terminal and a single stream were asked for.
    #[error("a terminal takes no other stream")]
    Mixed,
    #[error("dial the host for {0}")]
    Dial(&'static str, #[source] io::Error),
    #[error("make a pipe for {0}")]
    Pipe(&'static str, #[source] io::Error),
    #[error("the process has no terminal")]
    NoTerminal,
    /// The launcher did not hand over the terminal that was asked for.
    #[error("no terminal was made for the process")]
    TerminalMissing,
    /// The size of the terminal cannot be set.
    #[error("resize the terminal")]
    Resize(#[source] io::Error),
}

/// Connections and our ends of the pipes, before the process exists.
pub(crate) struct Prepared {
    stdin: Option<(OwnedFd, BoxedConnection)>,
    stdout: Option<(OwnedFd, BoxedConnection)>,
    stderr: Option<(OwnedFd, BoxedConnection)>,
    terminal: Option<BoxedConnection>,
}

fn token(stream: &'static str, bytes: &[u8]) -> Result<Option<Token>, StdioError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let length = bytes.len();
    bytes
        .try_into()
        .map(Some)
        .map_err(|_| StdioError::Token { stream, length })
}

async fn dial(dialer: Dialer, stream: &'static str, bytes: &[u8]) -> Result<Option<BoxedConnection>, StdioError> {
    let Some(token) = token(stream, bytes)? else {
        return Ok(None);
    };
    match dialer.dial(Preamble::Stream(token)).await {
        Ok(connection) => Ok(Some(Box::new(connection))),
        Err(error) => Err(StdioError::Dial(stream, error)),
    }
}

/// Our end and the process's end, in that order; the direction is the caller's.
fn pipe(stream: &'static str) -> Result<(OwnedFd, OwnedFd), StdioError> {
    pipe_with(PipeFlags::CLOEXEC).map_err(|error| StdioError::Pipe(stream, error.into()))
}

/// Makes room for [`BUFFER`] bytes in a pipe, if that can be had: it is only faster.
///
/// The room counts for the guest's root, containers included, who gets pipes of two pages beyond `fs.pipe-user-pages-soft` (pipe(7)):
/// so it is for stdout alone, where most of the output is.
fn enlarge(pipe: &OwnedFd) {
    if let Err(error) = fcntl_setpipe_size(pipe, BUFFER) {
        tracing::debug!(%error, "a pipe keeps its size");
    }
}

impl Prepared {
    /// Dials what the host wants to see, and makes the pipes.
    ///
    /// # Errors
    /// A malformed token, a host that does not answer, no descriptors left.
    pub(crate) async fn new(dialer: Dialer, stdio: &Stdio) -> Result<(Self, launch::Stdio), StdioError> {
        if !stdio.terminal.is_empty() {
            if !(stdio.stdin.is_empty() && stdio.stdout.is_empty() && stdio.stderr.is_empty()) {
                return Err(StdioError::Mixed);
            }
            let terminal = dial(dialer, "terminal", &stdio.terminal).await?;
            return Ok((
                Self {
                    stdin: None,
                    stdout: None,
                    stderr: None,
                    terminal,
                },
                launch::Stdio::Terminal,
            ));
        }
        let (stdin, stdout, stderr) = tokio::try_join!(
            dial(dialer, "stdin", &stdio.stdin),
            dial(dialer, "stdout", &stdio.stdout),
            dial(dialer, "stderr", &stdio.stderr),
        )?;
        Self::with_pipes(stdin, stdout, stderr)
    }

    fn with_pipes(
        stdin: Option<BoxedConnection>,
        stdout: Option<BoxedConnection>,
        stderr: Option<BoxedConnection>,
    ) -> Result<(Self, launch::Stdio), StdioError> {
        let mut ends = [None, None, None];
        let mut prepared = Self {
            stdin: None,
            stdout: None,
            stderr: None,
            terminal: None,
        };
        if let Some(connection) = stdin {
            let (read, write) = pipe("stdin")?;
            prepared.stdin = Some((write, connection));
            ends[0] = Some(read);
        }
        if let Some(connection) = stdout {
            let (read, write) = pipe("stdout")?;
            enlarge(&write);
            prepared.stdout = Some((read, connection));
            ends[1] = Some(write);
        }
        if let Some(connection) = stderr {
            let (read, write) = pipe("stderr")?;
            prepared.stderr = Some((read, connection));
            ends[2] = Some(write);
        }
        let [stdin, stdout, stderr] = ends;
        Ok((prepared, launch::Stdio::Pipes { stdin, stdout, stderr }))
    }

    /// Starts to copy. `terminal` is the launched process's, where it has one.
    ///
    /// # Errors
    /// A descriptor cannot be watched, or the terminal is missing.
    pub(crate) fn start(self, terminal: Option<OwnedFd>) -> Result<Streams, StdioError> {
        let mut streams = Streams::default();
        if let Some(connection) = self.terminal {
            let master = Channel::new(
                terminal.ok_or(StdioError::TerminalMissing)?,
                Interest::READABLE | Interest::WRITABLE,
            )
            .map_err(|error| StdioError::Pipe("terminal", error))?;
            let (from_host, to_host) = tokio::io::split(connection);
            streams.tasks.spawn(input::terminal(from_host, master.clone()));
            streams.stdout = Some(streams.output(master.clone(), to_host, None::<tokio::io::Empty>));
            streams.terminal = Some(master);
            return Ok(streams);
        }
        if let Some((pipe, connection)) = self.stdin {
            let pipe = Channel::new(pipe, Interest::WRITABLE).map_err(|error| StdioError::Pipe("stdin", error))?;
            streams
                .tasks
                .spawn(input::pipe(connection, pipe, streams.stdin_length.subscribe()));
        }
        if let Some((pipe, connection)) = self.stdout {
            let pipe = Channel::new(pipe, Interest::READABLE).map_err(|error| StdioError::Pipe("stdout", error))?;
            let (from_host, to_host) = tokio::io::split(connection);
            streams.stdout = Some(streams.output(pipe, to_host, Some(from_host)));
        }
        if let Some((pipe, connection)) = self.stderr {
            let pipe = Channel::new(pipe, Interest::READABLE).map_err(|error| StdioError::Pipe("stderr", error))?;
            let (from_host, to_host) = tokio::io::split(connection);
            streams.stderr = Some(streams.output(pipe, to_host, Some(from_host)));
        }
        Ok(streams)
    }
}

/// The running streams of one process. Dropping it closes them all.
#[derive(Debug)]
pub(crate) struct Streams {
    tasks: JoinSet<()>,
    stdin_length: watch::Sender<Option<u64>>,
    ended: watch::Sender<bool>,
    stdout: Option<oneshot::Receiver<u64>>,
    stderr: Option<oneshot::Receiver<u64>>,
    terminal: Option<Channel>,
}

impl Default for Streams {
    fn default() -> Self {
        Self {
            tasks: JoinSet::new(),
            stdin_length: watch::Sender::new(None),
            ended: watch::Sender::new(false),
            stdout: None,
            stderr: None,
            terminal: None,
        }
    }
}

/// Resolves to the lengths of stdout and stderr once both are drained.
#[derive(Debug)]
pub(crate) struct Drained {
    stdout: Option<oneshot::Receiver<u64>>,
    stderr: Option<oneshot::Receiver<u64>>,
}

impl Drained {
    /// A stream that was closed before it was drained, by Delete, counts as empty.
    pub(crate) async fn lengths(self) -> (u64, u64) {
        let length = async |receiver: Option<oneshot::Receiver<u64>>| match receiver {
            Some(receiver) => receiver.await.unwrap_or(0),
            None => 0,
        };
        tokio::join!(length(self.stdout), length(self.stderr))
    }
}

impl Streams {
    fn output(
        &mut self,
        source: Channel,
        to_host: impl AsyncWrite + Send + Unpin + 'static,
        from_host: Option<impl AsyncRead + Send + Unpin + 'static>,
    ) -> oneshot::Receiver<u64> {
        let (drained, length) = oneshot::channel();
        self.tasks.spawn(output::copy(
            source,
            to_host,
            from_host,
            self.ended.subscribe(),
            drained,
        ));
        length
    }

    /// Says that the process is dead: its pipes are drained now, with a bound for others who hold them.
    pub(crate) fn process_ended(&mut self) -> Drained {
        self.ended.send_replace(true);
        Drained {
            stdout: self.stdout.take(),
            stderr: self.stderr.take(),
        }
    }

    /// The process's stdin is closed after `length` bytes in all. A terminal has no such end: its programs read ^D.
    pub(crate) fn close_stdin(&self, length: u64) {
        self.stdin_length.send_replace(Some(length));
    }

    /// Sets the size of the terminal.
    ///
    /// # Errors
    /// There is no terminal, or it is gone.
    pub(crate) fn resize(&self, columns: u16, rows: u16) -> Result<(), StdioError> {
        let terminal = self.terminal.as_ref().ok_or(StdioError::NoTerminal)?;
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(terminal.as_fd(), size).map_err(|error| StdioError::Resize(error.into()))
    }
}

#[cfg(test)]
mod tests;
