//! The guest: it boots, dials the host, runs make-believe programs, and lies if a test wants it to.
//!
//! The programs, by the first word of `args`: `exit N`; `sleep` until a signal comes; `flood N`, N bytes of output and a word on stderr;
//! `cat`; `liar`, which announces more output than it writes; `missing`, which cannot be executed; `slow`, whose creation
//! waits until the guest is released; `stuck`, whose start does; `refused`, which cannot be created; `clinging`, which the guest
//! does not forget; `flushing`, whose disk is slow until the guest is released; `mute`, of which it tells no figures until it is released;
//! `hung`, to which no signal is passed on until then; `tough`, which is not frozen until then; `undialled`, whose streams are never
//! connected.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use guest::vm::Ending;
use protocol::agent::event::What;
use protocol::agent::{Event, HelloRequest, MemoryDemand, ProcessExit, ProcessId, SandboxSetup, Stdio};
use protocol::agent_ttrpc::HostClient;
use protocol::preamble::{Preamble, Token};
use shim::sandbox::connections::LogSink;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{OnceCell, mpsc, watch};
use ttrpc::r#async::Client;
use ttrpc::r#async::transport::Socket;

use super::cables::Cables;
use super::calls::soon;
use super::disks::FakeDisks;
use super::liar::Liar;
use super::network::FakeNetwork;
use super::size::FakeSize;

pub(super) type Key = (String, String);

pub(crate) struct Guest {
    cables: Cables,
    pub(crate) disks: FakeDisks,
    pub(crate) size: FakeSize,
    pub(crate) network: FakeNetwork,
    dial: mpsc::UnboundedSender<UnixStream>,
    dialled: Mutex<Option<mpsc::UnboundedReceiver<UnixStream>>>,
    host: OnceCell<HostClient>,
    /// The number of the last event.
    published: tokio::sync::Mutex<u64>,
    pub(super) processes: Mutex<HashMap<Key, Arc<GuestProcess>>>,
    /// Containers whose creation waits.
    pub(super) making: watch::Sender<BTreeSet<String>>,
    released: watch::Sender<bool>,
    /// Progress that a slow deletion reports.
    pub(super) progress: AtomicU64,
    /// Set: the agent answers no call.
    pub(super) silent: AtomicBool,
    /// Rewrites what the agent answers.
    pub(crate) liar: Arc<Liar>,
    /// The calls that came, as "verb container".
    pub(crate) calls: watch::Sender<Vec<String>>,
    /// The serial numbers that each container was told.
    pub(super) serials: Mutex<HashMap<String, Vec<String>>>,
    log: watch::Sender<Vec<Vec<u8>>>,
    ended: watch::Sender<Option<Ending>>,
}

pub(super) struct GuestProcess {
    pub(super) args: Vec<String>,
    streams: tokio::sync::Mutex<GuestStreams>,
    signal: watch::Sender<u32>,
    started: AtomicBool,
    ended: AtomicBool,
    pub(super) stdin_length: watch::Sender<Option<u64>>,
}

#[derive(Default)]
pub(super) struct GuestStreams {
    stdin: Option<UnixStream>,
    stdout: Option<UnixStream>,
    stderr: Option<UnixStream>,
}

#[derive(Default)]
struct End {
    status: u32,
    stdout: u64,
    stderr: u64,
}

impl Guest {
    pub(super) fn new() -> Arc<Self> {
        let (dial, dialled) = mpsc::unbounded_channel();
        Arc::new(Self {
            cables: Cables::default(),
            disks: FakeDisks::default(),
            size: FakeSize::default(),
            network: FakeNetwork::default(),
            dial,
            dialled: Mutex::new(Some(dialled)),
            host: OnceCell::new(),
            published: tokio::sync::Mutex::default(),
            processes: Mutex::default(),
            making: watch::Sender::default(),
            released: watch::Sender::new(false),
            progress: AtomicU64::new(0),
            silent: AtomicBool::new(false),
            liar: Arc::default(),
            calls: watch::Sender::default(),
            serials: Mutex::default(),
            log: watch::Sender::default(),
            ended: watch::Sender::default(),
        })
    }

    pub(super) fn take_dialled(&self) -> mpsc::UnboundedReceiver<UnixStream> {
        self.dialled.lock().unwrap().take().expect("a VM is launched once")
    }

    pub(super) fn ended(&self) -> watch::Receiver<Option<Ending>> {
        self.ended.subscribe()
    }

    /// What the shim passed on of the agent's log.
    pub(super) fn log_sink(&self) -> LogSink {
        let log = self.log.clone();
        Arc::new(move |line: &[u8]| log.send_modify(|lines| lines.push(line.to_vec())))
    }

    /// The log's lines, once there are that many.
    pub(crate) async fn logged(&self, count: usize) -> Vec<Vec<u8>> {
        let mut log = self.log.subscribe();
        log.wait_for(|lines| lines.len() >= count).await.unwrap().clone()
    }

    pub(crate) fn die(&self, reason: &str, out_of_memory: bool) {
        self.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            if first {
                *ended = Some(Ending {
                    reason: reason.to_owned(),
                    out_of_memory,
                });
            }
            first
        });
        self.cables.cut();
    }

    /// Ends as the real agent does: once the host has hung up HOST and AGENT.
    pub(super) async fn power_off(self: Arc<Self>) {
        let guest = Arc::clone(&self);
        let hung_up = tokio::task::spawn_blocking(move || guest.cables.hung_up(2)).await;
        if hung_up.unwrap() {
            self.die("the guest powered off", false);
        }
    }

    pub(crate) fn release(&self) {
        self.released.send_replace(true);
    }

    pub(super) fn is_released(&self) -> bool {
        *self.released.borrow()
    }

    pub(super) async fn until_released(&self) {
        let mut released = self.released.subscribe();
        released.wait_for(|released| *released).await.unwrap();
    }

    /// Waits for a call of the shim: "create c".
    pub(crate) async fn called(&self, call: &str) {
        let mut calls = self.calls.subscribe();
        calls
            .wait_for(|calls| calls.iter().any(|one| one == call))
            .await
            .unwrap();
    }

    /// The serial numbers of the disks that a container was told of.
    pub(crate) fn serials(&self, id: &str) -> Vec<String> {
        self.serials.lock().unwrap().get(id).cloned().unwrap_or_default()
    }

    /// What the guest has of a container or an exec.
    pub(crate) fn has(&self, id: &str, exec: &str) -> bool {
        let key = (id.to_owned(), exec.to_owned());
        self.processes.lock().unwrap().contains_key(&key)
    }

    /// Opens a connection to the host.
    pub(crate) async fn dial(&self, preamble: Preamble) -> io::Result<UnixStream> {
        self.dial_raw(&preamble.encode()).await
    }

    /// Opens a connection that starts with something else.
    pub(crate) async fn dial_raw(&self, bytes: &[u8]) -> io::Result<UnixStream> {
        let (mut guest, host) = self.cables.lay()?;
        self.dial.send(host).map_err(io::Error::other)?;
        guest.write_all(bytes).await?;
        Ok(guest)
    }

    /// Says hello and gets the answer.
    pub(super) async fn hello(self: Arc<Self>) -> SandboxSetup {
        let connection = self.dial(Preamble::Host).await.unwrap();
        let host = HostClient::new(Client::new(Socket::new(connection)));
        let request = HelloRequest {
            agent_version: "fake".to_owned(),
            ..Default::default()
        };
        let setup = host.hello(soon(), &request).await.unwrap();
        assert!(self.host.set(host).is_ok(), "hello is said once");
        setup
    }

    /// Reports what a test made up.
    pub(crate) async fn publish(&self, what: What) -> ttrpc::Result<()> {
        let mut published = self.published.lock().await;
        *published += 1;
        self.publish_as(*published, what).await
    }

    /// Reports under a number of the test's choice.
    pub(crate) async fn publish_as(&self, sequence: u64, what: What) -> ttrpc::Result<()> {
        if let What::Exit(exit) = &what {
            let key = (exit.process.container_id.clone(), exit.process.exec_id.clone());
            if let Some(process) = self.processes.lock().unwrap().get(&key) {
                process.ended.store(true, Ordering::SeqCst);
            }
        }
        let event = Event {
            sequence,
            what: Some(what),
            ..Default::default()
        };
        let host = self.host.get().expect("hello has been said");
        host.publish(soon(), &event).await.map(drop)
    }

    /// Asks for so much memory beyond the limits, in MiB. The answer is what is counted and the most that can be.
    pub(crate) async fn scale(&self, extra: u64) -> ttrpc::Result<(u64, u64)> {
        let demand = MemoryDemand {
            extra_bytes: extra << 20,
            ..Default::default()
        };
        let host = self.host.get().expect("hello has been said");
        let granted = host.scale_memory(soon(), &demand).await?;
        Ok((granted.extra_bytes >> 20, granted.most_bytes >> 20))
    }

    /// Dials the streams of a process and keeps it until it is started.
    pub(super) async fn add(&self, key: Key, args: Vec<String>, stdio: &Stdio) -> io::Result<Arc<GuestProcess>> {
        // One whose streams the host waits for in vain.
        let nothing = Stdio::new();
        let stdio = if args[0] == "undialled" { &nothing } else { stdio };
        let process = Arc::new(GuestProcess {
            args,
            streams: tokio::sync::Mutex::new(GuestStreams {
                stdin: self.stream(&stdio.stdin).await?,
                stdout: self.stream(&stdio.stdout).await?,
                stderr: self.stream(&stdio.stderr).await?,
            }),
            signal: watch::Sender::default(),
            started: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            stdin_length: watch::Sender::default(),
        });
        self.processes.lock().unwrap().insert(key, Arc::clone(&process));
        Ok(process)
    }

    async fn stream(&self, token: &[u8]) -> io::Result<Option<UnixStream>> {
        if token.is_empty() {
            return Ok(None);
        }
        let token = Token::try_from(token).map_err(io::Error::other)?;
        self.dial(Preamble::Stream(token)).await.map(Some)
    }

    /// Runs a process to its end and reports it.
    pub(super) async fn run(self: Arc<Self>, key: Key, process: Arc<GuestProcess>) {
        process.started.store(true, Ordering::SeqCst);
        let mut signal = process.signal.subscribe();
        let end = tokio::select! {
            end = process.program() => end.unwrap_or(End { status: 1, ..End::default() }),
            signal = signal.wait_for(|signal| *signal != 0) => End { status: 128 + *signal.unwrap(), ..End::default() },
        };
        process.ended.store(true, Ordering::SeqCst);
        // The VM may have ended, or the sandbox: then nobody listens.
        let mut what = exit(&key.0, &key.1, end.status, end.stdout);
        if let What::Exit(exit) = &mut what {
            exit.stderr_length = end.stderr;
        }
        let _ = self.publish(what).await;
    }
}

impl Guest {
    /// A signal: what waits at its gate dies of it, too.
    pub(super) fn signal(self: &Arc<Self>, key: Key, process: &GuestProcess, signal: u32) {
        if process.started.swap(true, Ordering::SeqCst) {
            // One that waits in its kernel takes no signal.
            if process.args[0] != "unkillable" {
                process.signal.send_replace(signal);
            }
            return;
        }
        process.ended.store(true, Ordering::SeqCst);
        let guest = Arc::clone(self);
        tokio::spawn(async move { guest.publish(exit(&key.0, &key.1, 128 + signal, 0)).await });
    }
}

/// The report of an exit.
pub(crate) fn exit(container: &str, exec: &str, status: u32, stdout_length: u64) -> What {
    let process = ProcessId {
        container_id: container.to_owned(),
        exec_id: exec.to_owned(),
        ..Default::default()
    };
    What::Exit(ProcessExit {
        process: Some(process).into(),
        status,
        exited_at_ns: 1_700_000_000_000_000_000,
        stdout_length,
        ..Default::default()
    })
}

/// The bytes that `flood` writes: they differ from place to place, so that neither loss nor a swap goes unseen.
pub(crate) fn flood(length: usize) -> Vec<u8> {
    (0..length).map(|at| ((at * 31) ^ (at >> 13)) as u8).collect()
}

impl GuestProcess {
    pub(super) fn has_started(&self) -> bool {
        self.started.load(Ordering::SeqCst)
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    async fn program(&self) -> io::Result<End> {
        let number = || self.args.get(1).and_then(|word| word.parse().ok()).unwrap_or(0);
        let mut streams = self.streams.lock().await;
        let GuestStreams { stdin, stdout, stderr } = &mut *streams;
        let written = match (self.args[0].as_str(), stdin, stdout) {
            ("exit", ..) => {
                let status = u32::try_from(number()).unwrap_or(255);
                return Ok(End {
                    status,
                    ..End::default()
                });
            }
            ("flood", _, Some(stdout)) => {
                stdout.write_all(&flood(number())).await?;
                number() as u64
            }
            ("cat", Some(stdin), Some(stdout)) => self.cat(stdin, stdout).await?,
            ("liar", _, Some(stdout)) => {
                stdout.write_all(b"hello").await?;
                u64::MAX
            }
            _ => std::future::pending().await,
        };
        let complaint = b"done\n";
        if let Some(stderr) = stderr {
            stderr.write_all(complaint).await?;
        }
        Ok(End {
            status: 0,
            stdout: written,
            stderr: if stderr.is_some() { complaint.len() as u64 } else { 0 },
        })
    }

    /// Copies stdin until as much has come as the shim says there is.
    async fn cat(&self, stdin: &mut UnixStream, stdout: &mut UnixStream) -> io::Result<u64> {
        let mut length = self.stdin_length.subscribe();
        let mut buffer = vec![0; 1 << 16];
        let mut copied = 0;
        loop {
            let known = *length.borrow_and_update();
            if known == Some(copied) {
                return Ok(copied);
            }
            tokio::select! {
                read = stdin.read(&mut buffer) => {
                    let count = read?;
                    if count == 0 {
                        return Ok(copied);
                    }
                    stdout.write_all(&buffer[..count]).await?;
                    copied += count as u64;
                }
                changed = length.changed() => changed.map_err(io::Error::other)?,
            }
        }
    }
}
