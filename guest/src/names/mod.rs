//! Docker's name server, for the guest: queries that containers send to 127.0.0.11 arrive here, and are sent from inside the pod's network
//! namespace, where Docker's rules redirect them to dockerd.
//!
//! One thread stays in the namespace and owns all sockets that are opened there; it ends with the relay. Messages are neither parsed
//! nor changed.

mod resolv_conf;

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use async_trait::async_trait;
use protocol::agent::NameServer;
use relay::frame::{self, Kind};
use relay::{Side, Socket, Traffic};
use rustix::net::SocketType;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

pub use self::resolv_conf::{asks_docker, of_container};
use crate::connection::Connection;
use crate::relays::{Offer, Relays, Service};
use crate::warn_rate_limited;

const SERVER: SocketAddrV4 = {
    let [a, b, c, d] = protocol::DOCKER_NAME_SERVER;
    SocketAddrV4::new(Ipv4Addr::new(a, b, c, d), 53)
};

/// Questions that wait for an answer; who asks one more asks again later.
const QUESTIONS: usize = 256;

/// How long a question waits for its answer: dockerd asks each server of the host's for 4 s.
const ANSWERS: Duration = Duration::from_secs(15);

/// Bytes of the client's address and port before a message.
const ADDRESS: usize = 6;

/// Largest message, in bytes: what UDP carries.
const LARGEST: usize = 64 << 10;

/// A connection of the guest for the thread in the namespace.
struct Job {
    connection: Connection,
    datagrams: bool,
    /// Closed when nobody wants it served any more.
    done: oneshot::Sender<()>,
}

struct Names {
    jobs: mpsc::Sender<Job>,
    datagrams: bool,
}

/// The relay, until it is dropped.
pub struct NameRelay {
    datagrams: Offer,
    streams: Offer,
}

impl NameRelay {
    /// Begins to serve what the guest sends to Docker's name server in a network namespace.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub async fn start(relays: &Relays, netns: &Path) -> io::Result<Self> {
        let netns = File::open(netns)?;
        let (jobs, queue) = mpsc::channel(16);
        let (told, began) = oneshot::channel();
        thread::Builder::new()
            .name("names".to_owned())
            .spawn(move || inside(&netns, queue, told))?;
        began.await.map_err(io::Error::other)??;
        let offer = |datagrams| {
            let jobs = jobs.clone();
            relays.offer(Arc::new(Names { jobs, datagrams }))
        };
        Ok(Self {
            datagrams: offer(true),
            streams: offer(false),
        })
    }

    /// The message that tells the agent of the relay.
    #[must_use]
    pub fn server(&self) -> NameServer {
        NameServer {
            datagrams: self.datagrams.token.to_vec(),
            streams: self.streams.token.to_vec(),
            ..NameServer::default()
        }
    }
}

#[async_trait]
impl Service for Names {
    async fn serve(&self, connection: Connection) {
        let (done, ended) = oneshot::channel();
        let job = Job {
            connection,
            datagrams: self.datagrams,
            done,
        };
        if self.jobs.send(job).await.is_ok() {
            // Its sender is dropped at the end.
            let _ = ended.await;
        }
    }
}

fn inside(netns: &File, mut queue: mpsc::Receiver<Job>, told: oneshot::Sender<io::Result<()>>) {
    let entered = || {
        move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
        tokio::runtime::Builder::new_current_thread().enable_all().build()
    };
    let runtime = match entered() {
        Ok(runtime) => runtime,
        Err(error) => return drop(told.send(Err(error))),
    };
    // Who asked may have given up; then the queue ends at once.
    let _ = told.send(Ok(()));
    // Of all connections together: the guest may open many.
    let room = Arc::new(Semaphore::new(QUESTIONS));
    runtime.block_on(async {
        while let Some(job) = queue.recv().await {
            tokio::spawn(serve(job, Arc::clone(&room)));
        }
    });
}

async fn serve(job: Job, room: Arc<Semaphore>) {
    let Job {
        connection,
        datagrams,
        mut done,
    } = job;
    let serve = async {
        match datagrams {
            true => serve_datagrams(connection, room).await,
            false => serve_stream(connection).await,
        }
    };
    let served = tokio::select! {
        served = serve => served,
        () = done.closed() => return,
    };
    match served {
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
            tracing::debug!(%error, "a connection to Docker's name server has broken");
        }
        _ => {}
    }
}

async fn serve_stream(connection: Connection) -> io::Result<()> {
    let stream = timeout(ANSWERS, TcpStream::connect(SERVER)).await;
    let stream = match stream.map_err(io::Error::from).flatten() {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(%error, "Docker's name server cannot be connected to");
            return relay::refuse(SocketType::STREAM, connection).await;
        }
    };
    let socket = Socket::new(OwnedFd::from(stream.into_std()?))?;
    relay::relay(&socket, connection, Side::Accepted, &Traffic::default()).await
}

/// Each question has a socket of its own, so that its answer cannot be another's.
async fn serve_datagrams(connection: Connection, room: Arc<Semaphore>) -> io::Result<()> {
    let (reader, writer) = tokio::io::split(connection);
    // An answer that the guest does not take keeps its place.
    let (answers, queue) = mpsc::channel(1);
    let questions = async {
        let mut reader = BufReader::new(reader);
        loop {
            let question = question(&mut reader).await?;
            let Ok(place) = Arc::clone(&room).try_acquire_owned() else {
                warn_rate_limited!("the guest asks Docker's name server too much at once: a question is dropped");
                continue;
            };
            let answers = answers.clone();
            tokio::spawn(async move {
                let _place = place;
                match timeout(ANSWERS, ask(question)).await {
                    // The guest may have hung up.
                    Ok(Ok(answer)) => drop(answers.send(answer).await),
                    Ok(Err(error)) => tracing::debug!(%error, "Docker's name server cannot be asked"),
                    Err(_) => tracing::debug!("Docker's name server does not answer"),
                }
            });
        }
    };
    tokio::select! {
        ended = questions => ended,
        ended = write(queue, writer) => ended,
    }
}

/// The next question of the guest, with the address of who asks before it.
async fn question(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut question = Vec::new();
    let kind = frame::read(from, &mut question, ADDRESS + LARGEST).await?;
    match kind == Kind::Data && question.len() >= ADDRESS {
        true => Ok(question),
        false => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// The answer to a question, with the address that came before it.
async fn ask(message: Vec<u8>) -> io::Result<Vec<u8>> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    socket.connect(SERVER).await?;
    answer(&socket, message).await
}

/// Room for an answer is there only once it has come: of all that wait, only the addresses are kept.
async fn answer(server: &UdpSocket, mut message: Vec<u8>) -> io::Result<Vec<u8>> {
    server.send(message.get(ADDRESS..).unwrap_or_default()).await?;
    loop {
        message.truncate(ADDRESS);
        message.shrink_to_fit();
        server.readable().await?;
        message.resize(ADDRESS + LARGEST, 0);
        match server.try_recv(message.get_mut(ADDRESS..).unwrap_or_default()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            received => {
                message.truncate(ADDRESS + received?);
                message.shrink_to_fit();
                return Ok(message);
            }
        }
    }
}

async fn write(mut answers: mpsc::Receiver<Vec<u8>>, mut guest: impl AsyncWrite + Unpin) -> io::Result<()> {
    while let Some(answer) = answers.recv().await {
        guest.write_all(&frame::encode(Kind::Data, &answer)).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuzz_name_questions() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        fuzz::run("name-questions", |mut bytes| {
            while let Ok(question) = runtime.block_on(question(&mut bytes)) {
                assert!((ADDRESS..=ADDRESS + LARGEST).contains(&question.len()));
            }
        });
    }

    #[tokio::test]
    async fn questions_for_which_there_is_no_room_are_dropped_and_the_guest_is_read_on() {
        let (mut guest, far) = tokio::io::duplex(256);
        let room = Arc::new(Semaphore::new(1));
        let waits = Arc::clone(&room).acquire_owned().await.unwrap();
        let serving = tokio::spawn(serve_datagrams(Box::new(far), Arc::clone(&room)));
        let question = frame::encode(Kind::Data, b"from: what?");
        for _ in 0..2 * QUESTIONS {
            guest.write_all(&question).await.unwrap();
        }
        assert!(!serving.is_finished());
        drop(guest);
        serving.await.unwrap().unwrap_err();
        drop(waits);
    }

    #[tokio::test]
    async fn an_answer_comes_with_the_address_of_who_asked_and_takes_no_more_room_than_it_has() {
        let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        client.connect(server.local_addr().unwrap()).await.unwrap();
        server.connect(client.local_addr().unwrap()).await.unwrap();
        let echoes = async {
            let mut buffer = [0; 64];
            let length = server.recv(&mut buffer).await.unwrap();
            server.send(&buffer[..length].repeat(3)).await.unwrap();
        };
        let (answer, ()) = tokio::join!(answer(&client, b"from: what? ".to_vec()), echoes);
        let answer = answer.unwrap();
        assert_eq!(answer, b"from: what? what? what? ");
        assert!(answer.capacity() < 64, "{}", answer.capacity());
    }
}
