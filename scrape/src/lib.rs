//! The parts of a Prometheus scrape: its text format ([`text`]), and HTTP/1.1 (RFC 9112) as far as one GET per connection
//! needs it. Connections of slow clients are closed.
//!
//! The shim uses it to serve its own metrics on a Unix socket, `kata-ctl monitor` to serve those of all sandboxes on a
//! loopback port. It knows neither the content nor the access rules.

pub mod text;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;

/// For a request to be there, and for its answer to be taken.
const PATIENCE: Duration = Duration::from_secs(10);

/// Largest head of a request, in bytes.
const HEAD: usize = 8 << 10;

/// Connections at once; others wait to be accepted.
const AT_ONCE: usize = 16;

/// What is asked for by GET.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Without the query.
    pub path: String,
    query: String,
}

impl Request {
    /// The first value of a key in the query. Ids and names need no escapes, and none are undone.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&str> {
        let pairs = self.query.split('&').filter_map(|pair| pair.split_once('='));
        pairs
            .filter(|(name, _)| *name == key)
            .map(|(_, value)| value)
            .find(|value| !value.is_empty())
    }
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    status: &'static str,
    kind: &'static str,
    body: String,
}

impl Reply {
    /// Figures in Prometheus's text format, version 0.0.4.
    #[must_use]
    pub fn figures(body: String) -> Self {
        Self {
            status: "200 OK",
            kind: "text/plain; version=0.0.4; charset=utf-8",
            body,
        }
    }

    /// Any other text.
    #[must_use]
    pub fn text(body: String) -> Self {
        Self::plain("200 OK", body)
    }

    /// There is nothing of this name; the text says what there is.
    #[must_use]
    pub fn not_found(body: String) -> Self {
        Self::plain("404 Not Found", body)
    }

    /// It is there, and cannot be asked now.
    #[must_use]
    pub fn unavailable(body: String) -> Self {
        Self::plain("503 Service Unavailable", body)
    }

    fn plain(status: &'static str, body: String) -> Self {
        Self {
            status,
            kind: "text/plain; charset=utf-8",
            body,
        }
    }
}

/// Where connections come from.
pub trait Accept: Send + Sync {
    /// One of them.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;
    /// The next one.
    fn next(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Accept for TcpListener {
    type Stream = TcpStream;
    async fn next(&self) -> io::Result<TcpStream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

impl Accept for UnixListener {
    type Stream = UnixStream;
    async fn next(&self) -> io::Result<UnixStream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

/// Answers every GET by `respond`, for ever.
pub async fn serve<R, F>(listener: impl Accept, respond: R)
where
    R: Fn(Request) -> F + Send + Sync + 'static,
    F: Future<Output = Reply> + Send + 'static,
{
    let (places, respond) = (Arc::new(Semaphore::new(AT_ONCE)), Arc::new(respond));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let stream = match listener.next().await {
            Ok(stream) => stream,
            // No descriptor left, or the like: others will end.
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let respond = Arc::clone(&respond);
        tokio::spawn(async move {
            let _place = place;
            // A client that goes away has nobody to be told.
            let _ = answer(stream, &*respond).await;
        });
    }
}

async fn answer<R, F>(mut stream: impl AsyncRead + AsyncWrite + Unpin, respond: &R) -> io::Result<()>
where
    R: Fn(Request) -> F,
    F: Future<Output = Reply>,
{
    let head = tokio::time::timeout(PATIENCE, head(&mut stream)).await;
    let Ok(Some(head)) = head else {
        return Ok(());
    };
    let reply = match parse(&head) {
        Some(request) => respond(request).await,
        None => Reply::plain("405 Method Not Allowed", "only GET\n".to_owned()),
    };
    let Reply { status, kind, body } = reply;
    let text = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let written = tokio::time::timeout(PATIENCE, stream.write_all(text.as_bytes())).await;
    written.unwrap_or(Ok(()))?;
    stream.shutdown().await
}

/// The head of a request, up to its empty line.
async fn head(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut buffer).await {
            Ok(count @ 1..) if head.len() + count <= HEAD => head.extend_from_slice(&buffer[..count]),
            _ => return None,
        }
    }
    String::from_utf8(head).ok()
}

/// The request line, `GET PATH?QUERY HTTP/1.1`; none if it is another method's.
fn parse(head: &str) -> Option<Request> {
    let mut words = head.lines().next()?.split(' ');
    let (method, target) = (words.next()?, words.next()?);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    (method == "GET").then(|| Request {
        path: path.to_owned(),
        query: query.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(request: &str) -> String {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        tokio::spawn(serve(listener, |request: Request| async move {
            match request.path.as_str() {
                "/metrics" => Reply::figures(format!("of {:?}\n", request.value("sandbox"))),
                "/down" => Reply::unavailable("later\n".to_owned()),
                _ => Reply::not_found("there is /metrics\n".to_owned()),
            }
        }));
        let mut stream = UnixStream::connect(&path).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn a_get_is_answered_and_anything_else_has_a_status() {
        let figures = ask("GET /metrics?x=1&sandbox=a HTTP/1.1\r\nHost: h\r\n\r\n").await;
        assert!(figures.starts_with("HTTP/1.1 200 OK\r\n"), "{figures}");
        assert!(figures.contains("version=0.0.4") && figures.ends_with("\r\n\r\nof Some(\"a\")\n"));
        assert!(ask("GET /metrics HTTP/1.1\r\n\r\n").await.ends_with("of None\n"));
        assert!(
            ask("GET /metrics?sandbox= HTTP/1.1\r\n\r\n")
                .await
                .ends_with("of None\n")
        );
        for (request, status) in [
            ("POST /metrics HTTP/1.1\r\n\r\n", "405"),
            ("GET /../etc/passwd HTTP/1.1\r\n\r\n", "404"),
            ("GET /down HTTP/1.1\r\n\r\n", "503"),
            ("\r\n\r\n", "405"),
        ] {
            let said = ask(request).await;
            assert!(said.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {said}");
        }
    }

    #[tokio::test]
    async fn a_head_that_is_too_large_is_hung_up_on() {
        assert_eq!(ask(&"x".repeat(HEAD + 1)).await, "");
    }
}
