//! `kata-ctl monitor`: the metrics of all sandboxes over HTTP, for a Prometheus on this host or, if that is allowed, elsewhere.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use rustix::io::Errno;
use scrape::durations::Durations;
use scrape::text::{Kind, Text};
use scrape::{Method, Reply, Request};
use tokio::net::TcpListener;

use crate::metrics::{self, MetricsError};
use crate::sandboxes::{self, FindError};

/// Where kata-monitor serves.
pub(crate) const ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8090);

#[derive(Debug, thiserror::Error)]
pub(crate) enum MonitorError {
    /// The figures are for this host alone, unless it is allowed.
    #[error(
        "{0} is not a loopback address, and whoever reaches it reads the figures: use 127.0.0.1 and a proxy, or --allow-remote"
    )]
    NotLoopback(IpAddr),
    #[error("cannot listen on {0}")]
    Listen(SocketAddr, #[source] io::Error),
}

/// Serves until it is ended. Says on standard error where. `remote`: also on an address that other hosts reach.
pub(crate) async fn serve(address: SocketAddr, remote: bool) -> Result<(), MonitorError> {
    if !remote && !address.ip().is_loopback() {
        return Err(MonitorError::NotLoopback(address.ip()));
    }
    let failed = |error| MonitorError::Listen(address, error);
    let listener = bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    crate::report::print_message(&format!("serving http://{address}/metrics, /sandboxes and /agent-url"));
    answer_all(listener, sandboxes::ROOT.into()).await;
    Ok(())
}

/// All addresses are those of IPv4 where the kernel has no IPv6.
async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error)
            if error.raw_os_error() == Some(Errno::AFNOSUPPORT.raw_os_error())
                && address.ip() == Ipv6Addr::UNSPECIFIED =>
        {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        other => other,
    }
}

/// What the monitor counts of itself, by kata-monitor's names.
#[derive(Debug, Default)]
struct Scrapes {
    all: AtomicU64,
    failed: AtomicU64,
    took: Durations,
}

impl Scrapes {
    fn render(&self) -> String {
        let mut text = Text::default();
        let resident = base::process::resident(std::process::id().cast_signed());
        let descriptors = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        let plain = [
            ("kata_monitor_scrape_count", Kind::Counter, "Scrapes.", count(&self.all)),
            (
                "kata_monitor_scrape_failed_count",
                Kind::Counter,
                "Scrapes in which a shim did not answer.",
                count(&self.failed),
            ),
            (
                "kata_monitor_process_open_fds",
                Kind::Gauge,
                "Open file descriptors of the monitor.",
                descriptors as f64,
            ),
            (
                "kata_monitor_process_resident_memory_bytes",
                Kind::Gauge,
                "Resident memory (RSS) of the monitor.",
                resident.unwrap_or(0) as f64,
            ),
        ];
        for (name, kind, help, value) in plain {
            text.family(name, kind, help);
            text.sample(&[], value);
        }
        self.took.write(
            &mut text,
            "kata_monitor_scrape_durations_histogram_milliseconds",
            "Time of scrapes.",
        );
        text.finish()
    }
}

async fn answer_all(listener: TcpListener, root: PathBuf) {
    let scrapes = Arc::new(Scrapes::default());
    scrape::serve(listener, move |request| {
        respond(request, root.clone(), Arc::clone(&scrapes))
    })
    .await;
}

/// The paths are kata-monitor's (kata-containers, src/runtime/cmd/kata-monitor), but for those that look into a shim written
/// in Go (`/debug/…`).
async fn respond(request: Request, root: PathBuf, scrapes: Arc<Scrapes>) -> Reply {
    if request.method != Method::Get {
        return Reply::not_allowed("only GET\n".to_owned());
    }
    let sandbox = request.value("sandbox");
    match request.path.as_str() {
        "/metrics" => match counted(&root, sandbox.as_deref(), &scrapes).await {
            Ok(text) => Reply::figures(text),
            Err(error @ MetricsError::Find(FindError::None { .. } | FindError::Several { .. })) => {
                Reply::not_found(base::chain(&error) + "\n")
            }
            Err(error) => Reply::unavailable(base::chain(&error) + "\n"),
        },
        // One id a line.
        "/sandboxes" => match sandboxes::all(&root) {
            Ok(found) => Reply::text(found.iter().map(|found| format!("{}\n", found.id())).collect()),
            Err(error) => Reply::unavailable(base::chain(&error) + "\n"),
        },
        "/agent-url" => agent_url(&root, sandbox.as_deref()),
        "/" => Reply::text("/metrics\n/metrics?sandbox=ID\n/sandboxes\n/agent-url?sandbox=ID\n".to_owned()),
        _ => Reply::not_found("there are /metrics, /sandboxes and /agent-url\n".to_owned()),
    }
}

/// kata-monitor answers 400 for whatever is wrong.
fn agent_url(root: &Path, sandbox: Option<&str>) -> Reply {
    let Some(sandbox) = sandbox else {
        return Reply::bad_request("name the sandbox: /agent-url?sandbox=ID\n".to_owned());
    };
    match sandboxes::named(root, sandbox) {
        Ok(found) => Reply::text(protocol::agent_url(&found.directory) + "\n"),
        Err(error) => Reply::bad_request(base::chain(&error) + "\n"),
    }
}

/// With the monitor's own figures, unless one sandbox is asked for.
async fn counted(root: &Path, sandbox: Option<&str>, scrapes: &Scrapes) -> Result<String, MetricsError> {
    let began = Instant::now();
    scrapes.all.fetch_add(1, Ordering::Relaxed);
    let text = figures(root, sandbox).await;
    scrapes.took.record("", began.elapsed());
    let up = |text: &String| {
        !text
            .lines()
            .any(|line| line.starts_with("kata_shim_up{") && line.ends_with(" 0"))
    };
    let failed = match &text {
        Ok(text) => !up(text),
        // The question is wrong, and no shim was asked.
        Err(MetricsError::Find(FindError::None { .. } | FindError::Several { .. })) => false,
        Err(_) => true,
    };
    if failed {
        scrapes.failed.fetch_add(1, Ordering::Relaxed);
    }
    let own = if sandbox.is_none() {
        scrapes.render()
    } else {
        String::new()
    };
    text.map(|text| text + &own)
}

async fn figures(root: &Path, sandbox: Option<&str>) -> Result<String, MetricsError> {
    match sandbox {
        Some(id) => metrics::of(root, id).await,
        None => Ok(metrics::all(root).await? + &crate::factory::metrics().await),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn a_scrape_gets_figures_and_anything_else_a_status() {
        let root = tempfile::tempdir().unwrap();
        sandboxes::tests::make(root.path(), "a", r#"{"id":"a"}"#);
        sandboxes::tests::make(root.path(), "b", r#"{"id":"b"}"#);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(answer_all(listener, root.path().to_owned()));
        let ask = async |path: &str| {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).await.unwrap();
            text
        };
        let figures = ask("/metrics?x=1").await;
        assert!(
            figures.starts_with("HTTP/1.1 200 OK\r\n") && figures.contains("kata_sandboxes 2\n"),
            "{figures}"
        );
        assert!(ask("/sandboxes").await.ends_with("\r\n\r\na\nb\n"));
        // There, and its shim is not.
        let dead = ask("/metrics?sandbox=a").await;
        assert!(
            dead.starts_with("HTTP/1.1 503 ") && dead.contains("sandbox a"),
            "{dead}"
        );
        let failed = async || {
            let figures = ask("/metrics").await;
            let line = figures
                .lines()
                .find(|line| line.starts_with("kata_monitor_scrape_failed_count "));
            line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
                .unwrap()
        };
        let before = failed().await;
        assert!(ask("/metrics?sandbox=c").await.starts_with("HTTP/1.1 404 "));
        // That of the look before: the sandboxes have no shims.
        assert_eq!(failed().await, before + 1);
        assert!(ask("/nowhere").await.starts_with("HTTP/1.1 404 "));
        let url = ask("/agent-url?sandbox=a").await;
        assert!(
            url.contains("\r\n\r\nhvsock:///") && url.ends_with("/debug-console.sock:1024\n"),
            "{url}"
        );
        assert!(ask("/agent-url").await.starts_with("HTTP/1.1 400 "));
        assert!(ask("/agent-url?sandbox=c").await.starts_with("HTTP/1.1 400 "));
    }

    #[tokio::test]
    async fn only_this_host_is_served_unless_it_is_allowed() {
        for text in ["0.0.0.0:0", "[::]:0"] {
            let error = serve(text.parse().unwrap(), false).await.unwrap_err().to_string();
            assert!(
                error.contains("loopback") && error.contains("--allow-remote"),
                "{error}"
            );
        }
        let listener = bind("[::]:0".parse().unwrap()).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        // Through IPv4 as well.
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        let serving = tokio::spawn(serve("0.0.0.0:0".parse().unwrap(), true));
        tokio::task::yield_now().await;
        assert!(!serving.is_finished());
        serving.abort();
    }
}
