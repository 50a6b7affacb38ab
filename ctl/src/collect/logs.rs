//! The section about logs: recent problems in the logs of the runtime, the shims and the guests' consoles.
//!
//! The shims log through containerd, so their lines are in containerd's log: the journal, or a file.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::page::Page;
use super::scope::Host;
use crate::command;
use crate::logs::Entry;
use crate::sandboxes;

/// Problems that are shown of each log.
const PROBLEMS: usize = 50;

/// Bytes of a log's end that are looked at.
const TAIL: u64 = 4 << 20;

/// Bytes of a console's end that are shown.
const CONSOLE: u64 = 8 << 10;

/// Timeout for the journal to find its lines.
const JOURNAL: Duration = Duration::from_secs(20);

/// Whose logs have the shims' lines: what runs a containerd, k3s and rke2 with one built in, and what uses one. A unit that
/// is not there has no lines.
const UNITS: [&str; 9] = [
    "containerd",
    "docker",
    "crio",
    "podman",
    "k3s",
    "k3s-agent",
    "rke2-server",
    "rke2-agent",
    "kubelet",
];

/// Where logs are on hosts without a journal.
const FILES: [&str; 6] = [
    "log/containerd.log",
    "log/containerd/containerd.log",
    "lib/rancher/k3s/agent/containerd/containerd.log",
    "lib/rancher/rke2/agent/containerd/containerd.log",
    "log/syslog",
    "log/messages",
];

pub(super) async fn logs(page: &Page, host: &Host) {
    page.heading("Runtime and shim logs");
    let mut any = journal(page, host).await;
    for file in FILES.map(|file| host.var.join(file)) {
        any |= log_file(page, host, &file);
    }
    if !any {
        page.missing("there is neither a journal nor a log of containerd's in the usual places");
    }
    consoles(page, host);
}

async fn journal(page: &Page, host: &Host) -> bool {
    let Some(program) = command::find(Path::new("journalctl"), host.search.as_deref()) else {
        page.line("No `journalctl`");
        return false;
    };
    // `--since` takes seconds since the epoch behind an `@` (systemd.time(7)).
    let since = format!("--since=@{}", host.since.div_euclid(1_000_000_000));
    let mut words = vec!["-q", "-o", "cat", "-a", "--no-pager", since.as_str()];
    for unit in UNITS {
        words.extend(["-u", unit]);
    }
    match command::run(&program, &words, JOURNAL).await {
        Ok(printed) => {
            problems(page, host, "the system journal", &printed.out);
            true
        }
        Err(error) => {
            page.missing(&format!("the journal: journalctl {}", base::chain(&error)));
            false
        }
    }
}

fn log_file(page: &Page, host: &Host, path: &Path) -> bool {
    match tail(path, TAIL) {
        Ok(text) => {
            problems(page, host, &format!("`{}`", path.display()), &text);
            true
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
        Err(error) => {
            page.missing(&format!("`{}` cannot be read: {error}", path.display()));
            false
        }
    }
}

/// Lines of ours that tell of something that went wrong.
fn problems(page: &Page, host: &Host, source: &str, log: &str) {
    let entries = log.lines().map(|line| (line, Entry::parse(line)));
    let ours = entries.filter(|(line, entry)| {
        let late = entry.time.is_none_or(|time| time >= host.since);
        let of_kata = !entry.sandbox.is_empty() || line.contains("kata");
        late && of_kata && entry.is_problem()
    });
    let lines: Vec<_> = ours.map(|(_, entry)| entry.to_string()).collect();
    if lines.is_empty() {
        page.line(&format!("No recent problems found in {source}."));
        return;
    }
    let start = lines.len().saturating_sub(PROBLEMS);
    page.line(&format!(
        "Recent problems found in {source} ({} of {}):",
        lines.len() - start,
        lines.len()
    ));
    page.code("", &lines[start..].join("\n"));
}

fn consoles(page: &Page, host: &Host) {
    page.heading("Guest consoles");
    let found = match sandboxes::all(&host.run) {
        Ok(found) => found,
        Err(error) => return page.missing(&base::chain(&error)),
    };
    if found.is_empty() {
        page.line("No sandboxes.");
    }
    for sandbox in found {
        let path = sandbox.directory.join("console.log");
        match tail(&path, CONSOLE) {
            Ok(text) if text.trim().is_empty() => {
                page.line(&format!("Sandbox `{}`: its console is empty.", sandbox.id()))
            }
            Ok(text) => {
                page.line(&format!("The end of the console of sandbox `{}`:", sandbox.id()));
                page.code("", &text);
            }
            // The file begins with the first thing that the guest prints; the kernel is told to be quiet.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && sandbox.directory.exists() => {
                page.line(&format!("Sandbox `{}`: its guest has printed nothing.", sandbox.id()));
            }
            Err(error) => page.missing(&format!("the console of sandbox `{}`: {error}", sandbox.id())),
        }
    }
}

/// The end of a regular file, from the beginning of a line.
fn tail(path: &Path, most: u64) -> std::io::Result<String> {
    let path: PathBuf = path.to_owned();
    let metadata = path.metadata()?;
    if !metadata.is_file() {
        return Err(std::io::Error::other("it is not a regular file"));
    }
    let mut file = File::open(path)?;
    let start = metadata.len().saturating_sub(most);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    let text = command::harmless(&bytes);
    Ok(match text.split_once('\n') {
        Some((_, rest)) if start > 0 => rest.to_owned(),
        _ => text,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_file_begins_with_a_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "first\nsecond\nthird\n").unwrap();
        assert_eq!(tail(file.path(), 10).unwrap(), "third\n");
        assert_eq!(tail(file.path(), 100).unwrap(), "first\nsecond\nthird\n");
        assert!(tail(Path::new("/dev/zero"), 10).is_err());
    }
}
