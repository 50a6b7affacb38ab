//! The `ctr` command: how one is built, run within a time limit, and what came of it.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{Error, Result, sys, terminal::Terminal, wait};

/// How long one `ctr` may take unless a test says otherwise: a boot, on a machine that boots others as well.
pub const LIMIT: Duration = Duration::from_secs(60);
/// How much of a stream an error shows.
const SHOWN: usize = 4000;

/// A `ctr` command that has not been started.
#[derive(Debug)]
#[must_use]
pub struct Ctr {
    program: PathBuf,
    args: Vec<OsString>,
    tail: Vec<OsString>,
    limit: Duration,
    name: &'static str,
    /// How many arguments say where the daemon is: they tell no command from another.
    hidden: usize,
}

impl Ctr {
    pub(crate) fn new(program: PathBuf, address: &Path, namespace: &str) -> Self {
        let mut ctr = Self {
            program,
            args: Vec::new(),
            tail: Vec::new(),
            limit: wait::patience(LIMIT),
            name: "ctr",
            hidden: 4,
        };
        ctr.args.extend([
            "--address".into(),
            address.into(),
            "--namespace".into(),
            namespace.into(),
        ]);
        ctr
    }

    /// `kata-ctl`, which runs and fails as `ctr` does.
    pub(crate) fn kata_ctl(program: PathBuf) -> Self {
        Self {
            program,
            args: Vec::new(),
            tail: Vec::new(),
            limit: wait::patience(LIMIT),
            name: "kata-ctl",
            hidden: 0,
        }
    }

    /// `docker`, which runs and fails as `ctr` does.
    pub(crate) fn docker(program: PathBuf, socket: &Path) -> Self {
        let host = format!("unix://{}", socket.display());
        Self {
            program,
            args: vec!["-H".into(), host.into()],
            tail: Vec::new(),
            limit: wait::patience(LIMIT),
            name: "docker",
            hidden: 2,
        }
    }

    /// Adds one argument, a flag for example.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Has a script run it: the script gets the program and its arguments as its own.
    pub fn run_by(mut self, script: PathBuf) -> Self {
        self.args.insert(0, std::mem::replace(&mut self.program, script).into());
        self.hidden += 1;
        self
    }

    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Adds what comes after all flags: the image, the id, the program.
    pub(crate) fn tail<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.tail.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// The program to run in the container, with its arguments.
    pub fn program<S: AsRef<OsStr>>(self, args: impl IntoIterator<Item = S>) -> Self {
        self.tail(args)
    }

    /// A script for the container's shell.
    pub fn sh(self, script: &str) -> Self {
        self.tail(["sh", "-c", script])
    }

    /// How long the whole command may take, with [`wait::patience`].
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = wait::patience(limit);
        self
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.args).args(&self.tail);
        sys::die_with_parent(&mut command);
        command
    }

    fn line(&self) -> String {
        let words: Vec<_> = self.args[self.hidden..]
            .iter()
            .chain(&self.tail)
            .map(|arg| arg.to_string_lossy())
            .collect();
        format!("{} {}", self.name, words.join(" "))
    }

    /// Starts the command with its standard streams as pipes.
    pub fn spawn(self) -> Result<Running> {
        let line = self.line();
        let mut child = self
            .command()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(Error::io(format!("starting {line}")))?;
        let stdin = child.stdin.take();
        let stdout = Collector::new(child.stdout.take());
        let stderr = Collector::new(child.stderr.take());
        Ok(Running {
            line,
            child,
            stdin,
            stdout,
            stderr,
            begun: Instant::now(),
            limit: self.limit,
        })
    }

    /// Starts the command, whose standard output the caller reads.
    pub(crate) fn piped(self) -> Result<(Child, ChildStdout)> {
        let line = self.line();
        let mut child = self
            .command()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // Its complaint at the end, that containerd is gone, is no news.
            .stderr(Stdio::null())
            .spawn()
            .map_err(Error::io(format!("starting {line}")))?;
        let stdout = child
            .stdout
            .take()
            .ok_or_else(|| Error::unexpected("a child without its pipe"))?;
        Ok((child, stdout))
    }

    /// Starts the command on a new terminal of the given size.
    pub fn terminal(self, rows: u16, columns: u16) -> Result<Terminal> {
        let line = self.line();
        Terminal::spawn(self.command(), line, rows, columns, self.limit)
    }

    /// Runs the command with an empty standard input.
    pub fn output(self) -> Result<Output> {
        self.output_with(Vec::new())
    }

    /// Runs the command, with `input` and then an end of file on its standard input.
    pub fn output_with(self, input: Vec<u8>) -> Result<Output> {
        let mut running = self.spawn()?;
        running.feed(input);
        running.wait()
    }

    /// Runs the command with its standard input from a file and its standard output to another.
    pub fn through(self, input: File, output: File) -> Result<Output> {
        let line = self.line();
        let mut child = self
            .command()
            .stdin(input)
            .stdout(output)
            .stderr(Stdio::piped())
            .spawn()?;
        let stdout = Collector::new(None::<File>);
        let stderr = Collector::new(child.stderr.take());
        Running {
            line,
            child,
            stdin: None,
            stdout,
            stderr,
            begun: Instant::now(),
            limit: self.limit,
        }
        .wait()
    }

    /// Runs the command, which must succeed, and gives its standard output.
    pub fn ok(self) -> Result<String> {
        Ok(self.output()?.success()?.stdout())
    }

    /// Runs the command, which must fail, and gives its standard error.
    pub fn fails(self) -> Result<String> {
        self.output()?.failure()
    }
}

/// A `ctr` that runs.
#[derive(Debug)]
pub struct Running {
    line: String,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Collector,
    stderr: Collector,
    begun: Instant,
    limit: Duration,
}

impl Running {
    /// Writes to the standard input, which stays open.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let stdin = self
            .stdin
            .as_mut()
            .ok_or_else(|| Error::unexpected("the standard input is closed already"))?;
        stdin
            .write_all(bytes)
            .and_then(|()| stdin.flush())
            .map_err(Error::io(format!("writing to {}", self.line)))
    }

    /// Closes the standard input.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Waits until `text` is in the standard output.
    pub fn shows(&self, text: &str) -> Result<()> {
        let left = self.limit.saturating_sub(self.begun.elapsed());
        if self
            .stdout
            .until(left, |bytes| String::from_utf8_lossy(bytes).contains(text))
        {
            return Ok(());
        }
        Err(Error::unexpected(format!("{} did not print {text:?}", self.line)))
    }

    /// The standard output so far.
    pub fn said(&self) -> String {
        self.stdout.so_far()
    }

    /// Sends a signal to `ctr`, which passes it on to the container's process.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).map_err(|_| Error::unexpected("a pid that is no pid"))?;
        kill(Pid::from_raw(pid), signal).map_err(|error| Error::io(format!("signalling {}", self.line))(error.into()))
    }

    /// Writes all of `input` from a thread and closes the standard input.
    fn feed(&mut self, input: Vec<u8>) {
        if let Some(mut stdin) = self.stdin.take() {
            // A program that reads less than it is given is no fault, so a broken pipe is none either.
            thread::spawn(move || stdin.write_all(&input));
        }
    }

    /// Waits for the end of the command, which is killed if it takes longer than its limit.
    pub fn wait(mut self) -> Result<Output> {
        let left = self.limit.saturating_sub(self.begun.elapsed());
        let in_time = wait::gone(self.child.id(), left).is_ok();
        if !in_time {
            self.child.kill()?;
        }
        let status = self.child.wait()?;
        let output = Output {
            command: self.line,
            code: status.code(),
            stdout: self.stdout.end(),
            stderr: self.stderr.end(),
            elapsed: self.begun.elapsed(),
        };
        if in_time {
            Ok(output)
        } else {
            Err(Error::Timeout {
                what: output.shown(),
                limit: self.limit,
            })
        }
    }
}

/// What came of a command.
#[derive(Debug, Clone)]
pub struct Output {
    command: String,
    /// Its exit code: none if a signal ended it.
    pub code: Option<i32>,
    /// Its standard output, byte for byte.
    pub stdout: Vec<u8>,
    /// Its standard error, byte for byte.
    pub stderr: Vec<u8>,
    /// How long it ran.
    pub elapsed: Duration,
}

impl Output {
    /// What came of a process that no command has run: `command` is what errors call it.
    pub(crate) fn of(command: &str, code: i32, [stdout, stderr]: [Vec<u8>; 2]) -> Self {
        Self {
            command: command.to_owned(),
            code: Some(code),
            stdout,
            stderr,
            elapsed: Duration::ZERO,
        }
    }

    /// The standard output as text.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// The standard error as text.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// The standard output as JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.stdout).map_err(|error| Error::unexpected(format!("{error}: {}", self.shown())))
    }

    /// Itself, if the exit code is 0.
    pub fn success(self) -> Result<Self> {
        self.code(0)
    }

    /// Itself, if the exit code is the one given.
    pub fn code(self, wanted: i32) -> Result<Self> {
        if self.code == Some(wanted) {
            Ok(self)
        } else {
            Err(self.error())
        }
    }

    /// Its standard error, if the exit code is not 0.
    pub fn failure(self) -> Result<String> {
        if self.code == Some(0) {
            Err(self.error())
        } else {
            Ok(self.stderr())
        }
    }

    fn error(&self) -> Error {
        Error::Command {
            command: self.command.clone(),
            code: self.code,
            stdout: end(&self.stdout),
            stderr: end(&self.stderr),
        }
    }

    fn shown(&self) -> String {
        self.error().to_string()
    }
}

fn end(stream: &[u8]) -> String {
    String::from_utf8_lossy(&stream[stream.len().saturating_sub(SHOWN)..]).into_owned()
}

/// Reads a stream to its end in a thread, so that no pipe fills up and blocks the command.
#[derive(Debug)]
struct Collector {
    shared: Arc<(Mutex<Collected>, Condvar)>,
}

#[derive(Debug, Default)]
struct Collected {
    bytes: Vec<u8>,
    ended: bool,
}

impl Collector {
    fn new(stream: Option<impl Read + Send + 'static>) -> Self {
        let shared: Arc<(Mutex<Collected>, Condvar)> = Arc::default();
        let collector = Self { shared: shared.clone() };
        thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            let mut stream = stream;
            loop {
                // What came before a read error is what the test shall see.
                let count = stream
                    .as_mut()
                    .map_or(0, |stream| stream.read(&mut buffer).unwrap_or(0));
                let mut collected = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
                collected.bytes.extend_from_slice(&buffer[..count]);
                collected.ended = count == 0;
                shared.1.notify_all();
                if count == 0 {
                    return;
                }
            }
        });
        collector
    }

    /// Waits until `wanted` holds of what came, or nothing more can come; false when `limit` has passed.
    fn until(&self, limit: Duration, wanted: impl Fn(&[u8]) -> bool) -> bool {
        let collected = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (collected, _) = self
            .shared
            .1
            .wait_timeout_while(collected, limit, |now| !now.ended && !wanted(&now.bytes))
            .unwrap_or_else(PoisonError::into_inner);
        wanted(&collected.bytes)
    }

    fn so_far(&self) -> String {
        let collected = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&collected.bytes).into_owned()
    }

    /// Everything, once the stream has ended. `ctr` is gone by then and nobody else has its pipes.
    fn end(self) -> Vec<u8> {
        self.until(wait::patience(LIMIT), |_| false);
        let mut collected = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut collected.bytes)
    }
}
