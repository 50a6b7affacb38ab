//! `/iptables` and `/ip6tables`: the netfilter rules of the guest, in the format of iptables-save(8). As Kata's agent does it, a program is run
//! in the guest: here it comes from the host ([`Sandbox::run_program`]), and is the one that speaks nftables, as in today's distributions.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base::chain;
use guest::agent_client::printable;
use rustix::fs::OFlags;
use scrape::Reply;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;

use super::fifos::Fifos;
use crate::sandbox::Sandbox;
use crate::sandbox::console::ConsoleRequest;
use crate::sandbox::error::Error;

/// The program in the archive; its first argument says which it is.
const PROGRAM: &str = "/usr/sbin/xtables-nft-multi";

/// Longest output that is passed on, in bytes.
const OUTPUT: usize = 4 << 20;

/// Longest message of a failure, in bytes.
const MESSAGE: usize = 8 << 10;

/// Timeout for the program to end. Kata's clients wait for 3 s and more (`--wait`), and nothing here has a lock to wait for.
const PATIENCE: Duration = Duration::from_secs(30);

/// Tells the programs of one shim apart.
static NUMBER: AtomicU64 = AtomicU64::new(0);

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Program(#[from] Error),
    #[error("the streams of {PROGRAM} cannot be made")]
    Streams(#[from] io::Error),
    #[error("{0} ended with {1}: {2}")]
    Status(&'static str, u32, String),
    #[error("its output has more than {OUTPUT} bytes")]
    TooLong,
    #[error("it does not end within {} s", PATIENCE.as_secs())]
    Hangs,
}

/// The output of iptables-save or ip6tables-save.
pub(super) async fn get(sandbox: &Arc<Sandbox>, directory: &Path, v6: bool) -> Reply {
    let program = if v6 { "ip6tables-save" } else { "iptables-save" };
    match run(sandbox, directory, program, &[]).await {
        Ok(rules) => Reply::text(rules),
        Err(error) => failed(&error),
    }
}

/// Replaces the rules of each table that `rules` has (iptables-restore(8)).
pub(super) async fn set(sandbox: &Arc<Sandbox>, directory: &Path, v6: bool, rules: &[u8]) -> Reply {
    let program = if v6 { "ip6tables-restore" } else { "iptables-restore" };
    match run(sandbox, directory, program, rules).await {
        Ok(_) => Reply::text(String::new()),
        Err(error) => failed(&error),
    }
}

/// Where files are not shared, or the archive is not installed, it can never be done.
fn failed(failure: &Failure) -> Reply {
    let text = chain(failure) + "\n";
    match failure {
        Failure::Program(Error::Host { .. }) => Reply::not_implemented(text),
        Failure::Program(_) | Failure::Streams(_) | Failure::Status(..) | Failure::TooLong | Failure::Hangs => {
            Reply::failed(text)
        }
    }
}

async fn run(sandbox: &Arc<Sandbox>, directory: &Path, program: &'static str, input: &[u8]) -> Result<String, Failure> {
    let id = format!("ipt{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let fifos = Fifos::make(&directory.join(format!("console-{id}")), &["stdin", "stdout", "stderr"])?;
    let (mut output, mut errors) = (fifos.output("stdout")?, fifos.output("stderr")?);
    let stdin = Stdin(fifos.directory.join("stdin"));
    let request = ConsoleRequest {
        id,
        args: [PROGRAM, program].map(str::to_owned).to_vec(),
        env: Vec::new(),
        directory: fifos.directory.clone(),
        terminal: None,
    };
    let running = sandbox.run_program(request);
    let feeding = async {
        // A program that ends before it has read all says why.
        let _ = stdin.feed(input).await;
        std::future::pending().await
    };
    let (mut said, mut complained) = (Vec::new(), Vec::new());
    let ended = async {
        tokio::pin!(running);
        tokio::select! {
            ended = &mut running => ended.map_err(Failure::from),
            () = collect(&mut output, &mut said) => Err(Failure::TooLong),
            () = collect(&mut errors, &mut complained) => Err(Failure::TooLong),
            never = feeding => never,
        }
    };
    let status = tokio::time::timeout(PATIENCE, ended)
        .await
        .map_err(|_| Failure::Hangs)??;
    // All that the program wrote is in the FIFOs by now.
    for (from, to) in [(&mut output, &mut said), (&mut errors, &mut complained)] {
        let mut piece = [0; 4096];
        while let Ok(count @ 1..) = from.try_read(&mut piece) {
            to.extend_from_slice(&piece[..count]);
        }
    }
    if said.len() > OUTPUT {
        return Err(Failure::TooLong);
    }
    let text = |bytes: &[u8], longest| printable(&String::from_utf8_lossy(bytes), longest);
    match status {
        0 => Ok(text(&said, OUTPUT)),
        status => Err(Failure::Status(
            program,
            status,
            text(&complained, MESSAGE).trim_end().to_owned(),
        )),
    }
}

/// The FIFO that a program's input comes from.
struct Stdin(PathBuf);

impl Stdin {
    /// Writes all once the program's streams are open. What is written before into a FIFO that nobody has open is lost with its writer, and a
    /// reader that comes later waits for another one.
    async fn feed(&self, input: &[u8]) -> io::Result<()> {
        let (path, input) = (self.0.clone(), input.to_owned());
        // Opening waits for the reader (fifo(7)), and so may writing.
        let fed = move || File::options().write(true).open(path)?.write_all(&input);
        tokio::task::spawn_blocking(fed).await?
    }
}

impl Drop for Stdin {
    /// Whoever waits for a reader that does not come is let go: one comes, and goes.
    fn drop(&mut self) {
        let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
        let _ = File::options().read(true).custom_flags(nonblocking).open(&self.0);
    }
}

/// Reads until there is too much; it does not end before.
async fn collect(from: &mut pipe::Receiver, to: &mut Vec<u8>) {
    let mut piece = [0; 4096];
    while to.len() <= OUTPUT {
        match from.read(&mut piece).await {
            Ok(count @ 1..) => to.extend_from_slice(&piece[..count]),
            // It is open for writing, too: there is no end.
            Ok(0) | Err(_) => std::future::pending().await,
        }
    }
}
