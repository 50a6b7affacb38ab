//! Writes a guest's memory into a file when its kernel has panicked or has restarted the machine (`guest_memory_dump_path`).
//!
//! ```text
//!  running ── SHUTDOWN guest-reset, guest-panic ──► paused ── dump-guest-memory, DUMP_COMPLETED ──► quit
//!     └────── SHUTDOWN for another reason of the guest's ─────────────────────────────────────────► quit
//! ```
//! QEMU has to wait at the guest's end for this (`-action shutdown=pause`). The file is made here, so QEMU needs no right for it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use config::Hypervisor;
use serde_json::{Value, json};
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;

use crate::qmp::{Event, Qmp, QmpError};

/// How often QEMU is asked how it gets on.
const ASKED: Duration = Duration::from_secs(5);

/// How long it may get no further.
const NO_PROGRESS: Duration = Duration::from_secs(60);

/// QEMU's name for the file.
const FILE: &str = "dump";

#[derive(Debug, thiserror::Error)]
enum DumpError {
    #[error(transparent)]
    Qmp(#[from] QmpError),
    #[error("cannot {operation} {}", path.display())]
    File {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} has {available} bytes left, and twice the {memory} bytes of the guest's memory are needed", directory.display())]
    NoRoom {
        directory: PathBuf,
        available: u64,
        memory: u64,
    },
    #[error("QEMU could not write it: {0}")]
    Failed(String),
    #[error("QEMU has written nothing for {} s", .0.as_secs())]
    Stuck(Duration),
    #[error("the work was interrupted")]
    Interrupted,
}

/// Where and how a guest's memory is dumped.
#[derive(Debug, Clone)]
pub(crate) struct Dump {
    /// One directory of it is the sandbox's.
    directory: PathBuf,
    /// With the guest's page tables.
    paging: bool,
}

impl Dump {
    /// As the configuration says; none if memory is not dumped.
    pub(crate) fn of(config: &Hypervisor) -> Option<Self> {
        let directory = config.guest_memory_dump_path.clone();
        (!directory.as_os_str().is_empty()).then_some(Self {
            directory,
            paging: config.guest_memory_dump_paging,
        })
    }
}

/// Waits for a guest's end, to dump its memory.
#[derive(Debug)]
pub(crate) struct Dumper {
    name: Arc<Mutex<String>>,
    dumping: watch::Receiver<bool>,
}

impl Dumper {
    /// Begins to wait. To be called within a runtime, before the guest runs.
    pub(crate) fn start(qmp: Qmp, dump: Dump, name: String) -> Self {
        let name = Arc::new(Mutex::new(name));
        let (state, dumping) = watch::channel(false);
        let (events, sandbox) = (qmp.events(), Arc::clone(&name));
        tokio::spawn(async move {
            let closed = qmp.clone();
            tokio::select! {
                () = wait(&qmp, events, &dump, &sandbox, &state) => {}
                _ = closed.closed() => {}
            }
        });
        Self { name, dumping }
    }

    /// Names the sandbox, of a VM that has booted for nobody.
    pub(crate) fn rename(&self, name: &str) {
        name.clone_into(&mut self.name.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Waits until no dump is being written. It is bounded by a lack of progress.
    pub(crate) async fn idle(&self) {
        // A sender that is gone dumps nothing.
        let _ = self.dumping.clone().wait_for(|dumping| !dumping).await;
    }
}

async fn wait(
    qmp: &Qmp,
    mut events: broadcast::Receiver<Event>,
    dump: &Dump,
    name: &Mutex<String>,
    state: &watch::Sender<bool>,
) {
    let reason = loop {
        match events.recv().await {
            Ok(event) if event.name == "SHUTDOWN" => {
                // What the host asks for ends QEMU without us.
                if event.data["guest"] != Value::Bool(true) {
                    return;
                }
                break event.data["reason"].as_str().unwrap_or_default().to_owned();
            }
            Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return,
        }
    };
    if matches!(reason.as_str(), "guest-reset" | "guest-panic") {
        state.send_replace(true);
        let sandbox = name.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match write(qmp, events, dump, &sandbox).await {
            Ok(file) => tracing::warn!(sandbox, reason, file = %file.display(), "the guest's memory is dumped"),
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(sandbox, reason, error, "the guest's memory is not dumped");
            }
        }
    }
    // If it does not answer it has ended, or is ended by whoever waits for it.
    let _ = qmp.execute("quit", Value::Null).await;
    state.send_replace(false);
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

/// Makes the file and has QEMU write it. What is not complete is removed.
async fn write(
    qmp: &Qmp,
    events: broadcast::Receiver<Event>,
    dump: &Dump,
    sandbox: &str,
) -> Result<PathBuf, DumpError> {
    let memory = memory_of(qmp).await?;
    let (directory, now) = (dump.directory.join(sandbox), SystemTime::now());
    let made = tokio::task::spawn_blocking(move || create(&directory, memory, now)).await;
    let (path, file) = made.map_err(|_| DumpError::Interrupted)??;
    let written = have_written(qmp, events, file, dump.paging).await;
    if let Err(error) = written {
        // Nobody takes a part of it for the whole.
        let _ = std::fs::remove_file(&path);
        return Err(error);
    }
    Ok(path)
}

/// What the guest has in all, in bytes.
async fn memory_of(qmp: &Qmp) -> Result<u64, QmpError> {
    let size = qmp.execute("query-memory-size-summary", Value::Null).await?;
    let part = |name: &str| size[name].as_u64().unwrap_or_default();
    Ok(part("base-memory").saturating_add(part("plugged-memory")))
}

/// A new file in the directory, which is made. It is for root alone: it has whatever the guest had in its memory. Blocks.
fn create(directory: &Path, memory: u64, now: SystemTime) -> Result<(PathBuf, File), DumpError> {
    let failed = |operation, path: &Path| {
        let path = path.to_owned();
        move |source| DumpError::File {
            operation,
            path,
            source,
        }
    };
    let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(failed("create", directory))?;
    let figures = rustix::fs::statvfs(directory).map_err(|errno| failed("look at", directory)(errno.into()))?;
    let available = figures.f_bavail.saturating_mul(figures.f_frsize);
    if available < memory.saturating_mul(2) {
        return Err(DumpError::NoRoom {
            directory: directory.to_owned(),
            available,
            memory,
        });
    }
    let path = directory.join(format!("vmcore-{}.elf", utc(now)));
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    let file = file.map_err(failed("create", &path))?;
    Ok((path, file))
}

/// A time as in `20261130T094000Z` (ISO 8601, basic format).
fn utc(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (mut days, rest) = (seconds / 86_400, seconds % 86_400);
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let (hours, minutes, seconds) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}{month:02}{:02}T{hours:02}{minutes:02}{seconds:02}Z", days + 1)
}

async fn have_written(
    qmp: &Qmp,
    mut events: broadcast::Receiver<Event>,
    file: File,
    paging: bool,
) -> Result<(), DumpError> {
    qmp.execute_with("getfd", json!({ "fdname": FILE }), file.into())
        .await?;
    let arguments = json!({ "paging": paging, "protocol": format!("fd:{FILE}"), "detach": true });
    qmp.execute("dump-guest-memory", arguments).await?;
    let limit = qmp.scale().of(NO_PROGRESS);
    let (mut completed, mut since) = (0, Instant::now());
    loop {
        match tokio::time::timeout(ASKED, events.recv()).await {
            Ok(Ok(event)) if event.name == "DUMP_COMPLETED" => {
                return match event.data["error"].as_str() {
                    None if event.data["result"]["status"] == "completed" => Ok(()),
                    error => Err(DumpError::Failed(error.unwrap_or("it says no reason").to_owned())),
                };
            }
            Ok(Err(broadcast::error::RecvError::Closed)) => return Err(QmpError::Closed.into()),
            Ok(Ok(_) | Err(broadcast::error::RecvError::Lagged(_))) => {}
            Err(_) => {
                let now = qmp.execute("query-dump", Value::Null).await?;
                match now["status"].as_str() {
                    Some("completed") => return Ok(()),
                    Some("failed") => return Err(DumpError::Failed("it says no reason".to_owned())),
                    _ => {}
                }
                let bytes = now["completed"].as_u64().unwrap_or_default();
                if bytes > completed {
                    (completed, since) = (bytes, Instant::now());
                } else if since.elapsed() >= limit {
                    return Err(DumpError::Stuck(limit));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use tokio::sync::mpsc;

    use super::*;
    use crate::scripted;

    type Said = Arc<Mutex<Vec<String>>>;

    /// A QEMU with a guest of 1 MiB. It writes nothing; `dumped` is what it says of a dump.
    fn qemu(dumped: Vec<Value>) -> (Qmp, mpsc::UnboundedSender<Value>, Said) {
        let said = Said::default();
        let (unasked, events) = mpsc::unbounded_channel();
        let commands = Arc::clone(&said);
        let rule = move |command: &str, arguments: &Value| {
            commands.lock().unwrap().push(format!("{command} {arguments}"));
            let answer = json!({ "return": {} });
            match command {
                "query-memory-size-summary" => Some(vec![json!({ "return": { "base-memory": 1 << 20 } })]),
                "dump-guest-memory" => Some([vec![answer], dumped.clone()].concat()),
                "query-dump" => Some(vec![json!({ "return": { "status": "active", "completed": 7 } })]),
                "quit" => None,
                _ => Some(vec![answer]),
            }
        };
        (scripted::talkative(rule, events), unasked, said)
    }

    fn shutdown(reason: &str, guest: bool) -> Value {
        json!({ "event": "SHUTDOWN", "data": { "guest": guest, "reason": reason } })
    }

    fn completed() -> Value {
        json!({ "event": "DUMP_COMPLETED", "data": { "result": { "status": "completed", "completed": 1, "total": 1 } } })
    }

    fn start(qmp: &Qmp, directory: &Path) -> Dumper {
        let config = Hypervisor {
            guest_memory_dump_path: directory.to_owned(),
            ..Hypervisor::default()
        };
        Dumper::start(qmp.clone(), Dump::of(&config).unwrap(), "pool".to_owned())
    }

    fn files(directory: &Path) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(directory.join("sandbox")).into_iter().flatten();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    #[tokio::test]
    async fn a_guest_that_restarts_is_dumped_into_a_file_for_root_and_ended() {
        let directory = tempfile::tempdir().unwrap();
        let (qmp, unasked, said) = qemu(vec![completed()]);
        let dumper = start(&qmp, directory.path());
        dumper.rename("sandbox");
        unasked.send(shutdown("guest-reset", true)).unwrap();
        qmp.closed().await;
        dumper.idle().await;
        let said = said.lock().unwrap().clone();
        let names: Vec<_> = said.iter().map(|line| line.split(' ').next().unwrap()).collect();
        assert_eq!(
            names,
            ["query-memory-size-summary", "getfd", "dump-guest-memory", "quit"]
        );
        assert!(
            said[2].contains("\"protocol\":\"fd:dump\"") && said[2].contains("\"paging\":false"),
            "{said:?}"
        );
        let [file] = &files(directory.path())[..] else { panic!() };
        let name = file.file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with("vmcore-2") && name.ends_with("Z.elf"), "{name}");
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let parent = file.parent().unwrap().metadata().unwrap();
        assert_eq!(parent.permissions().mode() & 0o777, 0o700);
    }

    #[tokio::test]
    async fn a_guest_that_powers_off_is_ended_without_a_dump() {
        let directory = tempfile::tempdir().unwrap();
        let (qmp, unasked, said) = qemu(Vec::new());
        let _dumper = start(&qmp, directory.path());
        unasked.send(shutdown("guest-shutdown", true)).unwrap();
        qmp.closed().await;
        assert_eq!(*said.lock().unwrap(), ["quit null"]);
        assert!(files(directory.path()).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_or_gets_no_further_leaves_no_file() {
        let failed =
            json!({ "event": "DUMP_COMPLETED", "data": { "result": { "status": "failed" }, "error": "no space" } });
        for dumped in [vec![failed], Vec::new()] {
            let directory = tempfile::tempdir().unwrap();
            let (qmp, unasked, _) = qemu(dumped);
            let dumper = start(&qmp, directory.path());
            dumper.rename("sandbox");
            unasked.send(shutdown("guest-panic", true)).unwrap();
            qmp.closed().await;
            dumper.idle().await;
            assert!(files(directory.path()).is_empty());
        }
    }

    #[test]
    fn without_twice_the_room_nothing_is_made() {
        let directory = tempfile::tempdir().unwrap();
        let error = create(&directory.path().join("a"), u64::MAX / 2, UNIX_EPOCH).unwrap_err();
        assert!(error.to_string().contains("twice"), "{error}");
        assert_eq!(std::fs::read_dir(directory.path().join("a")).unwrap().count(), 0);
        create(directory.path(), 0, UNIX_EPOCH).unwrap();
        let again = create(directory.path(), 0, UNIX_EPOCH).unwrap_err();
        assert!(again.to_string().contains("vmcore-19700101T000000Z.elf"), "{again}");
    }

    #[test]
    fn a_time_is_written_as_a_name() {
        for (seconds, text) in [
            (0, "19700101T000000Z"),
            (951_782_400, "20000229T000000Z"),
            (1_709_251_199, "20240229T235959Z"),
            (1_798_761_599, "20261231T235959Z"),
            (4_107_542_400, "21000301T000000Z"),
        ] {
            assert_eq!(utc(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }
}
