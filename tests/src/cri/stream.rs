//! Exec, Attach and PortForward: their streams, which containerd serves by HTTP, here as WebSockets.
//!
//! A binary message begins with its channel's number (Kubernetes' `v4.channel.k8s.io`): 0 stdin, 1 stdout, 2 stderr, 3 the
//! outcome as a `Status` in JSON, 4 the terminal's size. For port forwarding port number n has the channels 2n for data
//! and 2n+1 for errors, and the first message of each tells the port.

use std::{
    net::TcpStream,
    time::{Duration, Instant},
};

use serde_json::Value;
use tungstenite::{
    Message, WebSocket,
    client::IntoClientRequest,
    http::header::{HeaderValue, SEC_WEBSOCKET_PROTOCOL},
};

use crate::{Error, Result, netns::NetNs, wait};

/// How long a stream may be silent.
const LIMIT: Duration = Duration::from_secs(60);

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const OUTCOME: u8 = 3;
const RESIZE: u8 = 4;

/// A connection to containerd's streaming server.
pub struct Streams {
    socket: WebSocket<TcpStream>,
    received: [Vec<u8>; 5],
    ended: bool,
}

impl Streams {
    /// Connects to the address that Exec or Attach gave.
    pub fn connect(netns: &NetNs, url: &str) -> Result<Self> {
        Self::dial(netns, url, "v4.channel.k8s.io")
    }

    /// Connects to the address that PortForward gave, for one port.
    pub fn connect_port(netns: &NetNs, url: &str, port: u16) -> Result<Self> {
        let mut streams = Self::dial(netns, &format!("{url}?port={port}"), "v4.channel.k8s.io")?;
        // Each of the two channels says first which port it is for.
        let number = port.to_le_bytes();
        for channel in [0, 1] {
            streams.until("the port's number", |received| received[channel].len() >= number.len())?;
            if streams.received[channel].drain(..2).as_slice() != number {
                return Err(Error::unexpected("the channel is for another port"));
            }
        }
        Ok(streams)
    }

    fn dial(netns: &NetNs, url: &str, protocol: &str) -> Result<Self> {
        let url = url.replacen("http://", "ws://", 1);
        let bad = |error: tungstenite::Error| Error::unexpected(format!("{url}: {error}"));
        let mut request = url.as_str().into_client_request().map_err(bad)?;
        let protocol = HeaderValue::from_str(protocol).map_err(|error| Error::unexpected(error.to_string()))?;
        request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, protocol);
        let authority = request.uri().authority().map(ToString::to_string).unwrap_or_default();
        let address = authority.clone();
        let stream = netns.inside(move || {
            TcpStream::connect(&address).map_err(Error::io(format!("connecting to containerd's streams at {address}")))
        })?;
        stream.set_read_timeout(Some(wait::patience(LIMIT)))?;
        let (socket, _) =
            tungstenite::client(request, stream).map_err(|error| Error::unexpected(format!("{url}: {error}")))?;
        Ok(Self {
            socket,
            received: Default::default(),
            ended: false,
        })
    }

    /// Writes to the standard input, or to the forwarded port.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.send(STDIN, bytes)
    }

    pub fn resize(&mut self, columns: u16, rows: u16) -> Result<()> {
        self.send(RESIZE, format!(r#"{{"Width":{columns},"Height":{rows}}}"#).as_bytes())
    }

    fn send(&mut self, channel: u8, bytes: &[u8]) -> Result<()> {
        let message = [&[channel], bytes].concat();
        self.socket
            .send(Message::binary(message))
            .map_err(|error| Error::unexpected(format!("writing to a stream: {error}")))
    }

    /// Waits until `text` is in the standard output.
    pub fn shows(&mut self, text: &str) -> Result<()> {
        self.until(text, |received| {
            String::from_utf8_lossy(&received[usize::from(STDOUT)]).contains(text)
        })
    }

    /// Waits until the forwarded port has sent `text`.
    pub fn reads_from_port(&mut self, text: &str) -> Result<()> {
        self.until(text, |received| String::from_utf8_lossy(&received[0]).contains(text))
    }

    /// What the forwarded port's error channel says until the streams end.
    pub fn port_error(mut self) -> Result<String> {
        self.until_end()?;
        Ok(String::from_utf8_lossy(&self.received[1]).into_owned())
    }

    /// Everything until the end: the standard output, the standard error, and the outcome.
    pub fn finish(mut self) -> Result<Finished> {
        self.until_end()?;
        let outcome = &self.received[usize::from(OUTCOME)];
        Ok(Finished {
            outcome: serde_json::from_slice(outcome).unwrap_or(Value::Null),
            stdout: String::from_utf8_lossy(&self.received[usize::from(STDOUT)]).into_owned(),
            stderr: String::from_utf8_lossy(&self.received[usize::from(STDERR)]).into_owned(),
        })
    }

    fn until_end(&mut self) -> Result<()> {
        while !self.ended {
            self.receive()?;
        }
        Ok(())
    }

    fn until(&mut self, what: &str, wanted: impl Fn(&[Vec<u8>; 5]) -> bool) -> Result<()> {
        let deadline = Instant::now() + wait::patience(LIMIT);
        while !wanted(&self.received) {
            if self.ended || Instant::now() > deadline {
                let got: Vec<_> = self
                    .received
                    .iter()
                    .map(|bytes| String::from_utf8_lossy(bytes))
                    .collect();
                return Err(Error::unexpected(format!("the streams did not show {what:?}: {got:?}")));
            }
            self.receive()?;
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<()> {
        match self.socket.read() {
            Ok(Message::Binary(bytes)) => {
                if let Some((channel, bytes)) = bytes.split_first()
                    && let Some(received) = self.received.get_mut(usize::from(*channel))
                {
                    received.extend_from_slice(bytes);
                }
                Ok(())
            }
            Ok(Message::Close(_)) => {
                self.ended = true;
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed) => {
                self.ended = true;
                Ok(())
            }
            // containerd 1.6 ends the connection without a word.
            Err(tungstenite::Error::Protocol(_)) => {
                self.ended = true;
                Ok(())
            }
            Err(error) => Err(Error::unexpected(format!("reading from a stream: {error}"))),
        }
    }
}

/// What came of an exec or an attach.
#[derive(Debug)]
pub struct Finished {
    /// Kubernetes' `Status`.
    pub outcome: Value,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    /// The exit code that the outcome tells.
    pub fn exit_code(&self) -> Option<i64> {
        if self.outcome["status"] == "Success" {
            return Some(0);
        }
        let causes = self.outcome["details"]["causes"].as_array()?;
        let code = causes.iter().find(|cause| cause["reason"] == "ExitCode")?;
        code["message"].as_str()?.parse().ok()
    }
}
