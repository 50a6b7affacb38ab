//! `kata-ctl iptables get|set`: a guest's netfilter rules, by the management API of its shim (`/iptables`, `/ip6tables`).

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::arguments::IptablesCommand;
use crate::report::Report;
use crate::sandboxes::{self, FindError};

/// Largest file that the shim takes, in bytes.
const LARGEST: usize = 64 << 10;

/// Largest answer that is read, in bytes: the shim sends less.
const ANSWER: u64 = 8 << 20;

/// Timeout for the shim to answer. It gives the program in the guest 30 s.
const PATIENCE: Duration = Duration::from_secs(45);

#[derive(Debug, thiserror::Error)]
pub(crate) enum IptablesError {
    #[error(transparent)]
    Find(#[from] FindError),
    #[error("cannot read {}", .0.display())]
    File(PathBuf, #[source] io::Error),
    #[error("{} has more than {LARGEST} bytes", .0.display())]
    TooLarge(PathBuf),
    #[error("the shim of sandbox {0} does not answer")]
    Shim(String, #[source] io::Error),
    /// The shim or the program in the guest refuses.
    #[error("{0}")]
    Refused(String),
}

pub(crate) async fn report(command: &IptablesCommand) -> Result<Report, IptablesError> {
    let (guest, method, rules) = match command {
        IptablesCommand::Get { guest } => (guest, "GET", Vec::new()),
        IptablesCommand::Set { guest, file } => (guest, "PUT", read(file)?),
    };
    let found = sandboxes::named(Path::new(sandboxes::ROOT), &guest.sandbox_id)?;
    let target = if guest.v6 { "/ip6tables" } else { "/iptables" };
    let socket = found.directory.join(protocol::MONITOR_SOCKET);
    let asked = tokio::time::timeout(PATIENCE, ask(&socket, method, target, &rules)).await;
    let asked = asked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let answer = asked.map_err(|error| IptablesError::Shim(found.id().to_owned(), error))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    match head.split(' ').nth(1) {
        Some("200") => Ok(Report {
            text: body.to_owned(),
            good: true,
        }),
        _ => Err(IptablesError::Refused(body.trim_end().to_owned())),
    }
}

fn read(file: &Path) -> Result<Vec<u8>, IptablesError> {
    let rules = std::fs::read(file).map_err(|error| IptablesError::File(file.to_owned(), error))?;
    match rules.len() > LARGEST {
        true => Err(IptablesError::TooLarge(file.to_owned())),
        false => Ok(rules),
    }
}

async fn ask(socket: &Path, method: &str, target: &str, body: &[u8]) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket).await?;
    let head = format!(
        "{method} {target} HTTP/1.1\r\nHost: shim\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body).await?;
    let mut answer = String::new();
    stream.take(ANSWER).read_to_string(&mut answer).await?;
    Ok(answer)
}
