//! What the agent calls on the host: hello, the clock, events, demands for memory.
//!
//! A guest may call at any time and with anything: each call is bounded here.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use config::Mebibytes;
use protocol::agent::{Empty, Event, HelloRequest, HostClock, MemoryDemand, MemoryGranted, SandboxSetup, event::What};
use protocol::agent_ttrpc::Host;
use rustix::rand::GetRandomFlags;
use tokio::sync::{mpsc, oneshot};
use ttrpc::Code;
use ttrpc::r#async::TtrpcContext;

pub(in crate::sandbox) struct Demand {
    /// Memory beyond what the VM has without it.
    pub(in crate::sandbox) extra: Mebibytes,
    /// Told when the guest has it, or why it has not.
    pub(in crate::sandbox) answer: oneshot::Sender<Result<MemoryGranted, String>>,
}

impl Demand {
    /// The agent's request, in whole MiB.
    pub(in crate::sandbox) fn new(bytes: u64, answer: oneshot::Sender<Result<MemoryGranted, String>>) -> Self {
        let extra = Mebibytes(u32::try_from(bytes.div_ceil(1 << 20)).unwrap_or(u32::MAX));
        Self { extra, answer }
    }
}

pub(in crate::sandbox) struct HostService {
    setup: SandboxSetup,
    hello: Mutex<Option<oneshot::Sender<HelloRequest>>>,
    /// Number of the last event.
    published: AtomicU64,
    events: mpsc::Sender<What>,
    demands: mpsc::Sender<Demand>,
}

impl HostService {
    /// `setup` answers the agent's hello, which is sent to `hello`.
    pub(in crate::sandbox) fn new(
        setup: SandboxSetup,
        hello: oneshot::Sender<HelloRequest>,
        events: mpsc::Sender<What>,
        demands: mpsc::Sender<Demand>,
    ) -> Self {
        Self {
            setup,
            hello: Mutex::new(Some(hello)),
            published: AtomicU64::new(0),
            events,
            demands,
        }
    }
}

fn refuse(code: Code, message: &str) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, message))
}

/// The host's clock in nanoseconds since the epoch.
fn now_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or_default()
}

/// New for each guest: all copies of a template have the same random number generator until they get it.
fn random_seed() -> ttrpc::Result<Vec<u8>> {
    let mut seed = [0; protocol::SEED];
    let filled = rustix::rand::getrandom(&mut seed, GetRandomFlags::empty());
    if filled.is_ok_and(|count| count == seed.len()) {
        Ok(seed.to_vec())
    } else {
        Err(refuse(Code::INTERNAL, "the host has no random numbers"))
    }
}

#[async_trait]
impl Host for HostService {
    async fn hello(&self, _: &TtrpcContext, request: HelloRequest) -> ttrpc::Result<SandboxSetup> {
        let hello = self.hello.lock().ok().and_then(|mut hello| hello.take());
        let Some(hello) = hello else {
            return Err(refuse(Code::FAILED_PRECONDITION, "hello has been said"));
        };
        let mut setup = self.setup.clone();
        setup.clock_ns = now_ns();
        setup.random_seed = random_seed()?;
        // The boot may have been given up just now; then the VM is being stopped.
        let _ = hello.send(request);
        Ok(setup)
    }

    async fn clock(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<HostClock> {
        Ok(HostClock {
            now_ns: now_ns(),
            ..HostClock::default()
        })
    }

    async fn scale_memory(&self, _: &TtrpcContext, request: MemoryDemand) -> ttrpc::Result<MemoryGranted> {
        let (answer, granted) = oneshot::channel();
        let demand = Demand::new(request.extra_bytes, answer);
        let queued = self.demands.try_send(demand);
        queued.map_err(|_| refuse(Code::RESOURCE_EXHAUSTED, "an earlier demand for memory is under way"))?;
        let ended = |_| refuse(Code::UNAVAILABLE, "the sandbox has ended");
        let granted = granted.await.map_err(ended)?;
        granted.map_err(|error| refuse(Code::RESOURCE_EXHAUSTED, &error))
    }

    async fn publish(&self, _: &TtrpcContext, event: Event) -> ttrpc::Result<Empty> {
        let last = self.published.load(Ordering::Acquire);
        if event.sequence <= last {
            // Sent again because the acknowledgement was lost.
            return Ok(Empty::new());
        }
        if event.sequence != last + 1 {
            return Err(refuse(Code::INVALID_ARGUMENT, "an event is missing before this one"));
        }
        let advanced = self
            .published
            .compare_exchange(last, event.sequence, Ordering::AcqRel, Ordering::Acquire);
        if let (Ok(_), Some(what)) = (advanced, event.what) {
            self.events
                .send(what)
                .await
                .map_err(|_| refuse(Code::UNAVAILABLE, "the sandbox has ended"))?;
        }
        Ok(Empty::new())
    }
}
