//! `kata-ctl exec`: a shell or a program in the guest itself, over the debug console.
//!
//! The streams are FIFOs in the sandbox's directory, as containerd makes them for its own execs; the shim copies them. The
//! program ends when this one does.

mod terminal;

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use protocol::diagnostics::{ConsoleRequest, ResizeConsoleRequest};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::sandboxes::{self, FindError, Shim, ShimError};
use terminal::RawTerminal;

/// What runs where nothing is named.
const SHELL: &str = "/bin/sh";

/// Where busybox's programs are in the guest.
const PATH: &str = "PATH=/bin";

/// Numbers of signal(7).
const SIGHUP: u32 = 1;
const SIGPIPE: u32 = 13;
const SIGTERM: u32 = 15;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ExecError {
    #[error(transparent)]
    Find(#[from] FindError),
    #[error(transparent)]
    Shim(#[from] ShimError),
    #[error("cannot {operation} {}", path.display())]
    Stream {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("this terminal cannot be used")]
    Terminal(#[source] io::Error),
}

/// Runs it; the answer is its exit code.
pub(crate) async fn run(wanted: &str, command: &[String], terminal: bool) -> Result<u32, ExecError> {
    let found = sandboxes::named(Path::new(sandboxes::ROOT), wanted)?;
    let shim = Shim::connect(&found).await?;
    let id = random_id();
    let streams = Streams::make(&found.directory, &id, terminal)?;
    let size = terminal
        .then(|| terminal::size(io::stdin().as_fd()))
        .flatten()
        .unwrap_or((80, 24));
    let mut env = vec![PATH.to_owned(), "HOME=/root".to_owned()];
    if let (true, Ok(kind)) = (terminal, std::env::var("TERM")) {
        env.push(format!("TERM={kind}"));
    }
    let request = ConsoleRequest {
        console_id: id.clone(),
        args: if command.is_empty() {
            vec![SHELL.to_owned()]
        } else {
            command.to_vec()
        },
        env,
        directory: streams.directory.display().to_string(),
        terminal,
        columns: size.0,
        rows: size.1,
        ..Default::default()
    };
    let outputs = streams.outputs()?;
    let stdin = streams.directory.join("stdin");
    let raw = if terminal {
        Some(RawTerminal::enter(io::stdin().as_fd()).map_err(ExecError::Terminal)?)
    } else {
        None
    };
    // Not waited for: standard input may never end.
    std::thread::spawn(move || pump(&stdin));
    let ended = oversee(&shim, &request, outputs).await;
    drop((raw, streams));
    ended
}

/// The program's life: until it ends, until nobody takes its output any more, or until we are told to end.
async fn oversee(shim: &Shim, request: &ConsoleRequest, outputs: Outputs) -> Result<u32, ExecError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(ExecError::Terminal)?;
    let mut hang_up = signal(SignalKind::hangup()).map_err(ExecError::Terminal)?;
    let (end, ended) = watch::channel(false);
    let copying = outputs.copy(ended);
    let console = async {
        let answer = shim.console(request).await;
        end.send_replace(true);
        answer
    };
    let resizing = async {
        if request.terminal {
            follow_size(shim, &request.console_id).await;
        }
        std::future::pending::<()>().await;
    };
    let work = async {
        tokio::pin!(console, copying);
        tokio::select! {
            biased;
            answer = &mut console => {
                // All that the program wrote is in the FIFOs by now.
                copying.await;
                answer.map_err(ExecError::from)
            }
            // As a program here would end that writes to nobody.
            () = &mut copying => Ok(128 + SIGPIPE),
        }
    };
    tokio::select! {
        status = work => status,
        () = resizing => Ok(0),
        _ = terminate.recv() => Ok(128 + SIGTERM),
        _ = hang_up.recv() => Ok(128 + SIGHUP),
    }
}

/// 128 bits for a name that nobody else has.
fn random_id() -> String {
    let mut bytes = [0; 16];
    // It can only be interrupted (getrandom(2)), and then the pid makes it another than that of any other process.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    let pid = std::process::id().to_le_bytes();
    bytes.iter_mut().zip(pid).for_each(|(byte, pid)| *byte ^= pid);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn follow_size(shim: &Shim, id: &str) {
    let Ok(mut changes) = signal(SignalKind::window_change()) else {
        return;
    };
    while changes.recv().await.is_some() {
        if let Some((columns, rows)) = terminal::size(io::stdin().as_fd()) {
            let request = ResizeConsoleRequest {
                console_id: id.to_owned(),
                columns,
                rows,
                ..Default::default()
            };
            // A terminal of the wrong size is no reason to end.
            let _ = shim.resize_console(&request).await;
        }
    }
}

/// The FIFOs. They go when this is dropped; if we are killed they go with the sandbox's directory.
struct Streams {
    directory: PathBuf,
    terminal: bool,
}

impl Drop for Streams {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl Streams {
    fn make(sandbox: &Path, id: &str, terminal: bool) -> Result<Self, ExecError> {
        let directory = sandbox.join(format!("console-{id}"));
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| ExecError::Stream {
                operation: "make",
                path,
                source,
            }
        };
        std::fs::create_dir(&directory).map_err(failed(&directory))?;
        let streams = Self { directory, terminal };
        for name in streams.names() {
            let path = streams.directory.join(name);
            let made = mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0);
            made.map_err(io::Error::from).map_err(failed(&path))?;
        }
        Ok(streams)
    }

    fn names(&self) -> &'static [&'static str] {
        if self.terminal {
            &["stdin", "stdout"]
        } else {
            &["stdin", "stdout", "stderr"]
        }
    }

    /// Our ends of the output. They are open for writing, too: without a writer the FIFO would be at its end before the
    /// shim has opened it (fifo(7)).
    fn outputs(&self) -> Result<Outputs, ExecError> {
        let open = |name: &str| {
            let path = self.directory.join(name);
            let opened = pipe::OpenOptions::new().read_write(true).open_receiver(&path);
            opened.map_err(|source| ExecError::Stream {
                operation: "open",
                path,
                source,
            })
        };
        Ok(Outputs {
            out: open("stdout")?,
            err: if self.terminal { None } else { Some(open("stderr")?) },
        })
    }
}

/// Copies our standard input. Blocks until the shim has opened the FIFO, and then until the input's end.
fn pump(fifo: &Path) {
    if let Ok(mut writer) = std::fs::File::options().write(true).open(fifo) {
        // The reader may go first: its program does not read.
        let _ = io::copy(&mut io::stdin().lock(), &mut writer);
    }
}

struct Outputs {
    out: pipe::Receiver,
    err: Option<pipe::Receiver>,
}

impl Outputs {
    /// Copies until the end, or until one of our outputs is closed.
    async fn copy(self, ended: watch::Receiver<bool>) {
        let out = copy(self.out, Output::Out, ended.clone());
        let Some(err) = self.err else {
            out.await;
            return;
        };
        let err = copy(err, Output::Err, ended);
        tokio::pin!(out, err);
        let first = tokio::select! {
            complete = &mut out => (complete, true),
            complete = &mut err => (complete, false),
        };
        match first {
            (true, true) => drop(err.await),
            (true, false) => drop(out.await),
            // Nobody takes it: the other one is of no use any more.
            (false, _) => {}
        }
    }
}

#[derive(Clone, Copy)]
enum Output {
    Out,
    Err,
}

impl Output {
    /// Writes all of it, on a thread of its own: who reads may take their time. False if nobody does.
    async fn write(self, bytes: Vec<u8>) -> bool {
        let writing = tokio::task::spawn_blocking(move || match self {
            Output::Out => {
                let mut out = io::stdout().lock();
                out.write_all(&bytes).and_then(|()| out.flush())
            }
            Output::Err => io::stderr().lock().write_all(&bytes),
        });
        matches!(writing.await, Ok(Ok(())))
    }
}

/// Copies what comes, and what is there when the program has ended. False if our output is closed.
async fn copy(mut from: pipe::Receiver, to: Output, mut ended: watch::Receiver<bool>) -> bool {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = tokio::select! {
            biased;
            read = from.read(&mut buffer) => read.unwrap_or(0),
            _ = ended.wait_for(|ended| *ended) => match from.try_read(&mut buffer) {
                Ok(count) => count,
                // Nothing is left.
                Err(_) => return true,
            },
        };
        if count == 0 {
            return true;
        }
        if !to.write(buffer[..count].to_vec()).await {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fifos_are_there_and_go_away() {
        let sandbox = tempfile::tempdir().unwrap();
        let streams = Streams::make(sandbox.path(), "ab", false).unwrap();
        let names = || std::fs::read_dir(sandbox.path().join("console-ab")).map(Iterator::count);
        assert_eq!(names().unwrap(), 3);
        drop(streams);
        assert!(names().is_err());
        assert_eq!(Streams::make(sandbox.path(), "cd", true).unwrap().names().len(), 2);
    }

    #[test]
    fn an_id_is_what_the_shim_takes_and_never_the_same() {
        let (one, other) = (random_id(), random_id());
        assert!(one.len() == 32 && one != other, "{one} {other}");
    }
}
