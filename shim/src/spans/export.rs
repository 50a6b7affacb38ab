//! Sends spans to the collector in batches. Nobody waits for it: spans wait in a bounded queue, and those that find it full, or
//! whose batch is not taken, are lost and counted.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use trace::Record;

use super::endpoint::Endpoint;
use super::otlp::{Origin, Resource};

/// Spans that wait for the collector: at most 4 MiB of them.
const QUEUE: usize = 1024;

/// Most spans in one request.
const BATCH: usize = 256;

/// Longest time that a span waits for others before it is sent.
const GATHER: Duration = Duration::from_millis(500);

/// Timeout for a collector to take a batch.
const REQUEST: Duration = Duration::from_secs(3);

/// Longest part of an answer that is read: its status is in the first line.
const ANSWER: usize = 512;

enum Job {
    Span(Origin, Record),
    /// Send what is there, and say when it is done.
    Flush(oneshot::Sender<()>),
}

#[derive(Default)]
struct Counts {
    sent: AtomicU64,
    dropped: AtomicU64,
}

#[derive(Clone)]
pub(super) struct Exporter {
    jobs: mpsc::Sender<Job>,
    counts: Arc<Counts>,
}

impl Exporter {
    pub(super) fn start(endpoint: Endpoint, resource: Resource) -> Self {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let counts = Arc::<Counts>::default();
        let sender = Sender {
            endpoint,
            resource,
            counts: Arc::clone(&counts),
            failing: false,
        };
        tokio::spawn(sender.run(queue));
        Self { jobs, counts }
    }

    /// Queues a span, or drops it.
    pub(super) fn send(&self, origin: Origin, span: Record) {
        if self.jobs.try_send(Job::Span(origin, span)).is_err() {
            self.drop_one();
        }
    }

    /// Counts one that was not even queued.
    pub(super) fn drop_one(&self) {
        self.counts.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits until what is queued has been sent, for `limit` at most.
    pub(super) async fn flush(&self, limit: Duration) {
        let flush = async {
            let (done, sent) = oneshot::channel();
            if self.jobs.send(Job::Flush(done)).await.is_ok() {
                // Gone only with the runtime.
                let _ = sent.await;
            }
        };
        if timeout(limit, flush).await.is_err() {
            tracing::warn!("the collector did not take the last spans in time");
        }
    }

    /// Numbers of spans sent and dropped.
    pub(super) fn counts(&self) -> (u64, u64) {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (count(&self.counts.sent), count(&self.counts.dropped))
    }
}

struct Sender {
    endpoint: Endpoint,
    resource: Resource,
    counts: Arc<Counts>,
    /// Whether the last batch was lost: one line of the log for each time that this begins.
    failing: bool,
}

impl Sender {
    async fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        while let Some(first) = queue.recv().await {
            let mut spans = Vec::new();
            let mut waiting = Vec::new();
            let mut keep = |job: Job, spans: &mut Vec<_>| match job {
                Job::Span(origin, span) => spans.push((origin, span)),
                Job::Flush(done) => waiting.push(done),
            };
            let flushed = matches!(first, Job::Flush(_));
            keep(first, &mut spans);
            let gathering = async {
                while !flushed && spans.len() < BATCH {
                    match queue.recv().await {
                        Some(job) => {
                            let last = matches!(job, Job::Flush(_));
                            keep(job, &mut spans);
                            if last {
                                break;
                            }
                        }
                        None => break,
                    }
                }
            };
            // What has been received when the time is up is in `spans`: recv() loses nothing when it is dropped.
            let _ = timeout(GATHER, gathering).await;
            self.send(&spans).await;
            for done in waiting {
                // Whoever waited may have gone.
                let _ = done.send(());
            }
        }
    }

    async fn send(&mut self, spans: &[(Origin, Record)]) {
        if spans.is_empty() {
            return;
        }
        let body = self.resource.request(spans);
        let sent = timeout(REQUEST, post(&self.endpoint, &body)).await;
        let sent = sent.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let (count, number) = match &sent {
            Ok(()) => (&self.counts.sent, spans.len()),
            Err(_) => (&self.counts.dropped, spans.len()),
        };
        count.fetch_add(u64::try_from(number).unwrap_or(u64::MAX), Ordering::Relaxed);
        match sent {
            Ok(()) => self.failing = false,
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    let collector = self.endpoint.url();
                    tracing::warn!(collector, %error, "the collector does not take spans: they are lost until it does");
                }
            }
        }
    }
}

/// Sends one request, and looks at the status of its answer.
async fn post(endpoint: &Endpoint, body: &[u8]) -> io::Result<()> {
    let mut stream = TcpStream::connect(endpoint.address()).await?;
    stream.write_all(endpoint.head(body.len()).as_bytes()).await?;
    stream.write_all(body).await?;
    let mut answer = Vec::new();
    let mut piece = [0; ANSWER];
    while !answer.contains(&b'\n') && answer.len() < ANSWER {
        match stream.read(&mut piece).await? {
            0 => break,
            count => answer.extend_from_slice(&piece[..count]),
        }
    }
    match status(&answer) {
        Some(200..300) => Ok(()),
        Some(status) => Err(io::Error::other(format!("it answers with status {status}"))),
        None => Err(io::Error::other("its answer is no HTTP")),
    }
}

/// The status in the first line of an answer (RFC 9112, section 4).
fn status(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|byte| *byte == b'\n').next()?;
    let text = std::str::from_utf8(line).ok()?;
    let (version, rest) = text.split_once(' ')?;
    version.starts_with("HTTP/1.").then_some(())?;
    rest.get(..3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Namespace, SandboxId};
    use config::Runtime;
    use tokio::net::TcpListener;
    use trace::{Context, Kind};

    async fn collector() -> (TcpListener, Exporter) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let runtime = Runtime {
            jaeger_endpoint: format!("http://{}/v1/traces", listener.local_addr().unwrap()),
            ..Runtime::default()
        };
        let endpoint = Endpoint::of(&runtime, |_| None).unwrap();
        let resource = Resource::new(&Namespace::new("n").unwrap(), &SandboxId::new("s").unwrap());
        (listener, Exporter::start(endpoint, resource))
    }

    fn span() -> Record {
        let root = Context::root();
        Record {
            context: root.child(),
            parent: Some(root),
            name: "Create".to_owned(),
            kind: Kind::Server,
            start: 1,
            end: 2,
            attributes: std::collections::BTreeMap::new(),
            error: None,
        }
    }

    async fn answer(listener: &TcpListener, status: &str) -> String {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"}]}]}]}") {
            let mut piece = [0; 1024];
            let count = stream.read(&mut piece).await.unwrap();
            assert_ne!(count, 0);
            request.extend_from_slice(&piece[..count]);
        }
        stream
            .write_all(format!("HTTP/1.1 {status}\r\n\r\n").as_bytes())
            .await
            .unwrap();
        String::from_utf8(request).unwrap()
    }

    #[tokio::test]
    async fn spans_are_sent_together_and_a_refusal_is_counted() {
        let (listener, exporter) = collector().await;
        exporter.send(Origin::Shim, span());
        exporter.send(Origin::Shim, span());
        let (request, ()) = tokio::join!(answer(&listener, "200 OK"), exporter.flush(REQUEST));
        assert_eq!(request.matches("spanId\"").count(), 2, "{request}");
        assert_eq!(exporter.counts(), (2, 0));
        exporter.send(Origin::Shim, span());
        tokio::join!(answer(&listener, "503 Service Unavailable"), exporter.flush(REQUEST));
        assert_eq!(exporter.counts(), (2, 1));
    }

    #[tokio::test]
    async fn a_collector_that_hangs_holds_nobody_up_and_what_is_lost_is_counted() {
        let (listener, exporter) = collector().await;
        exporter.send(Origin::Shim, span());
        let (_held, _) = listener.accept().await.unwrap();
        let began = std::time::Instant::now();
        for _ in 0..QUEUE + 7 {
            exporter.send(Origin::Shim, span());
        }
        exporter.flush(Duration::from_millis(50)).await;
        assert!(began.elapsed() < REQUEST / 2);
        assert!(exporter.counts().1 >= 7, "{:?}", exporter.counts());
    }

    #[test]
    fn only_an_answer_of_http_has_a_status() {
        assert_eq!(status(b"HTTP/1.1 200 OK\r\n"), Some(200));
        assert_eq!(status(b"HTTP/1.0 429\n"), Some(429));
        for other in [
            &b""[..],
            b"HTTP/1.1",
            b"SSH-2.0 200 x",
            b"HTTP/1.1 2",
            b"HTTP/1.1 \xff00 x",
        ] {
            assert_eq!(status(other), None);
        }
    }
}
