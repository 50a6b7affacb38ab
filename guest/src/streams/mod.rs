//! The standard streams of one process: files and FIFOs of containerd on one side, connections from the guest on the
//! other.
//!
//! The data is not framed. The end of an output is reported separately: with the exit the agent reports how many bytes
//! the process wrote, and when that many have been passed on, the stream is closed. After the process has ended, nothing
//! here waits without a limit. A stalled reader, or a guest that reports a wrong length, costs a limited time.

mod copy;
mod endpoint;
mod error;
mod logger;
mod registry;
mod wait;

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use protocol::agent::Stdio;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use self::copy::Finish;
use self::endpoint::{Hold, Input, Source, Target};
pub use self::error::StreamError;
use self::logger::Logger;
pub use self::logger::LoggerEnd;
use self::registry::RegisteredStream;
pub use self::registry::StreamRegistry;
pub use self::wait::Wait;

/// What containerd named, as it named it. Empty where there is no such stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StdioPaths {
    /// A FIFO.
    pub stdin: String,
    /// A FIFO or a URI.
    pub stdout: String,
    /// A FIFO or a URI. Not used with a terminal.
    pub stderr: String,
    /// One stream for both directions.
    pub terminal: bool,
}

/// What the agent said with the exit, or that it can say nothing any more.
#[derive(Debug, Clone, Copy)]
pub struct OutputLengths {
    /// Bytes of stdout or of the terminal; `None` if nobody knows.
    pub stdout: Option<u64>,
    /// Bytes of stderr.
    pub stderr: Option<u64>,
    /// Longest time without progress.
    pub patience: Duration,
}

/// Streams that are open on the host, and whose tokens are made up.
pub struct Prepared {
    stdio: Stdio,
    stdin: Option<(Input, RegisteredStream)>,
    outputs: Vec<(bool, Target, RegisteredStream)>,
    terminal: Option<(Option<Input>, Target, RegisteredStream)>,
    logger: Option<Logger>,
}

impl Prepared {
    /// Opens what `paths` names and makes up the tokens by which the guest's connections will be known.
    ///
    /// # Errors
    /// One of them cannot be opened.
    pub async fn open(
        paths: &StdioPaths,
        registry: &StreamRegistry,
        container: &str,
        namespace: &str,
    ) -> Result<Self, StreamError> {
        let mut prepared = Self {
            stdio: Stdio::new(),
            stdin: None,
            outputs: Vec::new(),
            terminal: None,
            logger: None,
        };
        let input = Input::open(&paths.stdin, paths.terminal)?;
        let (stdout, stderr) = match logger::parse(&paths.stdout)? {
            Some(command) => {
                let (logger, stdout, stderr) = Logger::spawn(command, container, namespace).await?;
                prepared.logger = Some(logger);
                (Some(stdout), Some(stderr))
            }
            None if paths.terminal => (Target::open("stdout", &paths.stdout).await?, None),
            None => (
                Target::open("stdout", &paths.stdout).await?,
                Target::open("stderr", &paths.stderr).await?,
            ),
        };
        if paths.terminal {
            let (token, dialled) = registry.register();
            prepared.stdio.terminal = token.to_vec();
            prepared.terminal = Some((input, stdout.unwrap_or_else(Target::nowhere), dialled));
            return Ok(prepared);
        }
        if let Some(input) = input {
            let (token, dialled) = registry.register();
            prepared.stdio.stdin = token.to_vec();
            prepared.stdin = Some((input, dialled));
        }
        if let Some(target) = stdout {
            let (token, dialled) = registry.register();
            prepared.stdio.stdout = token.to_vec();
            prepared.outputs.push((false, target, dialled));
        }
        if let Some(target) = stderr {
            let (token, dialled) = registry.register();
            prepared.stdio.stderr = token.to_vec();
            prepared.outputs.push((true, target, dialled));
        }
        Ok(prepared)
    }

    /// The tokens, for the agent.
    #[must_use]
    pub fn stdio(&self) -> Stdio {
        self.stdio.clone()
    }

    /// Takes the connections and begins to copy. The guest dials them before it says that the process is there.
    ///
    /// # Errors
    /// They have not come within `limit`.
    pub async fn connect(self, limit: Duration) -> Result<Streams, StreamError> {
        tokio::time::timeout(limit, self.connect_all())
            .await
            .map_err(|_| StreamError::NotDialled)?
    }

    async fn connect_all(self) -> Result<Streams, StreamError> {
        let mut streams = Streams {
            stdin: Mutex::default(),
            outputs: Mutex::default(),
            logger: Mutex::new(self.logger),
        };
        if let Some((input, target, dialled)) = self.terminal {
            let (output, to_guest) = tokio::io::split(dialled.connection().await?);
            streams.add_output(false, output, target);
            if let Some(input) = input {
                streams.set_stdin(input, to_guest);
            }
        }
        if let Some((input, dialled)) = self.stdin {
            streams.set_stdin(input, dialled.connection().await?);
        }
        for (is_stderr, target, dialled) in self.outputs {
            streams.add_output(is_stderr, dialled.connection().await?, target);
        }
        Ok(streams)
    }
}

struct Stdin {
    /// Our own writing end of the FIFO: it holds off the end of file until CloseIO.
    hold: Option<Hold>,
    /// Gone once nobody reads any more.
    source: Weak<Source>,
    task: JoinHandle<()>,
    length: Option<oneshot::Receiver<u64>>,
}

struct Output {
    is_stderr: bool,
    finish: watch::Sender<Option<Finish>>,
    task: JoinHandle<()>,
}

/// Streams that are being copied.
pub struct Streams {
    stdin: Mutex<Option<Stdin>>,
    outputs: Mutex<Vec<Output>>,
    logger: Mutex<Option<Logger>>,
}

impl Streams {
    fn set_stdin(&mut self, input: Input, connection: impl tokio::io::AsyncWrite + Send + Unpin + 'static) {
        let (tell, length) = oneshot::channel();
        let (source, hold) = input.into_parts();
        let source = Arc::new(source);
        let weak = Arc::downgrade(&source);
        let task = tokio::spawn(copy::input(source, connection, tell));
        self.stdin = Mutex::new(Some(Stdin {
            hold,
            source: weak,
            task,
            length: Some(length),
        }));
    }

    fn add_output(
        &mut self,
        is_stderr: bool,
        connection: impl tokio::io::AsyncRead + Send + Unpin + 'static,
        target: Target,
    ) {
        let (finish, ended) = watch::channel(None);
        let task = tokio::spawn(copy::output(connection, target, ended));
        let outputs = self.outputs.get_mut().unwrap_or_else(PoisonError::into_inner);
        outputs.push(Output {
            is_stderr,
            finish,
            task,
        });
    }

    /// Resolves to the number of bytes sent once stdin has ended. Can be had once; `None` if there is no stdin.
    pub fn stdin_length(&self) -> Option<oneshot::Receiver<u64>> {
        let mut stdin = self.stdin.lock().unwrap_or_else(PoisonError::into_inner);
        stdin.as_mut().and_then(|stdin| stdin.length.take())
    }

    /// The process runs: from now on stdin outlives its writers and ends with CloseIO alone, unless it has ended by now.
    ///
    /// A client that comes to the end of its own input before there is a task never calls CloseIO, and one that comes to it
    /// later does. A client that is restarted closes its end without a word: that is no end of input.
    pub fn hold_stdin(&self) {
        let mut stdin = self.stdin.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stdin) = stdin.as_mut()
            && stdin.hold.is_none()
            && let Some(source) = stdin.source.upgrade()
        {
            stdin.hold = source.hold();
        }
    }

    /// CloseIO: stdin ends once the client has closed it too.
    pub fn close_stdin(&self) {
        let mut stdin = self.stdin.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stdin) = stdin.as_mut() {
            stdin.hold = None;
        }
    }

    /// Passes on what is left of the output and closes everything. The logging program, where there is one, may not have ended by then.
    pub async fn finish(&self, lengths: OutputLengths) -> Option<LoggerEnd> {
        let stdin = self.stdin.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(stdin) = stdin {
            stdin.task.abort();
        }
        let outputs = std::mem::take(&mut *self.outputs.lock().unwrap_or_else(PoisonError::into_inner));
        for output in &outputs {
            let length = if output.is_stderr {
                lengths.stderr
            } else {
                lengths.stdout
            };
            let patience = lengths.patience;
            output.finish.send_replace(Some(Finish { length, patience }));
        }
        for output in outputs {
            if let Err(error) = output.task.await {
                tracing::error!(%error, "a stream's task failed");
            }
        }
        let logger = self.logger.lock().unwrap_or_else(PoisonError::into_inner).take();
        logger.map(Logger::finish)
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        if let Some(stdin) = self.stdin.get_mut().unwrap_or_else(PoisonError::into_inner) {
            stdin.task.abort();
        }
        for output in self.outputs.get_mut().unwrap_or_else(PoisonError::into_inner) {
            output.task.abort();
        }
    }
}
