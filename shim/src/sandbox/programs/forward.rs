//! One forwarded connection: a process in the sandbox's own container in the guest, which connects to the port, and its
//! streams.

use std::time::Duration;

use guest::agent_client::AgentClient;
use guest::streams::{StreamError, Wait};
use protocol::agent::{CloseStdinRequest, ExecRequest, SignalRequest, Stdio};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use crate::id::ContainerId;
use crate::sandbox::Sandbox;
use crate::sandbox::error::Error;
use crate::sandbox::programs::forwards::Length;
use crate::sandbox::records::process::ProcessName;
use lifecycle::SIGKILL;

/// Size of the copy buffer in bytes.
const BUFFER: usize = 64 << 10;

impl Sandbox {
    /// Continues a connection inside the guest until both sides have ended it.
    ///
    /// # Errors
    /// There is no sandbox's process to dial from, or nobody listens on the port.
    pub async fn forward(&self, connection: TcpStream, port: u16) -> Result<(), Error> {
        let subject = format!("port {port} of sandbox {}", self.id);
        let agent = self.agent("forward", &subject)?;
        let mut awaited = self.forwards.begin()?;
        let name = ProcessName {
            container: ContainerId::new(self.id.as_str())?,
            exec: Some(awaited.exec.clone()),
        };
        let (input, dialled_input) = self.streams.register();
        let (output, dialled_output) = self.streams.register();
        let call = ExecRequest {
            container_id: name.container.to_string(),
            exec_id: name.exec_id().to_owned(),
            process: process(port),
            stdio: Some(Stdio {
                stdin: input.to_vec(),
                stdout: output.to_vec(),
                ..Default::default()
            })
            .into(),
            ..Default::default()
        };
        agent.exec(&call).await.map_err(|source| Error::Agent {
            operation: "forward",
            subject: subject.clone(),
            source,
        })?;
        let dialled = async { tokio::try_join!(dialled_input.connection(), dialled_output.connection()) };
        let dialled = tokio::time::timeout(self.timeouts.streams(), dialled).await;
        let dialled = dialled.unwrap_or(Err(StreamError::NotDialled));
        let ended = match dialled {
            Ok((to_guest, from_guest)) => {
                let (reader, writer) = connection.into_split();
                tokio::select! {
                    () = up(reader, to_guest, &agent, &name) => None,
                    length = down(from_guest, writer, &mut awaited.ended, self.timeouts.patience()) => Some(length),
                }
            }
            Err(source) => {
                self.end_forward(&agent, &name, &mut awaited.ended, None).await;
                return Err(Error::Stream { subject, source });
            }
        };
        self.end_forward(&agent, &name, &mut awaited.ended, ended.flatten())
            .await;
        Ok(())
    }

    /// Kills the process unless it is known to have ended, and has the agent forget it.
    async fn end_forward(
        &self,
        agent: &AgentClient,
        name: &ProcessName,
        ended: &mut oneshot::Receiver<Length>,
        known: Option<Length>,
    ) {
        let process = name.to_agent();
        if known.is_none() {
            let kill = SignalRequest {
                process: Some(process.clone()).into(),
                signal: SIGKILL,
                ..Default::default()
            };
            // It may have ended in between; a VM that is gone has taken it along.
            let _ = agent.signal(&kill).await;
            let _ = tokio::time::timeout(self.timeouts.patience(), ended).await;
        }
        if let Err(error) = agent.delete(&process).await {
            tracing::debug!(process = %name, %error, "the guest keeps the process of a forwarded connection");
        }
    }
}

/// The OCI process that dials.
fn process(port: u16) -> Vec<u8> {
    let process = json!({
        "cwd": "/", "args": [protocol::PAUSE_PROGRAM, "dial", port.to_string()], "env": [],
        "user": { "uid": 0, "gid": 0 }, "noNewPrivileges": true, "capabilities": {},
    });
    process.to_string().into_bytes()
}

/// Copies to the guest until the client ends its side, and tells the agent so. Ends only on an error: the other direction
/// says when the connection is over.
async fn up(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    agent: &AgentClient,
    name: &ProcessName,
) {
    // An error of either is the end of what can be sent.
    let mut buffer = vec![0; BUFFER];
    let mut length = 0;
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if to.write_all(&buffer[..count]).await.is_err() {
            break;
        }
        length += count as u64;
    }
    let request = CloseStdinRequest {
        process: Some(name.to_agent()).into(),
        length,
        ..Default::default()
    };
    if agent.close_stdin(&request).await.is_ok() {
        std::future::pending::<()>().await;
    }
}

/// Copies from the guest until the process has ended and everything that it wrote has come. The answer is how much that
/// was; none where the client went away before.
async fn down(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    ended: &mut oneshot::Receiver<Length>,
    patience: Duration,
) -> Option<Length> {
    let mut buffer = vec![0; BUFFER];
    let mut copied = 0;
    let mut length = None;
    let mut wait = Wait::default();
    while length.is_none_or(|length| copied < length) {
        let count = tokio::select! {
            read = from.read(&mut buffer) => match read {
                Ok(count @ 1..) => count,
                Ok(0) | Err(_) => break,
            },
            told = &mut *ended, if length.is_none() => {
                length = Some(told.ok()?);
                continue;
            }
            () = wait.is_over(patience), if length.is_some() => break,
        };
        to.write_all(&buffer[..count]).await.ok()?;
        copied += count as u64;
    }
    // The client may be gone, which is what it is to be told.
    let _ = to.shutdown().await;
    if length.is_none() {
        length = tokio::time::timeout(patience, ended).await.ok()?.ok();
    }
    length
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn everything_that_was_written_before_the_end_is_passed_on() {
        let (tell, mut ended) = oneshot::channel();
        let (guest, mut writer) = tokio::io::duplex(64);
        let (mut client, to) = tokio::io::duplex(64);
        tell.send(5).unwrap();
        let (length, ()) = tokio::join!(down(guest, to, &mut ended, PATIENCE * 100), async {
            writer.write_all(b"he").await.unwrap();
            writer.write_all(b"llo").await.unwrap();
        });
        assert_eq!(length, Some(5));
        let mut text = String::new();
        client.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "hello");
    }

    #[tokio::test]
    async fn a_guest_that_announces_more_than_it_sends_is_not_waited_for_for_ever() {
        let (tell, mut ended) = oneshot::channel();
        let (guest, _writer) = tokio::io::duplex(64);
        let (_client, to) = tokio::io::duplex(64);
        tell.send(u64::MAX).unwrap();
        assert_eq!(down(guest, to, &mut ended, PATIENCE).await, Some(u64::MAX));
    }

    #[tokio::test]
    async fn a_client_that_goes_away_ends_it() {
        let (_tell, mut ended) = oneshot::channel();
        let (guest, mut writer) = tokio::io::duplex(64);
        let (client, to) = tokio::io::duplex(64);
        drop(client);
        writer.write_all(b"more").await.unwrap();
        assert_eq!(down(guest, to, &mut ended, PATIENCE).await, None);
    }
}
