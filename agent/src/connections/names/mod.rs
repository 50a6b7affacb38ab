//! Docker's name server, 127.0.0.11, as containers reach it: their queries go to the host, which sends them from the pod's
//! network namespace. It parses neither queries nor answers.
//!
//! No query is stored: the sender's address is sent with the query and returned with the answer.

mod redirect;

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use protocol::agent::NameServer;
use protocol::preamble::{Preamble, Token};
use relay::Listener;
use relay::frame::{self, Kind};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinSet;

use self::redirect::Redirect;
use crate::connections::dial::Dialer;

/// Ports that are tried: one that is free for TCP and for UDP is wanted.
const TRIES: usize = 16;

/// Bytes of an address and a port before a message.
const ADDRESS: usize = 6;

/// Largest message, in bytes: what UDP carries.
const LARGEST: usize = 64 << 10;

/// TCP connections at a time; others wait.
const CONNECTIONS: usize = 64;

#[derive(Debug, thiserror::Error)]
pub(crate) enum NamesError {
    #[error("names: a token has {0} bytes")]
    Token(usize),
    /// There is no socket at the name server's address.
    #[error("names: listen at 127.0.0.11")]
    Listen(#[source] io::Error),
    /// What is sent to port 53 cannot be directed to it.
    #[error("names: direct port 53 of 127.0.0.11 to the agent")]
    Redirect(#[source] io::Error),
}

#[derive(Debug)]
pub(crate) struct Names {
    dialer: Dialer,
    serving: Mutex<Option<Serving>>,
}

#[derive(Debug)]
struct Serving {
    request: NameServer,
    _redirect: Redirect,
    _tasks: JoinSet<()>,
}

impl Names {
    pub(crate) fn new(dialer: Dialer) -> Self {
        Self {
            dialer,
            serving: Mutex::default(),
        }
    }

    /// Makes it what the host wants: by these tokens, or not at all.
    ///
    /// # Errors
    /// The address cannot be listened at.
    pub(crate) async fn serve(&self, request: &NameServer) -> Result<(), NamesError> {
        let mut serving = self.serving.lock().await;
        if serving.as_ref().is_some_and(|serving| serving.request == *request) {
            return Ok(());
        }
        *serving = None;
        if request.datagrams.is_empty() && request.streams.is_empty() {
            return Ok(());
        }
        let (datagrams, streams) = (token(&request.datagrams)?, token(&request.streams)?);
        let (udp, tcp, port) = listen().await.map_err(NamesError::Listen)?;
        let redirect = Redirect::new(port).map_err(NamesError::Redirect)?;
        let listener = tcp.into_std().map(OwnedFd::from).and_then(Listener::new);
        let listener = listener.map_err(NamesError::Listen)?;
        let mut tasks = JoinSet::new();
        tasks.spawn(relay_datagrams(self.dialer, udp, datagrams));
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        tasks.spawn(crate::connections::relays::accept(
            self.dialer,
            listener,
            streams,
            vec![room],
        ));
        *serving = Some(Serving {
            request: request.clone(),
            _redirect: redirect,
            _tasks: tasks,
        });
        tracing::debug!(port, "names are asked for on the host");
        Ok(())
    }
}

fn token(bytes: &[u8]) -> Result<Token, NamesError> {
    bytes.try_into().map_err(|_| NamesError::Token(bytes.len()))
}

/// One port for both: a program of BPF cannot tell them apart by less than looking.
async fn listen() -> io::Result<(UdpSocket, TcpListener, u16)> {
    let address = Ipv4Addr::from(protocol::DOCKER_NAME_SERVER);
    let mut tries = 0;
    loop {
        tries += 1;
        let udp = UdpSocket::bind((address, 0)).await?;
        let port = udp.local_addr()?.port();
        match TcpListener::bind((address, port)).await {
            Ok(tcp) => return Ok((udp, tcp, port)),
            Err(error) if tries == TRIES => return Err(error),
            Err(_) => {}
        }
    }
}

/// Questions to the host and answers back, for ever. The connection is made when there is a question.
async fn relay_datagrams(dialer: Dialer, socket: UdpSocket, token: Token) {
    let mut question = vec![0; ADDRESS + LARGEST];
    loop {
        let length = next(&socket, &mut question).await;
        let stream = match dialer.dial(Preamble::Relay(token)).await {
            Ok(stream) => stream,
            Err(error) => {
                // Who asks asks again.
                tracing::warn!(%error, "names: cannot reach the host");
                continue;
            }
        };
        let (reader, writer) = tokio::io::split(stream);
        let ended = tokio::select! {
            ended = questions(&socket, &mut question, length, writer) => ended,
            ended = answers(&socket, BufReader::new(reader)) => ended,
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "names: the host has hung up");
        }
    }
}

/// The next question, with its sender's address before it. The answer is the length of both.
async fn next(socket: &UdpSocket, question: &mut [u8]) -> usize {
    loop {
        let (address, message) = question.split_at_mut(ADDRESS);
        match socket.recv_from(message).await {
            Ok((length, SocketAddr::V4(from))) => {
                address[..4].copy_from_slice(&from.ip().octets());
                address[4..].copy_from_slice(&from.port().to_be_bytes());
                return ADDRESS + length;
            }
            Ok(_) => {}
            // ECONNREFUSED: somebody who asked has not waited for the answer.
            Err(error) => tracing::debug!(%error, "names: no question"),
        }
    }
}

async fn questions(
    socket: &UdpSocket,
    question: &mut [u8],
    mut length: usize,
    mut host: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    loop {
        host.write_all(&frame::encode(Kind::Data, &question[..length])).await?;
        length = next(socket, question).await;
    }
}

async fn answers(socket: &UdpSocket, mut host: impl AsyncRead + Unpin) -> io::Result<()> {
    let mut answer = Vec::new();
    loop {
        frame::read(&mut host, &mut answer, ADDRESS + LARGEST).await?;
        let Some((&[a, b, c, d, high, low], message)) = answer.split_first_chunk::<ADDRESS>() else {
            continue;
        };
        let to = SocketAddrV4::new(Ipv4Addr::new(a, b, c, d), u16::from_be_bytes([high, low]));
        // Whoever asked may be gone.
        let _ = socket.send_to(message, to).await;
    }
}
