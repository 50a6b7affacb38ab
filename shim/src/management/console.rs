//! The socket that `/agent-url` names. Kata's `exec` dials it as a hybrid vsock: it sends `CONNECT PORT\n`, receives
//! `OK PORT\n`, and then has a shell (kata-containers,
//! src/runtime/cmd/kata-runtime/kata-exec.go). Here nothing listens in the guest: for every port a debug console is started by
//! [`crate::sandbox::console`].
//!
//! The shell has a terminal of 80 columns and 24 rows, which does not follow the client's: Kata's protocol does not pass its
//! size on. It is ended when the client closes the connection.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base::chain;
use node::run_dir::RunDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use super::fifos::Fifos;
use crate::sandbox::Sandbox;
use crate::sandbox::console::ConsoleRequest;
use crate::service::SandboxCell;

/// Timeout for the client to name its port.
const PATIENCE: Duration = Duration::from_secs(5);

/// Longest first line, in bytes: `CONNECT 4294967295\n`.
const LINE: usize = 32;

/// Connections at once; others wait to be accepted.
const AT_ONCE: usize = 4;

/// Serves until the process ends. The socket goes with the sandbox's directory.
///
/// # Errors
/// The socket cannot be made.
pub(super) fn serve(run_dir: &RunDir, cell: &SandboxCell) -> io::Result<()> {
    let path = run_dir.path().join(protocol::CONSOLE_SOCKET);
    let mut listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, PermissionsExt::from_mode(0o600))?;
    let (cell, directory) = (Arc::clone(cell), run_dir.path().to_owned());
    tokio::spawn(async move {
        let places = Arc::new(Semaphore::new(AT_ONCE));
        for number in 0_u64.. {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            let stream = guest::accept::next("a debug console", &mut listener).await;
            let (cell, directory) = (Arc::clone(&cell), directory.clone());
            tokio::spawn(async move {
                let _place = place;
                if let Some(sandbox) = cell.get() {
                    answer(stream, sandbox, &directory, number).await;
                }
            });
        }
    });
    Ok(())
}

async fn answer(mut stream: UnixStream, sandbox: &Arc<Sandbox>, directory: &Path, number: u64) {
    let port = match tokio::time::timeout(PATIENCE, port(&mut stream)).await {
        Ok(Some(port)) => port,
        // A client of another protocol, or one that has gone.
        _ => return,
    };
    let said = match sandbox.console_allowed() {
        Ok(()) => format!("OK {port}\n"),
        Err(error) => chain(&error) + "\n",
    };
    let written = stream.write_all(said.as_bytes()).await;
    if written.is_err() || !said.starts_with("OK ") {
        return;
    }
    let id = format!("hv{number}");
    let fifos = match Fifos::make(&directory.join(format!("console-{id}")), &["stdin", "stdout"]) {
        Ok(fifos) => fifos,
        Err(error) => {
            tracing::warn!(%error, "a debug console cannot be opened");
            return;
        }
    };
    let request = ConsoleRequest {
        id,
        args: vec!["/bin/sh".to_owned()],
        env: ["PATH=/bin", "HOME=/root", "TERM=linux"].map(str::to_owned).to_vec(),
        directory: fifos.directory.clone(),
        terminal: Some((80, 24)),
    };
    live(stream, sandbox, request, &fifos).await;
}

/// The port that the client asks for; none if it says something else.
async fn port(stream: &mut UnixStream) -> Option<u32> {
    let mut line = Vec::new();
    // Byte by byte: what follows the line is the shell's.
    while line.len() < LINE {
        match stream.read_u8().await.ok()? {
            b'\n' => {
                let line = String::from_utf8(line).ok()?;
                return line.strip_prefix("CONNECT ")?.trim().parse().ok();
            }
            byte => line.push(byte),
        }
    }
    None
}

/// Copies until the shell has ended and all that it wrote is written, or until the client is gone.
async fn live(mut stream: UnixStream, sandbox: &Arc<Sandbox>, request: ConsoleRequest, fifos: &Fifos) {
    let (mut output, mut input) = match (fifos.output("stdout"), fifos.input("stdin")) {
        (Ok(output), Ok(input)) => (output, input),
        (Err(error), _) | (_, Err(error)) => {
            tracing::warn!(%error, "a debug console cannot be opened");
            return;
        }
    };
    let (mut from_client, mut to_client) = stream.split();
    let console = sandbox.run_console(request);
    let typed = async {
        // Its end is the client's end, whatever the reason.
        let _ = tokio::io::copy(&mut from_client, &mut input).await;
    };
    let mut buffer = vec![0; 16 << 10];
    tokio::pin!(console, typed);
    let ended = loop {
        tokio::select! {
            read = output.read(&mut buffer) => {
                let count = read.unwrap_or(0);
                if count == 0 || to_client.write_all(&buffer[..count]).await.is_err() {
                    return;
                }
            }
            ended = &mut console => break ended,
            () = &mut typed => return,
        }
    };
    // All that the program wrote is in the FIFO by now.
    while let Ok(count @ 1..) = output.try_read(&mut buffer) {
        if to_client.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
    if let Err(error) = ended {
        // Nobody is there to be told any more if this fails.
        let _ = to_client.write_all((chain(&error) + "\r\n").as_bytes()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_is_read_and_not_a_byte_more() {
        let (mut client, mut server) = UnixStream::pair().unwrap();
        client.write_all(b"CONNECT 1026\nls\n").await.unwrap();
        assert_eq!(port(&mut server).await, Some(1026));
        let mut rest = [0; 3];
        server.read_exact(&mut rest).await.unwrap();
        assert_eq!(&rest, b"ls\n");
        for wrong in ["GET / HTTP/1.1\r\n", "CONNECT x\n", "CONNECT -1\n", "\n"] {
            client.write_all(wrong.as_bytes()).await.unwrap();
            assert_eq!(port(&mut server).await, None, "{wrong}");
            // What is left of a line that was given up.
            let _ = server.try_read(&mut [0; 64]);
        }
        client.write_all(&[b'x'; LINE]).await.unwrap();
        assert_eq!(port(&mut server).await, None);
    }
}
