//! `kata-ctl monitor`: the figures of all sandboxes over HTTP on a loopback port, for a Prometheus on this host.
//!
//! As much of HTTP/1.1 as a scrape needs: one GET a connection. Whoever is slow is hung up on.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::metrics;
use crate::sandboxes;

/// For a request to be there, and for its answer to be taken.
const PATIENCE: Duration = Duration::from_secs(10);

/// Largest head of a request, in bytes.
const HEAD: usize = 8 << 10;

/// Connections at once.
const AT_ONCE: usize = 16;

/// Why it does not serve.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MonitorError {
    /// The figures are for this host alone.
    #[error("{0} is not a loopback address: the figures have no protection of their own; use 127.0.0.1 and a proxy")]
    NotLoopback(IpAddr),
    /// The port cannot be had.
    #[error("cannot listen on {0}")]
    Listen(SocketAddr, #[source] io::Error),
}

/// Serves until it is ended. Says on standard error where.
pub(crate) async fn serve(address: SocketAddr) -> Result<(), MonitorError> {
    if !address.ip().is_loopback() {
        return Err(MonitorError::NotLoopback(address.ip()));
    }
    let failed = |error| MonitorError::Listen(address, error);
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    crate::complain(&format!("serving http://{address}/metrics and /sandboxes"));
    accept(listener, sandboxes::ROOT.into()).await;
    Ok(())
}

async fn accept(listener: TcpListener, root: PathBuf) {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // No descriptor left, or the like: others will end.
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let root = root.clone();
        tokio::spawn(async move {
            let _place = place;
            // A client that goes away has nobody to be told.
            let _ = answer(stream, &root).await;
        });
    }
}

async fn answer(mut stream: TcpStream, root: &Path) -> io::Result<()> {
    let head = tokio::time::timeout(PATIENCE, head(&mut stream)).await;
    let Ok(Some(head)) = head else {
        return Ok(());
    };
    let (status, kind, body) = respond(&head, root).await;
    let text = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    tokio::time::timeout(PATIENCE, stream.write_all(text.as_bytes()))
        .await
        .unwrap_or(Ok(()))?;
    stream.shutdown().await
}

/// The head of a request, up to its empty line.
async fn head(stream: &mut TcpStream) -> Option<String> {
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

const PLAIN: &str = "text/plain; charset=utf-8";

async fn respond(head: &str, root: &Path) -> (&'static str, &'static str, String) {
    let mut words = head.lines().next().unwrap_or_default().split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    if method != "GET" {
        return ("405 Method Not Allowed", PLAIN, "only GET\n".to_owned());
    }
    match target.split('?').next().unwrap_or_default() {
        "/metrics" => match metrics::all(root).await {
            Ok(text) => ("200 OK", "text/plain; version=0.0.4; charset=utf-8", text),
            Err(error) => ("500 Internal Server Error", PLAIN, crate::chain(&error) + "\n"),
        },
        "/sandboxes" => match sandboxes::all(root) {
            Ok(found) => {
                let ids: Vec<_> = found.iter().map(sandboxes::Found::id).collect();
                (
                    "200 OK",
                    "application/json",
                    format!("{}\n", json!({ "sandboxes": ids })),
                )
            }
            Err(error) => ("500 Internal Server Error", PLAIN, crate::chain(&error) + "\n"),
        },
        "/" => ("200 OK", PLAIN, "/metrics\n/sandboxes\n".to_owned()),
        _ => ("404 Not Found", PLAIN, "there are /metrics and /sandboxes\n".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn a_scrape_gets_figures_and_anything_else_a_status() {
        let root = tempfile::tempdir().unwrap();
        sandboxes::tests::make(root.path(), "a", r#"{"id":"a"}"#);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(accept(listener, root.path().to_owned()));
        let figures = ask(address, "GET /metrics?x=1 HTTP/1.1\r\nHost: h\r\n\r\n").await;
        assert!(
            figures.starts_with("HTTP/1.1 200 OK\r\n") && figures.contains("kata_sandboxes 1\n"),
            "{figures}"
        );
        let list = ask(address, "GET /sandboxes HTTP/1.1\r\n\r\n").await;
        assert!(list.ends_with("{\"sandboxes\":[\"a\"]}\n"), "{list}");
        assert!(
            ask(address, "POST /metrics HTTP/1.1\r\n\r\n")
                .await
                .starts_with("HTTP/1.1 405")
        );
        assert!(
            ask(address, "GET /../etc/passwd HTTP/1.1\r\n\r\n")
                .await
                .starts_with("HTTP/1.1 404")
        );
        assert_eq!(ask(address, &"x".repeat(HEAD + 1)).await, "");
    }

    #[tokio::test]
    async fn only_this_host_is_served() {
        let error = serve("0.0.0.0:0".parse().unwrap()).await.unwrap_err();
        assert!(error.to_string().contains("loopback"), "{error}");
    }
}
