//! The agent as PID 1: boots, says hello, applies the setup, serves, powers off.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt};
use protocol::agent::{HelloRequest, SandboxSetup};
use protocol::agent_ttrpc::{HostClient, create_agent};
use protocol::preamble::Preamble;
use rustix::system::RebootCommand;
use tokio::sync::Notify;
use tokio::time::timeout;
use ttrpc::r#async::transport::{Listener, Socket};
use ttrpc::r#async::{Client, Server};
use ttrpc::context::Context;

use crate::cgroup;
use crate::common::log::Log;
use crate::common::{log, timeouts};
use crate::connections::dial::{Dialer, Watched};
use crate::container::Services;
use crate::container::events::{self, Events};
use crate::container::reaper::Reaper;
use crate::guest::setup::{SetupError, mount_share_early, set_up};
use crate::guest::{boot, clock, cpus, growth, template};
use crate::network::{GuestNetwork, NetworkError};
use crate::server::rehearsal;
use crate::server::rpc::{self, Service};
use crate::server::sandbox::Sandbox;

/// How long the host may take to hang up after the answer to Shutdown, or to acknowledge a fatal event.
const HANG_UP_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
enum InitError {
    #[error(transparent)]
    Boot(#[from] boot::EarlyBootError),
    /// The runtime cannot be made, or SIGCHLD cannot be had.
    #[error("start the runtime")]
    Runtime(#[source] io::Error),
    #[error("start the log")]
    Log(#[from] tracing_subscriber::util::TryInitError),
    /// A guest without a vsock device cannot wait for one.
    #[error("wait for a vsock device")]
    Device(#[source] io::Error),
    #[error("dial the host for {0}")]
    Dial(&'static str, #[source] io::Error),
    #[error("say hello to the host")]
    Hello(#[source] ttrpc::Error),
    #[error("serve the host")]
    Serve(#[source] ttrpc::Error),
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error(transparent)]
    Network(#[from] NetworkError),
}

/// Runs the guest. Returns only where the power cannot be turned off.
pub(crate) fn run() {
    if let Err(error) = start() {
        tracing::error!(error = base::chain(&error), "the sandbox cannot go on");
    }
    power_off();
}

fn power_off() {
    rustix::fs::sync();
    for command in [RebootCommand::PowerOff, RebootCommand::Restart] {
        if let Err(error) = rustix::system::reboot(command) {
            tracing::error!(%error, "cannot power off");
        }
    }
}

fn start() -> Result<(), InitError> {
    let log = log::init()?;
    boot::boot()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(InitError::Runtime)?;
    // Whatever still blocks a thread of the runtime must not keep the power on.
    let result = runtime.block_on(Box::pin(serve(&log)));
    runtime.shutdown_background();
    result
}

async fn serve(log: &Log) -> Result<(), InitError> {
    let signals = Reaper::listen().map_err(InitError::Runtime)?;
    let reaper = Reaper::default();
    tokio::spawn(reaper.clone().run(signals));
    let network = Arc::new(GuestNetwork::default());
    let has_share = boot::is_to_rehearse()? && rehearse(&reaper, &network).await;
    if boot::is_template()? {
        template::wait_for_device().await.map_err(InitError::Device)?;
    }
    let dialer = Dialer::new(boot::host_port()?);
    let services = Services {
        dialer,
        events: Events::default(),
        reaper,
    };
    let lost = Arc::new(Notify::new());
    let stream = dialer
        .dial(Preamble::Host)
        .await
        .map_err(|error| InitError::Dial("the first time", error))?;
    let host = HostClient::new(Client::new(Socket::new(Watched::new(stream, Arc::clone(&lost)))));
    let setup = host
        .hello(Context::default(), &hello())
        .await
        .map_err(InitError::Hello)?;
    if let Err(error) = prepare(dialer, log, &setup, &network, has_share).await {
        let told = events::fatal(&host, base::chain(&error));
        if !matches!(timeout(HANG_UP_TIMEOUT, told).await, Ok(Ok(()))) {
            tracing::warn!("the host was not told");
        }
        return Err(error);
    }
    let shutdown = Arc::new(Notify::new());
    let mut server = listen(dialer, log, services.clone(), network, &lost, &shutdown).await?;
    tracing::info!(sandbox = setup.sandbox_id, "ready");
    let following = tokio::spawn(clock::follow(host.clone()));
    let growing = tokio::spawn(growth::follow(host.clone(), setup.most_extra_memory_bytes));
    tokio::select! {
        () = lost.notified() => tracing::error!("the host has hung up"),
        error = services.events.publish(host) => tracing::error!(%error, "the host does not take events"),
        () = shutdown.notified() => {
            // Power that goes now would take the answer with it. The host hangs up when it has it.
            let _ = timeout(HANG_UP_TIMEOUT, lost.notified()).await;
        }
    }
    following.abort();
    growing.abort();
    server.stop_listen().await;
    Ok(())
}

/// Carries out the setup. What can fail here is told to the host.
async fn prepare(
    dialer: Dialer,
    log: &Log,
    setup: &SandboxSetup,
    network: &GuestNetwork,
    has_share: bool,
) -> Result<(), InitError> {
    let connection = dialer
        .dial(Preamble::Log)
        .await
        .map_err(|error| InitError::Dial("the log", error))?;
    log.connect(connection, &setup.log_level);
    cgroup::may_grow(setup.most_extra_memory_bytes);
    timeouts::set_factor(setup.timeout_factor);
    set_up(setup, has_share)?;
    if let Some(wanted) = setup.network.as_ref() {
        network.apply(wanted).await?;
    }
    tokio::spawn(cgroup::watch_reserve());
    tokio::spawn(cpus::follow());
    Ok(())
}

/// Mounts the share, and runs a container for nobody. The answer is whether the share is mounted.
async fn rehearse(reaper: &Reaper, network: &GuestNetwork) -> bool {
    let began = Instant::now();
    let has_share = mount_share_early();
    let services = Services {
        // A container without streams dials nobody.
        dialer: Dialer::new(protocol::DEFAULT_HOST_PORT),
        events: Events::default(),
        reaper: reaper.clone(),
    };
    match Box::pin(rehearsal::rehearse(&services, network)).await {
        Ok(()) => tracing::info!(has_share, took = ?began.elapsed(), "has rehearsed"),
        Err(error) => tracing::warn!(error = base::chain(&error), "has not rehearsed"),
    }
    has_share
}

async fn listen(
    dialer: Dialer,
    log: &Log,
    services: Services,
    network: Arc<GuestNetwork>,
    lost: &Arc<Notify>,
    shutdown: &Arc<Notify>,
) -> Result<Server, InitError> {
    let stream = dialer
        .dial(Preamble::Agent)
        .await
        .map_err(|error| InitError::Dial("the agent's service", error))?;
    let connection = Watched::new(stream, Arc::clone(lost));
    let sandbox = Arc::new(Sandbox::new(services, Arc::clone(shutdown)));
    // One connection, and no other for ever: a listener that ends would end the server.
    let listener = Listener::new(stream::iter([Ok(connection)]).chain(stream::pending()));
    let mut methods = create_agent(Arc::new(Service::new(sandbox, network)));
    for table in methods.values_mut() {
        rpc::trace(table, log.spans());
    }
    let mut server = Server::new().add_listener(listener).register_service(methods);
    server.start().await.map_err(InitError::Serve)?;
    Ok(server)
}

fn hello() -> HelloRequest {
    let system = rustix::system::sysinfo();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    HelloRequest {
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel_release: rustix::system::uname().release().to_string_lossy().into_owned(),
        memory_bytes: system.totalram.saturating_mul(u64::from(system.mem_unit)),
        cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
        ..HelloRequest::default()
    }
}
