//! A backpressured connection: one of the agent's two connections as ttrpc gets it. It reports when it has ended, and it
//! can be ended. It is not read while the guest sends requests faster than it takes answers. Requests and answers have a
//! greatest length each, and an answer must have been asked for ([`answers`]).
//!
//! ttrpc's server makes a task for each request and reads on. A task stays if nobody takes its answer. Without a bound, a
//! guest that sends requests and never reads would use up the host's memory. So the frames that pass are counted
//! ([`frames`]).

mod answers;
mod frames;

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use guest::vm::Connection;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

use self::answers::Answers;
use self::frames::{Frames, Kind, refuse};

/// Requests of the guest that are being answered at a time: the agent makes one after the other.
const UNANSWERED: u64 = 16;

/// Longest request of the guest, in bytes. The longest that the agent makes says why it gives up.
const LONGEST: usize = 256 << 10;

/// A connection that tells when it has ended, and that can be ended: ttrpc's client can do neither, and its server only
/// with a wait.
pub(in crate::sandbox) struct BackpressuredConnection {
    inner: Option<Connection>,
    tell: Option<oneshot::Sender<()>>,
    /// Its sender is dropped to hang up.
    hung_up: oneshot::Receiver<()>,
    rules: Rules,
}

/// What the guest may send on a connection.
enum Rules {
    Requests(Asked),
    Answers(Answers),
}

impl Rules {
    /// Takes note of what the guest has sent.
    fn read(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Rules::Requests(asked) => asked.read(bytes),
            Rules::Answers(answers) => answers.read(bytes),
        }
    }

    /// Takes note of what the guest was sent.
    fn written(&mut self, bytes: &[u8]) {
        match self {
            Rules::Requests(asked) => asked.written(bytes),
            Rules::Answers(answers) => answers.asked(bytes),
        }
    }

    /// Whether nothing is to be read from the guest now.
    fn too_much(&mut self, context: &Context<'_>) -> bool {
        match self {
            Rules::Requests(asked) => asked.too_much(context),
            Rules::Answers(_) => false,
        }
    }
}

impl BackpressuredConnection {
    /// A connection on which the guest asks, and what is dropped to end it.
    pub(in crate::sandbox) fn of_requests(connection: Connection) -> (Self, oneshot::Sender<()>) {
        Self::new(connection, None, Rules::Requests(Asked::default()))
    }

    /// A connection on which the guest answers, and what is dropped to end it. `tell` is told when it has ended.
    pub(in crate::sandbox) fn of_answers(
        connection: Connection,
        tell: oneshot::Sender<()>,
    ) -> (Self, oneshot::Sender<()>) {
        Self::new(connection, Some(tell), Rules::Answers(Answers::default()))
    }

    fn new(connection: Connection, tell: Option<oneshot::Sender<()>>, rules: Rules) -> (Self, oneshot::Sender<()>) {
        let (line, hung_up) = oneshot::channel();
        let watched = Self {
            inner: Some(connection),
            tell,
            hung_up,
            rules,
        };
        (watched, line)
    }

    fn connection(&mut self) -> io::Result<Pin<&mut Connection>> {
        let connection = self.inner.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(Pin::new(connection))
    }
}

impl AsyncRead for BackpressuredConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Both ends of ttrpc always read: they are woken by this.
        if self.inner.is_some() && Pin::new(&mut self.hung_up).poll(context).is_ready() {
            self.inner = None;
        }
        if self.inner.is_some() && self.rules.too_much(context) {
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let mut read = match self.connection() {
            Ok(connection) => connection.poll_read(context, buffer),
            // The end of file.
            Err(_) => Poll::Ready(Ok(())),
        };
        if let Poll::Ready(Ok(())) = &read
            && let Err(error) = self.rules.read(&buffer.filled()[before..])
        {
            tracing::error!(%error, "the guest is hung up on");
            self.inner = None;
            read = Poll::Ready(Err(error));
        }
        if let Poll::Ready(result) = &read
            && (result.is_err() || buffer.filled().len() == before)
            && let Some(tell) = self.tell.take()
        {
            // The sandbox may have ended first.
            let _ = tell.send(());
        }
        read
    }
}

impl AsyncWrite for BackpressuredConnection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = match self.connection() {
            Ok(connection) => connection.poll_write(context, bytes),
            Err(error) => Poll::Ready(Err(error)),
        };
        if let Poll::Ready(Ok(count)) = &written {
            self.rules.written(&bytes[..*count]);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.connection() {
            Ok(connection) => connection.poll_flush(context),
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.connection() {
            Ok(connection) => connection.poll_shutdown(context),
            Err(error) => Poll::Ready(Err(error)),
        }
    }
}

/// How many requests have come, and how many answers have gone.
#[derive(Default)]
struct Asked {
    requests: Frames,
    made: u64,
    answers: Frames,
    answered: u64,
    /// Who reads, once it has to wait.
    reader: Option<Waker>,
}

impl Asked {
    /// Whether the next request has to wait. The reader is woken when an answer has gone.
    fn too_much(&mut self, context: &Context<'_>) -> bool {
        let waits = self.made.saturating_sub(self.answered) >= UNANSWERED;
        if waits {
            self.reader = Some(context.waker().clone());
        }
        waits
    }

    fn read(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut refused = Ok(());
        let count = &mut self.made;
        self.requests.pass(bytes, |header| {
            *count += 1;
            if header.length > LONGEST {
                refused = refuse(format!(
                    "a request of {} bytes, and {LONGEST} are possible",
                    header.length
                ));
            } else if header.kind != Kind::Request {
                refused = refuse(format!(
                    "a frame of kind {} where requests are made",
                    header.kind.number()
                ));
            }
        });
        refused
    }

    fn written(&mut self, bytes: &[u8]) {
        let count = &mut self.answered;
        self.answers.pass(bytes, |_| *count += 1);
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::frames::HEADER;
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixStream;

    fn frame(length: usize) -> Vec<u8> {
        let mut frame = u32::try_from(length).unwrap().to_be_bytes().to_vec();
        frame.extend([0, 0, 0, 1, 1, 0]);
        frame.resize(HEADER + length, 0xff);
        frame
    }

    /// Reads frames of four bytes until there is nothing to be read at once.
    async fn read_what_may_be_read(line: &mut BackpressuredConnection) -> u64 {
        let mut read = 0;
        let mut one = [0; HEADER + 4];
        loop {
            let more = line.read_exact(&mut one);
            tokio::pin!(more);
            match futures::poll!(more) {
                Poll::Ready(result) => assert_eq!(result.unwrap(), one.len()),
                Poll::Pending => return read,
            }
            read += 1;
        }
    }

    #[tokio::test]
    async fn a_guest_that_asks_and_takes_no_answer_is_not_read_from_until_it_does() {
        let (mut guest, host) = UnixStream::pair().unwrap();
        let (mut line, _held) = BackpressuredConnection::of_requests(Box::new(host));
        guest.write_all(&frame(4).repeat(1000)).await.unwrap();
        // Tokio learns that there is something to read.
        line.read_exact(&mut [0; HEADER + 4]).await.unwrap();
        assert_eq!(1 + read_what_may_be_read(&mut line).await, UNANSWERED);
        line.write_all(&frame(7)).await.unwrap();
        assert_eq!(read_what_may_be_read(&mut line).await, 1);
        line.write_all(&frame(0).repeat(3)).await.unwrap();
        assert_eq!(read_what_may_be_read(&mut line).await, 3);
    }

    #[tokio::test]
    async fn a_request_that_is_too_long_ends_the_connection() {
        let (mut guest, host) = UnixStream::pair().unwrap();
        let (mut line, _held) = BackpressuredConnection::of_requests(Box::new(host));
        guest.write_all(&frame(LONGEST + 1)[..HEADER]).await.unwrap();
        assert!(line.read(&mut [0; HEADER]).await.is_err());
        assert_eq!(line.read(&mut [0; HEADER]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn hanging_up_ends_a_line_that_waits_for_answers_to_be_taken() {
        let (mut guest, host) = UnixStream::pair().unwrap();
        let (mut line, held) = BackpressuredConnection::of_requests(Box::new(host));
        guest.write_all(&frame(4).repeat(100)).await.unwrap();
        line.read_exact(&mut [0; HEADER + 4]).await.unwrap();
        read_what_may_be_read(&mut line).await;
        let ended = tokio::spawn(async move { line.read(&mut [0; 1]).await });
        drop(held);
        assert_eq!(ended.await.unwrap().unwrap(), 0);
    }

    #[tokio::test]
    async fn an_answer_that_nobody_asked_for_ends_the_connection() {
        let (mut guest, host) = UnixStream::pair().unwrap();
        let (tell, ended) = oneshot::channel();
        let (mut line, _held) = BackpressuredConnection::of_answers(Box::new(host), tell);
        let mut answer = frame(4);
        answer[8] = 2;
        guest.write_all(&answer).await.unwrap();
        assert!(line.read(&mut [0; HEADER]).await.is_err());
        ended.await.unwrap();
    }
}
