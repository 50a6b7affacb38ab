//! The program of a `binary://` URI: it gets the output on two pipes and writes the log itself.
//!
//! The interface is containerd's (docs of its runtime v2, "Logging"): stdout on descriptor 3, stderr on 4, and a pipe on
//! 5 that the program closes when it is ready; `CONTAINER_ID` and `CONTAINER_NAMESPACE` in its environment; the query of
//! the URI as its arguments.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base::spawn::{Accounting, Program, Score};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use percent_encoding::percent_decode_str;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use super::endpoint::Target;
use super::error::StreamError;

/// Timeout for the program to say that it is ready.
const READY: Duration = Duration::from_secs(10);

/// Timeout for the program to end by itself once its input has ended. Then it gets SIGTERM, if the process's record is to be removed.
const END: Duration = Duration::from_secs(2);

/// Timeout for the program to end after SIGTERM, in seconds: what containerd's own shim gives it (`binaryIOProcTermTimeout`).
const TERMINATION: Duration = Duration::from_secs(12);

#[derive(Debug, PartialEq, Eq)]
pub(super) struct LogCommand {
    path: PathBuf,
    arguments: Vec<String>,
}

/// Reads a `binary://` URI; none if it is another URI.
pub(super) fn parse(uri: &str) -> Result<Option<LogCommand>, StreamError> {
    let Some(rest) = uri.strip_prefix("binary://") else {
        return Ok(None);
    };
    let refused = |reason| StreamError::Uri {
        uri: uri.to_owned(),
        reason,
    };
    let rest = rest.split('#').next().unwrap_or_default();
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let path = decode(path, false).ok_or_else(|| refused("the path is not valid"))?;
    if !Path::new(&path).is_absolute() {
        return Err(refused("the program's path is not absolute"));
    }
    let mut arguments = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        for part in [key, value] {
            arguments.push(decode(part, true).ok_or_else(|| refused("the query is not valid"))?);
        }
    }
    Ok(Some(LogCommand {
        path: PathBuf::from(path),
        arguments,
    }))
}

/// Percent-decoding (RFC 3986, 2.1); in a query a plus is a space. None if an escape is not whole, which the crate would leave as it is.
fn decode(text: &str, query: bool) -> Option<String> {
    let is_escape = |rest: &str| rest.len() >= 2 && rest.bytes().take(2).all(|byte| byte.is_ascii_hexdigit());
    if !text.split('%').skip(1).all(is_escape) {
        return None;
    }
    let text = if query { text.replace('+', " ") } else { text.to_owned() };
    let text = percent_decode_str(&text).decode_utf8().ok()?;
    // No argument of a program can hold a NUL.
    (!text.contains('\0')).then(|| text.into_owned())
}

/// A running logging program.
pub(super) struct Logger {
    child: Child,
    path: PathBuf,
}

impl Logger {
    /// Starts it, waits until it is ready, and gives the pipes it reads stdout and stderr from.
    pub(super) async fn spawn(
        command: LogCommand,
        container: &str,
        namespace: &str,
    ) -> Result<(Self, Target, Target), StreamError> {
        let path = command.path.clone();
        let failed = |source| StreamError::Logger {
            path: path.clone(),
            source,
        };
        let (stdout, child_stdout) = pipe_for_child().map_err(failed)?;
        let (stderr, child_stderr) = pipe_for_child().map_err(failed)?;
        let (child_ready, mut ready) = pipe::pipe().map_err(failed)?;
        let child_ready = child_ready.into_blocking_fd().map_err(failed)?;

        // It serves one container, and is not spared for that.
        let accounting = Accounting {
            score: Score::NotSpared,
            ..Accounting::default()
        };
        let program = Program::new(&command.path)
            .args(&command.arguments)
            .envs([("CONTAINER_ID", container), ("CONTAINER_NAMESPACE", namespace)])
            .accounting(accounting)
            .descriptors(vec![child_stdout, child_stderr, child_ready]);
        let mut program = Command::from(program.into_command().map_err(failed)?);
        let child = program.kill_on_drop(true).spawn().map_err(failed)?;
        // It owns our copies of the child's ends: with them neither the child nor we would see an end of file.
        drop(program);

        // Closing the pipe is the sign; so is its end, should it die.
        match timeout(READY, ready.read(&mut [0])).await {
            Ok(Ok(_)) => Ok((
                Self {
                    child,
                    path: command.path,
                },
                stdout,
                stderr,
            )),
            Ok(Err(error)) => Err(failed(error)),
            Err(_) => Err(failed(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("not ready within {} s", READY.as_secs()),
            ))),
        }
    }

    /// Its input has ended. It may go on until the process's record is removed: nerdctl's waits for the task's exit to be told.
    pub(super) fn finish(self) -> LoggerEnd {
        let (hurry, hurried) = watch::channel(false);
        let (lives, ended) = watch::channel(());
        let input_ended = Instant::now();
        tokio::spawn(async move {
            self.end(input_ended, hurried).await;
            drop(lives);
        });
        LoggerEnd { hurry, ended }
    }

    async fn end(mut self, input_ended: Instant, mut hurried: watch::Receiver<bool>) {
        tokio::select! {
            _ = self.child.wait() => return,
            // An error: the record is gone, and nobody waits.
            _ = hurried.wait_for(|hurried| *hurried) => {}
        }
        if timeout_at(input_ended + END, self.child.wait()).await.is_ok() {
            return;
        }
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) {
            // ESRCH: it has ended. Not yet reaped, it keeps its number.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        if timeout(TERMINATION, self.child.wait()).await.is_ok() {
            return;
        }
        tracing::warn!(program = %self.path.display(), "the logging program does not end and is killed");
        if let Err(error) = self.child.kill().await {
            tracing::warn!(%error, "the logging program cannot be killed");
        }
    }
}

/// A program whose input has ended.
pub struct LoggerEnd {
    hurry: watch::Sender<bool>,
    ended: watch::Receiver<()>,
}

impl LoggerEnd {
    /// Waits for its end, which is brought about if it does not come by itself: 14 s at most.
    pub async fn wait(&self) {
        self.hurry.send_replace(true);
        let mut ended = self.ended.clone();
        // Nothing is ever sent: an error is the end.
        let _ = ended.changed().await;
    }
}

fn pipe_for_child() -> io::Result<(Target, OwnedFd)> {
    let (sender, receiver) = pipe::pipe()?;
    Ok((Target::pipe(sender), receiver.into_blocking_fd()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_uri_is_read_or_refused(uri in "binary://\\PC{0,60}") {
            if let Ok(Some(command)) = parse(&uri) {
                prop_assert!(command.path.is_absolute());
                prop_assert!(command.arguments.iter().all(|argument| !argument.contains('\0')));
            }
        }
    }

    #[tokio::test]
    async fn a_program_has_what_the_interface_says_and_is_not_spared_by_the_oom_killer() {
        let directory = tempfile::tempdir().unwrap();
        let (program, found) = (directory.path().join("log"), directory.path().join("found"));
        let script = "#!/bin/sh\n(tr '\\0' '\\n' </proc/$$/environ | sort; cat /proc/self/oom_score_adj; ulimit -n) >$1\n\
                      exec 5>&-\ncat <&3 >>$1\ncat <&4 >>$1\n";
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile)
            .current
            .unwrap();
        base::spawn::raise_open_files().unwrap();
        let command = LogCommand {
            path: program,
            arguments: vec![found.to_str().unwrap().to_owned()],
        };
        let (logger, stdout, stderr) = Logger::spawn(command, "c", "n").await.unwrap();
        drop((stdout, stderr));
        logger.finish().wait().await;
        let score = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
        let score: i32 = score.trim().parse().unwrap();
        let wanted = format!("CONTAINER_ID=c\nCONTAINER_NAMESPACE=n\n{}\n{files}\n", score.max(0));
        assert_eq!(std::fs::read_to_string(found).unwrap(), wanted);
    }

    #[test]
    fn the_query_becomes_the_arguments() {
        let command = parse("binary:///usr/bin/log%20it?id=a+b&tag=%41").unwrap().unwrap();
        assert_eq!(command.path, Path::new("/usr/bin/log it"));
        assert_eq!(command.arguments, ["id", "a b", "tag", "A"]);
    }

    #[test]
    fn a_program_without_a_path_is_refused() {
        assert!(parse("binary://logger").is_err());
        assert!(parse("binary:///x%0").is_err());
        assert_eq!(parse("/run/fifo").unwrap(), None);
    }
}
