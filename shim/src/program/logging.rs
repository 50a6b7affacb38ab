//! The log: JSON lines into the bundle's `log` FIFO, which containerd reads.
//!
//! Nothing may ever wait for the log: the FIFO is written without blocking, and lines that do not fit are dropped and
//! counted. A line has at most `PIPE_BUF` bytes, so that it is written completely or not at all (pipe(7)).

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

use crate::id::{Namespace, SandboxId};

/// `PIPE_BUF` of Linux: a write of at most this length is atomic (pipe(7)).
const LINE_MAX: usize = 4096;
/// Longest text of one field, in bytes.
const FIELD_MAX: usize = 2000;
/// What is left of a message whose line would be too long: its escapes included it still fits.
const MESSAGE_MIN: usize = 400;

/// Fields of a line of the agent's that are passed on.
const FIELDS_MAX: usize = 16;
/// Longest name of such a field, in bytes.
const NAME_MAX: usize = 32;
/// What the agent's fields may not be called: the line's own.
const OUR_FIELDS: [&str; 9] = [
    "level",
    "message",
    "msg",
    "timestamp",
    "target",
    "time",
    "namespace",
    "sandbox",
    "dropped",
];

/// Takes the lines that the agent wrote, and all events of `tracing`.
#[derive(Debug, Clone)]
pub struct LogHandle {
    sink: Arc<Sink>,
    /// None where another subscriber was there first.
    level: Option<reload::Handle<LevelFilter, Registry>>,
}

#[derive(Debug)]
struct Sink {
    fifo: Option<File>,
    namespace: String,
    sandbox: String,
    dropped: AtomicU64,
}

/// Makes the FIFO in the bundle the place where `tracing` events go. Where it cannot be opened there is no log.
///
/// `debug` lowers the level from info to debug.
#[must_use]
pub fn init(bundle: &Path, namespace: &Namespace, sandbox: &SandboxId, debug: bool) -> LogHandle {
    // For reading, too: then opening needs no reader, and writing survives containerd's restart (fifo(7)).
    let fifo = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW)
        .open(bundle.join("log"))
        .ok();
    let mut handle = LogHandle::new(fifo, namespace, sandbox);
    let level = if debug { LevelFilter::DEBUG } else { LevelFilter::INFO };
    let (filter, level) = reload::Layer::new(level);
    // Fails where a subscriber is set already: then that one stays.
    let logged = tracing_subscriber::registry()
        .with(handle.clone().with_filter(filter))
        .try_init();
    handle.level = logged.ok().map(|()| level);
    std::panic::set_hook(Box::new(|panic| tracing::error!("the shim panicked: {panic}")));
    handle
}

impl LogHandle {
    fn new(fifo: Option<File>, namespace: &Namespace, sandbox: &SandboxId) -> Self {
        let sink = Sink {
            fifo,
            namespace: namespace.as_str().to_owned(),
            sandbox: sandbox.as_str().to_owned(),
            dropped: AtomicU64::new(0),
        };
        Self {
            sink: Arc::new(sink),
            level: None,
        }
    }

    /// Lowers the level to debug: the configuration is read later than the log begins.
    pub fn set_debug(&self) {
        let lowered = self.level.as_ref().map(|level| level.reload(LevelFilter::DEBUG));
        if let Some(Err(error)) = lowered {
            tracing::warn!(%error, "the log's level cannot be lowered");
        }
    }

    /// Passes on one line of the agent's log: its level, its message and its fields. It may be anything: what is no such
    /// line is cut, and made the message of a line of ours.
    pub fn relay(&self, line: &[u8]) {
        let (level, mut fields) = agent_line(line).unwrap_or_else(|| {
            let text = String::from_utf8_lossy(&line[..line.len().min(FIELD_MAX)]);
            ("info", Map::from_iter([("msg".to_owned(), text.trim_end().into())]))
        });
        fields.insert("source".to_owned(), "agent".into());
        self.sink.write(level, fields);
    }

    /// Lines that were dropped since the last one that could be written.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.sink.dropped.load(Ordering::Relaxed)
    }
}

impl<S: Subscriber> Layer<S> for LogHandle {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let mut fields = Fields(Map::new());
        event.record(&mut fields);
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warning",
            Level::INFO => "info",
            Level::DEBUG => "debug",
            Level::TRACE => "trace",
        };
        self.sink.write(level, fields.0);
    }
}

impl Sink {
    fn write(&self, level: &str, fields: Map<String, Value>) {
        let Some(mut fifo) = self.fifo.as_ref() else { return };
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        let line = self.line(level, fields, dropped);
        if fifo.write(&line).is_err() {
            self.dropped.fetch_add(dropped + 1, Ordering::Relaxed);
        }
    }

    fn line(&self, level: &str, mut fields: Map<String, Value>, dropped: u64) -> Vec<u8> {
        if dropped > 0 {
            fields.insert("dropped".to_owned(), dropped.into());
        }
        let message = fields.get("msg").and_then(Value::as_str).unwrap_or_default().to_owned();
        let line = self.encode(level, fields);
        if line.len() <= LINE_MAX {
            return line;
        }
        let mut short = Map::new();
        short.insert("msg".to_owned(), format!("{} …", cut(&message, MESSAGE_MIN)).into());
        self.encode(level, short)
    }

    fn encode(&self, level: &str, mut fields: Map<String, Value>) -> Vec<u8> {
        fields.insert("level".to_owned(), level.into());
        fields.insert("time".to_owned(), now().into());
        fields.insert("namespace".to_owned(), self.namespace.as_str().into());
        fields.insert("sandbox".to_owned(), self.sandbox.as_str().into());
        let mut line = Value::Object(fields).to_string().into_bytes();
        line.push(b'\n');
        line
    }
}

/// Reads a line as the agent writes it: a flat JSON object with `level`, `message`, `timestamp`, `target` and the event's
/// own fields. None if it is something else. What would not fit or has no place in our line is left out.
fn agent_line(line: &[u8]) -> Option<(&'static str, Map<String, Value>)> {
    let object: Map<String, Value> = serde_json::from_slice(line).ok()?;
    let level = match object.get("level")?.as_str()? {
        "ERROR" => "error",
        "WARN" => "warning",
        "INFO" => "info",
        "DEBUG" => "debug",
        "TRACE" => "trace",
        _ => return None,
    };
    let message = object.get("message")?.as_str()?;
    let mut fields = Map::new();
    fields.insert("msg".to_owned(), cut(message, FIELD_MAX).into());
    let others = object
        .iter()
        .filter(|(name, _)| !OUR_FIELDS.contains(&name.as_str()) && name.len() <= NAME_MAX);
    for (name, value) in others.take(FIELDS_MAX) {
        let value = match value {
            Value::String(text) => cut(text, FIELD_MAX).into(),
            Value::Bool(_) | Value::Number(_) => value.clone(),
            Value::Null | Value::Array(_) | Value::Object(_) => continue,
        };
        fields.insert(name.clone(), value);
    }
    Some((level, fields))
}

/// Seconds since the epoch, with microseconds.
fn now() -> String {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    format!("{}.{:06}", now.as_secs(), now.subsec_micros())
}

struct Fields(Map<String, Value>);

impl Fields {
    fn insert(&mut self, field: &Field, value: impl Into<Value>) {
        let name = if field.name() == "message" { "msg" } else { field.name() };
        self.0.insert(name.to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.insert(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.insert(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.insert(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.insert(field, cut(value, FIELD_MAX));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.insert(field, cut(&format!("{value:?}"), FIELD_MAX));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.insert(field, cut(&base::chain(value), FIELD_MAX));
    }
}

fn cut(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::{BufRead, BufReader};

    fn sink(fifo: Option<File>) -> LogHandle {
        LogHandle::new(
            fifo,
            &Namespace::new("default").unwrap(),
            &SandboxId::new("pod").unwrap(),
        )
    }

    #[test]
    fn a_log_that_nobody_reads_drops_and_says_how_much() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let open = || {
            OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(libc::O_NONBLOCK)
                .open(&path)
                .unwrap()
        };
        let log = sink(Some(open()));
        let line = vec![b'x'; 1000];
        for _ in 0..200 {
            log.relay(&line);
        }
        let dropped = log.dropped();
        assert!(dropped > 0);
        let mut reader = BufReader::new(open());
        let mut text = String::new();
        reader.read_line(&mut text).unwrap();
        while reader.read_line(&mut text).is_ok_and(|length| length > 0) {}
        log.relay(b"again");
        let mut last = String::new();
        reader.read_line(&mut last).unwrap();
        let value: Value = serde_json::from_str(&last).unwrap();
        assert_eq!(value["dropped"], dropped);
        assert_eq!(value["sandbox"], "pod");
        assert_eq!(value["msg"], "again");
    }

    #[test]
    fn a_line_of_the_agent_keeps_its_level_and_its_fields() {
        let line =
            br#"{"timestamp":"t","level":"WARN","message":"not removed","container":"c","status":3,"sandbox":"x"}"#;
        let (level, fields) = agent_line(line).unwrap();
        assert_eq!(level, "warning");
        let expected = serde_json::json!({"msg": "not removed", "container": "c", "status": 3});
        assert_eq!(Value::Object(fields), expected);
        assert!(agent_line(b"plain").is_none());
    }

    proptest! {
        #[test]
        fn any_line_of_the_agent_fits_the_pipe(message in "(\\PC|\u{1}){0,3000}", name in "\\PC{0,40}", count in 0usize..40) {
            let mut line = Map::new();
            line.insert("level".to_owned(), "INFO".into());
            line.insert("message".to_owned(), message.as_str().into());
            for number in 0..count {
                line.insert(format!("{name}{number}"), message.as_str().into());
            }
            let (level, fields) = agent_line(Value::Object(line).to_string().as_bytes()).unwrap();
            let line = sink(None).sink.line(level, fields, 0);
            prop_assert!(line.len() <= LINE_MAX);
            prop_assert!(serde_json::from_slice::<Value>(&line).is_ok());
        }

        #[test]
        fn any_bytes_are_a_line_or_not(bytes: Vec<u8>) {
            let _ = agent_line(&bytes);
        }

        #[test]
        fn every_line_is_json_and_fits_the_pipe(text in "(\\PC|\u{1}|\n){0,3000}") {
            let handle = sink(None);
            let mut fields = Map::new();
            fields.insert("msg".to_owned(), cut(&text, FIELD_MAX).into());
            fields.insert("error".to_owned(), cut(&text, FIELD_MAX).into());
            let line = handle.sink.line("info", fields, 3);
            prop_assert!(line.len() <= LINE_MAX);
            prop_assert!(serde_json::from_slice::<Value>(&line).is_ok());
            prop_assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        }
    }
}
