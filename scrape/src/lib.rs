//! The parts of a Prometheus scrape: its text format ([`text`]), and HTTP/1.1 (RFC 9112) as far as one request per
//! connection needs it. Connections of slow clients are closed.
//!
//! The shim uses it to serve its management API on Unix sockets, `kata-ctl monitor` to serve the metrics of all sandboxes
//! on a loopback port. It knows neither the content nor the access rules.

pub mod durations;
pub mod text;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;

/// Timeout for a request to be there, and for its answer to be taken.
const PATIENCE: Duration = Duration::from_secs(10);

/// Largest head of a request, in bytes.
const HEAD: usize = 8 << 10;

/// Largest body of a request, in bytes.
const BODY: usize = 64 << 10;

/// Connections at once; others wait to be accepted.
const AT_ONCE: usize = 16;

/// What a request wants (RFC 9110, section 9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// To read.
    Get,
    /// To have something processed.
    Post,
    /// To replace something.
    Put,
}

/// A request, whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What it wants.
    pub method: Method,
    /// Without the query.
    pub path: String,
    query: String,
    /// At most 64 KiB.
    pub body: Vec<u8>,
}

impl Request {
    /// The first value of a key in the query that is not empty, with its escapes undone (`%2F`, and `+` for a blank).
    #[must_use]
    pub fn value(&self, key: &str) -> Option<String> {
        let pairs = self.query.split('&').filter_map(|pair| pair.split_once('='));
        pairs
            .filter(|(name, _)| *name == key)
            .map(|(_, value)| unescaped(&value.replace('+', " ")))
            .find(|value| !value.is_empty())
    }
}

/// Undoes percent-encoding (RFC 3986, section 2.1). What is no escape stays as it is.
#[must_use]
pub fn unescaped(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
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

    /// JSON.
    #[must_use]
    pub fn json(body: String) -> Self {
        Self {
            status: "200 OK",
            kind: "application/json",
            body,
        }
    }

    /// It makes no sense; the text says why.
    #[must_use]
    pub fn bad_request(body: String) -> Self {
        Self::plain("400 Bad Request", body)
    }

    /// The path has no such method; the text says which it has.
    #[must_use]
    pub fn not_allowed(body: String) -> Self {
        Self::plain("405 Method Not Allowed", body)
    }

    /// It was tried and has failed; the text says why.
    #[must_use]
    pub fn failed(body: String) -> Self {
        Self::plain("500 Internal Server Error", body)
    }

    /// It cannot be done here at all; the text says why.
    #[must_use]
    pub fn not_implemented(body: String) -> Self {
        Self::plain("501 Not Implemented", body)
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
    /// What an accepted connection is.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;
    /// Waits for the next connection.
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

/// Answers every request by `respond`, for ever.
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
    let request = tokio::time::timeout(PATIENCE, request(&mut stream)).await;
    let reply = match request {
        Ok(Ok(request)) => respond(request).await,
        Ok(Err(Refusal::Reply(reply))) => reply,
        Ok(Err(Refusal::HangUp)) | Err(_) => return Ok(()),
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

/// Why a request is not passed on.
enum Refusal {
    /// With an answer.
    Reply(Reply),
    /// Without: it is no HTTP, or the client has gone.
    HangUp,
}

/// Reads a request: its head up to the empty line, and as much of a body as `Content-Length` says.
async fn request(stream: &mut (impl AsyncRead + Unpin)) -> Result<Request, Refusal> {
    const END: &[u8] = b"\r\n\r\n";
    let mut read = Vec::new();
    let mut buffer = [0; 1024];
    let end = loop {
        if let Some(end) = read.windows(END.len()).position(|bytes| bytes == END) {
            break end + END.len();
        }
        match stream.read(&mut buffer).await {
            Ok(count @ 1..) if read.len() + count <= HEAD => read.extend_from_slice(&buffer[..count]),
            _ => return Err(Refusal::HangUp),
        }
    };
    let mut body = read.split_off(end);
    let head = String::from_utf8(read).map_err(|_| Refusal::HangUp)?;
    let length = body_length(&head)?;
    while body.len() < length {
        match stream.read(&mut buffer).await {
            Ok(count @ 1..) => body.extend_from_slice(&buffer[..count]),
            _ => return Err(Refusal::HangUp),
        }
    }
    body.truncate(length);
    parse(&head, body)
}

/// The length of a request's body, in bytes; 0 where the head does not name one.
fn body_length(head: &str) -> Result<usize, Refusal> {
    let refused = |status, text: &str| Err(Refusal::Reply(Reply::plain(status, text.to_owned())));
    let headers = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    let mut length = 0;
    for (name, value) in headers {
        if name.eq_ignore_ascii_case("transfer-encoding") {
            return refused("411 Length Required", "a body needs a Content-Length\n");
        }
        if name.eq_ignore_ascii_case("content-length") {
            length = match value.trim().parse() {
                Ok(length) => length,
                Err(_) => return refused("400 Bad Request", "Content-Length is no number\n"),
            };
        }
    }
    if length > BODY {
        return refused("413 Content Too Large", "a body may have 64 KiB\n");
    }
    Ok(length)
}

/// The request line, `METHOD PATH?QUERY HTTP/1.1`.
fn parse(head: &str, body: Vec<u8>) -> Result<Request, Refusal> {
    let mut words = head.lines().next().unwrap_or_default().split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let method = match method {
        "GET" => Method::Get,
        "POST" => Method::Post,
        "PUT" => Method::Put,
        _ => return Err(Refusal::Reply(Reply::not_allowed("GET, POST or PUT\n".to_owned()))),
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    Ok(Request {
        method,
        path: path.to_owned(),
        query: query.to_owned(),
        body,
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
                "/echo" => Reply::text(format!(
                    "{:?} {}",
                    request.method,
                    String::from_utf8_lossy(&request.body)
                )),
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
            ("DELETE /metrics HTTP/1.1\r\n\r\n", "405"),
            ("GET /../etc/passwd HTTP/1.1\r\n\r\n", "404"),
            ("GET /down HTTP/1.1\r\n\r\n", "503"),
            ("\r\n\r\n", "405"),
        ] {
            let said = ask(request).await;
            assert!(said.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {said}");
        }
    }

    #[tokio::test]
    async fn a_body_is_as_long_as_its_head_says_and_bounded() {
        let put = |headers: &str, body: &str| format!("PUT /echo HTTP/1.1\r\n{headers}\r\n\r\n{body}");
        let said = ask(&put("Host: h\r\ncontent-length: 3", "abcdef")).await;
        assert!(said.ends_with("\r\n\r\nPut abc"), "{said}");
        let large = "x".repeat(BODY);
        let said = ask(&put(&format!("Content-Length: {BODY}"), &large)).await;
        assert!(said.ends_with(&large), "{}", said.len());
        for (headers, status) in [
            (format!("Content-Length: {}", BODY + 1), "413"),
            ("Content-Length: x".to_owned(), "400"),
            ("Transfer-Encoding: chunked".to_owned(), "411"),
        ] {
            let said = ask(&put(&headers, "")).await;
            assert!(said.starts_with(&format!("HTTP/1.1 {status} ")), "{headers}: {said}");
        }
    }

    #[tokio::test]
    async fn escapes_of_a_query_are_undone() {
        let said = ask("GET /metrics?sandbox=%2Fdev%2fsda+1%zz%2 HTTP/1.1\r\n\r\n").await;
        assert!(said.ends_with("of Some(\"/dev/sda 1%zz%2\")\n"), "{said}");
        assert_eq!(unescaped("%25%e2%82%ac%"), "%€%");
    }

    #[tokio::test]
    async fn a_head_that_is_too_large_is_hung_up_on() {
        assert_eq!(ask(&"x".repeat(HEAD + 1)).await, "");
    }

    /// Requests to the management API.
    #[test]
    fn fuzz_http() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        fuzz::run("http", |bytes| {
            let read = runtime.block_on(request(&mut &*bytes));
            if let Ok(request) = read {
                assert!(request.body.len() <= BODY);
                let _ = request.value("path");
            }
        });
    }
}
