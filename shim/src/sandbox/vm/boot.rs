//! From nothing to a VM whose agent answers: launch, hello, agent. Each step ends early if the VM ends or the time limit
//! is reached, and a failure leaves nothing behind.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use guest::agent_client::{AgentClient, printable};
use guest::relays::Relays;
use guest::streams::StreamRegistry;
use guest::vm::{Launcher, RunningVm, VmLaunchError};
use guest::warn_rate_limited;
use hypervisor::vm_time;
use lifecycle::Timeouts;
use node::boot_queue::{BootPlace, BootQueue};
use protocol::agent::{HelloRequest, Network, SandboxSetup, event::What};
use protocol::agent_ttrpc::create_host;
use tokio::sync::{mpsc, oneshot};
use ttrpc::r#async::Server;
use ttrpc::r#async::transport::Listener;

use crate::qemu::guest_kernel;
use crate::sandbox::connections::backpressured::BackpressuredConnection;
use crate::sandbox::connections::host_service::{Demand, HostService};
use crate::sandbox::connections::{Arrived, LogSink, accept};

/// Bytes of the console in a message.
const CONSOLE: usize = 4 << 10;

/// Events of the guest that have been taken but not handled: the agent waits for the acknowledgement.
const EVENTS: usize = 16;

/// Why the VM did not come up.
#[derive(Debug, Clone, thiserror::Error)]
pub enum GuestBootError {
    #[error(transparent)]
    Launch(VmLaunchError),
    #[error("{waited_for} within {} s of the VM's own time (dial_timeout){console}", limit.as_secs())]
    TimedOut {
        waited_for: &'static str,
        limit: Duration,
        console: String,
    },
    #[error("the VM ended while it booted: {reason}{console}")]
    Guest {
        /// The reason, as the message gives it.
        reason: String,
        console: String,
    },
    /// The sandbox was stopped in the meantime.
    #[error("the sandbox was stopped")]
    Stopped,
}

pub struct BootPlan {
    /// Where the boot waits for its turn; none: it does not.
    pub queue: Option<BootQueue>,
    pub launcher: Arc<dyn Launcher>,
    /// The answer to the agent's hello; the clock is filled in then.
    pub setup: SandboxSetup,
    /// Timeout for the agent to be up, in time that the VM has had since the VMM's start.
    pub dial_timeout: Duration,
    /// For a process to be created.
    pub create_timeout: Duration,
    pub timeouts: Timeouts,
    pub log: LogSink,
}

pub(in crate::sandbox) struct Booted {
    pub(in crate::sandbox) vm: Arc<dyn RunningVm>,
    pub(in crate::sandbox) agent: AgentClient,
    pub(in crate::sandbox) hello: HelloRequest,
}

/// Events of a booted VM.
pub(in crate::sandbox) struct Signals {
    pub(in crate::sandbox) events: mpsc::Receiver<What>,
    /// Of memory. Taken by who carries them out.
    pub(in crate::sandbox) demands: Option<mpsc::Receiver<Demand>>,
    /// The agent's connection is gone.
    pub(in crate::sandbox) lost: oneshot::Receiver<()>,
    /// Held as long as the agent is spoken to.
    lines: Lines,
}

/// Keeps both of the agent's connections open.
struct Lines {
    _server: Server,
    _host: oneshot::Sender<()>,
    _agent: oneshot::Sender<()>,
}

impl Signals {
    /// Closes both of the agent's connections: it waits for that before it powers the guest off.
    pub(in crate::sandbox) fn hang_up(mut self) -> mpsc::Receiver<What> {
        drop(self.lines);
        self.events.close();
        self.events
    }
}

/// Boots the VM, and waits for its agent.
pub(in crate::sandbox) async fn boot(
    plan: &BootPlan,
    streams: StreamRegistry,
    relays: Relays,
    started: impl FnOnce(&Arc<dyn RunningVm>),
) -> Result<(Booted, Signals), GuestBootError> {
    let place = turn(plan.queue.as_ref()).await;
    let launched = trace::step("launch", plan.launcher.launch(), |error| base::chain(error)).await;
    let (vm, connections) = launched.map_err(GuestBootError::Launch)?;
    let vm: Arc<dyn RunningVm> = vm.into();
    started(&vm);
    let (sender, arrived) = mpsc::channel(2);
    tokio::spawn(accept(
        connections,
        streams,
        relays,
        sender,
        Arc::clone(&plan.log),
        plan.timeouts,
    ));
    let waited_for = Mutex::new("the guest's agent did not call");
    let failure = tokio::select! {
        biased;
        booted = trace::step("greet", greet(plan, vm.network(), arrived, &waited_for, place), String::clone) => match booted {
            Ok((agent, hello, signals)) => return Ok((Booted { vm, agent, hello }, signals)),
            Err(reason) => Ok(reason),
        },
        ending = vm.ended() => Ok(ending.reason),
        () = vm_time::has_passed(plan.dial_timeout, || vm.pids()) => Err(()),
    };
    let tail = printable(&vm.console_tail().await, CONSOLE);
    let console = if tail.trim().is_empty() {
        "; its console is empty".to_owned()
    } else {
        format!("; its console ends with:\n{}", tail.trim_end())
    };
    vm.stop(Duration::ZERO).await;
    Err(match failure {
        Ok(reason) => GuestBootError::Guest { reason, console },
        Err(()) => GuestBootError::TimedOut {
            waited_for: waited_for
                .lock()
                .map_or("the guest's agent did not call", |waited_for| *waited_for),
            limit: plan.dial_timeout,
            console,
        },
    })
}

/// Waits for its turn. A node without a queue boots all the same.
async fn turn(queue: Option<&BootQueue>) -> Option<BootPlace> {
    match queue?.enter().await {
        Ok(place) => Some(place),
        Err(error) => {
            tracing::warn!(%error, "the queue of the node's boots cannot be used: this VM boots at once");
            None
        }
    }
}

/// Why the agent cannot set the guest up. It has no other event until it serves.
async fn given_up(events: &mut mpsc::Receiver<What>) -> String {
    loop {
        match events.recv().await {
            Some(What::Fatal(reason)) => return gave_up(&reason),
            Some(_) => warn_rate_limited!("the guest reports an event before it is set up"),
            // The connection ends, which says why.
            None => std::future::pending().await,
        }
    }
}

/// The agent's last words as the reason of an end.
pub(in crate::sandbox) fn gave_up(reason: &str) -> String {
    format!("the agent gave up: {}", printable(reason, 2048))
}

async fn greet(
    plan: &BootPlan,
    network: Option<Network>,
    mut arrived: mpsc::Receiver<Arrived>,
    waited_for: &Mutex<&'static str>,
    place: Option<BootPlace>,
) -> Result<(AgentClient, HelloRequest, Signals), String> {
    let waiting = |what| {
        if let Ok(mut waited_for) = waited_for.lock() {
            *waited_for = what;
        }
    };
    let ended = || "the guest's connections ended".to_owned();
    let host = match arrived.recv().await.ok_or_else(ended)? {
        Arrived::Host(host) => host,
        Arrived::Agent(_) => return Err("the agent offered its service before it said hello".to_owned()),
    };
    waiting("the guest's agent did not say hello");
    let (events, mut received) = mpsc::channel(EVENTS);
    let (demands, demanded) = mpsc::channel(1);
    let (hello, greeted) = oneshot::channel();
    let mut setup = plan.setup.clone();
    setup.network = network.into();
    let service = Arc::new(HostService::new(setup, hello, events, demands));
    let (host, host_line) = BackpressuredConnection::of_requests(host);
    // One connection, and then none for ever: a listener that ends would end the server.
    let only = futures::stream::once(std::future::ready(Ok(host))).chain(futures::stream::pending());
    let mut server = Server::new()
        .add_listener(Listener::new(only))
        .register_service(create_host(service));
    server.start().await.map_err(|error| error.to_string())?;
    let hello = greeted.await.map_err(|_| ended())?;
    // The guest is up: what it does from now on is work, and the next one may boot.
    drop(place);
    tracing::info!(
        agent = printable(&hello.agent_version, 64),
        kernel = printable(&hello.kernel_release, 64),
        memory = hello.memory_bytes,
        cpus = hello.cpus,
        "the guest is up"
    );
    guest_kernel::warn_of(&printable(&hello.kernel_release, 64));
    waiting("the guest's agent did not finish its setup");
    let agent = tokio::select! {
        biased;
        agent = arrived.recv() => match agent.ok_or_else(ended)? {
            Arrived::Agent(agent) => agent,
            Arrived::Host(_) => return Err("the agent called twice".to_owned()),
        },
        // The agent powers off when the host has taken it: the VM's end is not the reason.
        reason = given_up(&mut received) => return Err(reason),
    };
    let (tell, lost) = oneshot::channel();
    let (agent, agent_line) = BackpressuredConnection::of_answers(agent, tell);
    let agent = AgentClient::new(Box::new(agent), plan.create_timeout, plan.timeouts.scale());
    let signals = Signals {
        events: received,
        demands: Some(demanded),
        lost,
        lines: Lines {
            _server: server,
            _host: host_line,
            _agent: agent_line,
        },
    };
    Ok((agent, hello, signals))
}
