//! Runs other programs for their output, with limits of time and size. They are ended with all processes that they have
//! started.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

/// Bytes of output that are kept of each stream.
const KEPT: usize = 256 << 10;

#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    #[error("cannot be run")]
    Spawn(#[source] std::io::Error),
    #[error("has not ended within {} s", .0.as_secs())]
    TimedOut(Duration),
}

#[derive(Debug)]
pub(crate) struct Printed {
    pub(crate) out: String,
    pub(crate) err: String,
    pub(crate) success: bool,
    /// The exit status in words.
    pub(crate) status: String,
}

impl Printed {
    /// Both streams, and the status if it was not well.
    pub(crate) fn all(&self) -> String {
        let mut text = self.out.trim_end().to_owned();
        let more = [self.err.trim_end(), if self.success { "" } else { &self.status }];
        for part in more.into_iter().filter(|part| !part.is_empty()) {
            if !text.is_empty() {
                text.push('\n');
            }
            text.push_str(part);
        }
        text
    }
}

/// Where a program is: a path as it is, a bare name where execvp(3) would find it.
pub(crate) fn find(program: &Path, search: Option<&OsStr>) -> Option<PathBuf> {
    if program.components().count() > 1 || program.is_absolute() {
        return Some(program.to_owned());
    }
    let executable = |path: &PathBuf| {
        path.metadata()
            .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    };
    std::env::split_paths(search?)
        .map(|directory| directory.join(program))
        .find(executable)
}

/// Ends a program's whole process group.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // All have ended already: that is what was wanted.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// Runs a program without input. Whoever drops the future ends it.
pub(crate) async fn run(program: &Path, arguments: &[&str], limit: Duration) -> Result<Printed, CommandError> {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Messages that a developer can read, and no pager or colour.
        .env("LC_ALL", "C.UTF-8")
        .env("SYSTEMD_PAGER", "")
        .env("NO_COLOR", "1")
        .env("TERM", "dumb")
        .process_group(0)
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(CommandError::Spawn)?;
    let pid = child
        .id()
        .and_then(|pid| i32::try_from(pid).ok())
        .and_then(Pid::from_raw);
    let mut group = Group(pid);
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let ended = async {
        let (out, err) = tokio::join!(kept(out), kept(err));
        (out, err, child.wait().await)
    };
    let (out, err, status) = tokio::time::timeout(limit, ended)
        .await
        .map_err(|_| CommandError::TimedOut(limit))?;
    // Its number may be another's from here on.
    group.0 = None;
    let status = status.map_err(CommandError::Spawn)?;
    Ok(Printed {
        out,
        err,
        success: status.success(),
        status: status.to_string(),
    })
}

/// The beginning of a stream; the rest is read and dropped, so that the program ends.
async fn kept(stream: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut stream) = stream else {
        return String::new();
    };
    let mut kept = Vec::new();
    let mut buffer = vec![0; 16 << 10];
    let mut dropped = 0;
    // An error is an end as well.
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        let room = KEPT.saturating_sub(kept.len()).min(count);
        kept.extend_from_slice(&buffer[..room]);
        dropped += count - room;
    }
    let mut text = harmless(&kept);
    if dropped > 0 {
        text.push_str(&format!("\n[{dropped} more bytes]"));
    }
    text
}

/// Text that cannot drive a terminal.
pub(crate) fn harmless(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .chars()
        .filter(|c| *c != '\r')
        .map(|c| {
            if c.is_control() && c != '\n' && c != '\t' {
                '·'
            } else {
                c
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHELL: &str = "/bin/sh";

    #[tokio::test]
    async fn both_streams_and_the_status_are_told() {
        let limit = Duration::from_secs(60);
        let printed = run(Path::new(SHELL), &["-c", "echo out; echo err >&2; exit 3"], limit)
            .await
            .unwrap();
        assert_eq!(printed.all(), "out\nerr\nexit status: 3");
        let missing = run(Path::new("/nonexistent"), &[], limit).await;
        assert!(matches!(missing, Err(CommandError::Spawn(_))));
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_ended_with_its_children() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pid");
        let script = format!("sleep 1000 & echo $! >{}; wait", file.display());
        let hung = run(Path::new(SHELL), &["-c", &script], Duration::from_secs(3)).await;
        assert!(matches!(hung, Err(CommandError::TimedOut(_))));
        let pid: i32 = std::fs::read_to_string(file).unwrap().trim().parse().unwrap();
        let gone = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z ")
        };
        for _ in 0..200 {
            if gone() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("process {pid} still runs");
    }

    #[tokio::test]
    async fn a_flood_is_cut_and_cannot_drive_a_terminal() {
        let script = "head -c 1000000 /dev/zero | tr '\\0' x; printf '\\033[2J' >&2";
        let printed = run(Path::new(SHELL), &["-c", script], Duration::from_secs(60))
            .await
            .unwrap();
        assert!(printed.out.len() < KEPT + 100 && printed.out.ends_with("more bytes]"));
        assert_eq!(printed.err, "·[2J");
    }
}
