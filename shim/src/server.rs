//! The server: sets up the sandbox, serves containerd on the inherited socket, and cleans up at its end.

use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base::chain;
use base::spawn::Score;
use config::{InterNetworking, SharedFs};
use guest::host_sockets::HostSockets;
use guest::relays::Relays;
use guest::vm::VmLaunchError;
use hypervisor::{NetworkNamespace, VmRequest};
use lifecycle::Timeouts;
use node::boot_queue::BootQueue;
use node::bundle;
use node::guest_spec;
use node::hooks::PoststopHooks;
use node::host_cgroup::HostCgroup;
use node::host_ns::HostNamespace;
use node::memlock::{Rules, SandboxPolicy};
use node::network::{NetworkPlan, Place};
use node::process::ProcessRef;
use node::run_dir::{self, RunDirError, SandboxState};
use node::settings;
use node::share::{ShareError, SharedTree};
use node::sizing::Sizing;
use node::volumes::copies::Copies;
use node::watch::Watches;
use oci_spec::runtime::Spec;
use protocol::agent::{SandboxSetup, Share};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use ttrpc::r#async::Server;
use ttrpc::r#async::transport::Listener;

use crate::events::Publisher;
use crate::forward;
use crate::management::{self, places};
use crate::pool::{self, Template};
use crate::program::announcement::Announcement;
use crate::program::context::ServerContext;
use crate::program::settings::{Settings, file as configuration_file};
use crate::qemu::QemuLauncher;
use crate::qemu::saved::Saved;
use crate::sandbox::boot::BootPlan;
use crate::sandbox::error::Error;
use crate::sandbox::host::{HostError, RealHost};
use crate::sandbox::{Parts, Sandbox};
use crate::service::{Awaited, SandboxCell, Service};
use crate::spans::Tracing;

/// Timeout for containerd to ask for the first container. It does at once; a sandbox of its sandbox service first waits for the VM, and
/// that for its turn among the node's boots.
const UNCLAIMED: Duration = Duration::from_secs(15 * 60);

/// Timeout for containerd to take the last events, and for the collector to take the last spans.
const FLUSH: Duration = Duration::from_secs(2);

/// The archive of programs that are run in the guest; it lies beside the guest's image (guest-kernel/iptables).
const PROGRAMS: &str = "iptables.img";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitReason {
    /// containerd asked for it and nothing was left.
    Shutdown,
    Signal,
    /// Nobody has asked for a container: who started the server did not get to know where it listens.
    Unclaimed,
}

#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("cannot serve on the sandbox's socket")]
    Listen(#[source] io::Error),
    #[error("cannot serve on the sandbox's socket")]
    Serve(#[source] ttrpc::Error),
    #[error("cannot set up the sandbox's shared directory")]
    Share(#[from] ShareError),
    /// Changes of files that are copied into the guest cannot be noticed.
    #[error("cannot watch files of the host (fs.inotify.max_user_instances)")]
    Copies(#[source] io::Error),
    /// What the sandbox is made of cannot be written down.
    #[error(transparent)]
    State(#[from] RunDirError),
}

/// Serves until the sandbox ends, and its VM with it. What it leaves on the host is the caller's to remove.
///
/// # Errors
/// The socket cannot be served on, or the shared directory cannot be set up.
pub async fn serve(
    listener: UnixListener,
    announcement: Announcement,
    context: ServerContext,
) -> Result<ExitReason, ServerError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(ServerError::Listen)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServerError::Listen)?;
    let events = Publisher::start(&context.ttrpc_address, context.namespace.as_str());
    let shutdown = Arc::new(Notify::new());
    let (context, cell) = (Arc::new(context), SandboxCell::default());
    let service = if bundle::is_awaited(&context.bundle) {
        let awaited = awaited(Arc::clone(&context), events.clone());
        Service::awaiting(context.id.clone(), Arc::clone(&cell), awaited, Arc::clone(&shutdown))
    } else {
        let sandbox = start_sandbox(&context, events.clone())?;
        // Nobody else has it yet.
        let _ = cell.set(Arc::clone(&sandbox));
        Service::new(sandbox, Arc::clone(&shutdown))
    };
    let listener = Listener::try_from(listener).map_err(ServerError::Listen)?;
    let mut server = Server::new().add_listener(listener).register_service(service.methods());
    // Before the first answer: after one that is an error this process may be killed at any moment.
    let listeners = places::listen(&places::ROOTS.map(Path::new), &context.run_dir, &context.id);
    management::serve(&context.run_dir, listeners, &cell);
    server.start().await.map_err(ServerError::Serve)?;
    let reason = tokio::select! {
        () = shutdown.notified() => ExitReason::Shutdown,
        _ = terminate.recv() => ExitReason::Signal,
        _ = interrupt.recv() => ExitReason::Signal,
        () = announcement.lost() => ExitReason::Unclaimed,
        () = unclaimed(&cell, UNCLAIMED) => ExitReason::Unclaimed,
    };
    tracing::info!(sandbox = %context.id, ?reason, "the server ends");
    // First: when the socket is gone, containerd may have this process killed.
    if let Some(tracing) = cell.get().and_then(|sandbox| sandbox.tracing()) {
        tracing.flush(FLUSH).await;
    }
    // A new start must not take this one for a sandbox's server: it removes what is left of this one first.
    let _ = std::fs::remove_file(context.run_dir.socket());
    if let Some(sandbox) = cell.get() {
        sandbox.stop().await;
    }
    events.flush(FLUSH).await;
    // Its disconnect() alone waits 10 s for the task that accepts connections, which does not end.
    server.shutdown().await.map_err(ServerError::Serve)?;
    Ok(reason)
}

/// Resolves if nobody has asked for a container by then.
async fn unclaimed(cell: &SandboxCell, limit: Duration) {
    tokio::time::sleep(limit).await;
    if cell.get().is_some_and(|sandbox| sandbox.was_asked()) {
        std::future::pending().await
    }
}

/// A bundle without a specification: containerd describes the sandbox by CreateSandbox.
fn awaited(context: Arc<ServerContext>, events: Publisher) -> Awaited {
    Awaited {
        beginning: Mutex::default(),
        bundle: context.bundle.clone(),
        begin: Box::new(move || {
            start_sandbox(&context, events.clone()).map_err(|source| Error::Host {
                operation: "start",
                subject: format!("sandbox {}", context.id),
                source: HostError::Other(Box::new(source)),
            })
        }),
    }
}

fn start_sandbox(context: &ServerContext, events: Publisher) -> Result<Arc<Sandbox>, ServerError> {
    let parked = context.parked.lock().unwrap_or_else(PoisonError::into_inner).take();
    let tree = match &parked {
        None => SharedTree::new(&context.run_dir, context.host.clone()),
        Some(parked) => SharedTree::adopt(&context.run_dir, context.host.clone(), &parked.shared),
    }?;
    // A bundle that cannot be read is reported by Create, which reads it too.
    let spec = guest_spec::read(&context.bundle.join("config.json")).map_or_else(|_| Spec::default(), |(spec, _)| spec);
    let (file, mut config, problem) = match configuration(context, &spec) {
        Ok(settings) => (settings.file, settings.config, None),
        Err(error) => (PathBuf::new(), config::Config::default(), Some(error)),
    };
    let saved = if parked.is_none() {
        saved(&file, &config, &spec)
    } else {
        None
    };
    if config.runtime.enable_debug {
        context.log.set_debug();
        tracing::debug!(runtime = ?config.runtime, "the configuration in effect");
    }
    let shared = config.hypervisor.shared_fs != SharedFs::None;
    if shared && let Err(error) = tree.attach_modules(&config.hypervisor.kernel) {
        tracing::warn!(error = chain(&error), "the guest cannot load modules of its kernel");
    }
    let problem = problem.or_else(|| {
        let attached = tree.attach_sandbox_mounts(&config.runtime.sandbox_bind_mounts);
        let reason = |error| format!("runtime.sandbox_bind_mounts: {}", chain(&error));
        attached.err().map(reason).map(VmLaunchError::Configuration)
    });
    let sizing = size(&mut config, &spec, parked.is_some() || saved.is_some());
    let timeouts = Timeouts::scaled(config.runtime.timeout_factor.get());
    let linux = spec.linux().as_ref();
    let cgroups_path = linux.and_then(|linux| linux.cgroups_path().clone());
    let cgroup = HostCgroup::create(cgroups_path.as_deref(), &context.id);
    let mut state = SandboxState::new(&context.namespace, &context.id);
    state.shim = ProcessRef::own();
    state.cgroups = cgroup.directories().to_vec();
    state.pod = Some(spec.annotations().as_ref().is_some_and(bundle::is_pods));
    state.config_path = Some(configuration_file(context.config_path.as_deref()));
    if let Some(parked) = &parked {
        state.cgroups.extend_from_slice(parked.cgroup.directories());
        state.vm = parked.processes();
    }
    // Before anything else is made: whoever removes the sandbox finds the cgroup here, however early it ends.
    context.run_dir.write_state(&state)?;
    let request = VmRequest {
        id: context.id.to_string(),
        run_dir: context.run_dir.path().to_owned(),
        shared_dir: tree.root().to_owned(),
        share_tag: protocol::SHARE_TAG.to_owned(),
        netns: NetworkNamespace::Empty,
        nics: Vec::new(),
        cgroup_procs: cgroup.procs_files(),
        score: Score::Of(oom_score_adj(&spec)),
        start_timeout: config.agent.dial_timeout,
        scale: timeouts.scale(),
        kernel_params: Vec::new(),
        host_port: protocol::DEFAULT_HOST_PORT,
        port_parameter: protocol::PORT_PARAMETER.to_owned(),
    };
    let warm = parked.is_some();
    let networked = is_networked(&config);
    let launcher = QemuLauncher {
        plan: problem.map_or(Ok(config.hypervisor.clone()), Err),
        request,
        network: NetworkPlan::new(Place::of(&spec, context.namespace.is_docker()), &config),
        cgroup,
        limits: sizing.host_at_boot(),
        run_dir: context.run_dir.clone(),
        state,
        pin_vcpus: config.runtime.enable_vcpus_pinning,
        debug_console: config.agent.debug_console_enabled,
        parked: Mutex::new(parked),
        saved: Mutex::new(saved),
    };
    let log = context.log.clone();
    let tracing = Tracing::start(&config, &context.namespace, &context.id);
    let spans = tracing.clone();
    let plan = BootPlan {
        queue: (!warm).then(|| BootQueue::new(Path::new(run_dir::ROOT))),
        launcher: Arc::new(launcher),
        setup: setup(context, &spec, &config, &sizing),
        dial_timeout: config.agent.dial_timeout,
        create_timeout: config.runtime.create_container_timeout,
        timeouts,
        log: Arc::new(move |line: &[u8]| {
            if !spans.as_ref().is_some_and(|spans| spans.take(line)) {
                log.relay(line);
            }
        }),
    };
    let relays = Relays::default();
    let allowed = config.runtime.share_host_sockets.clone();
    let parts = Parts {
        relays: relays.clone(),
        id: context.id.clone(),
        namespace: context.namespace.clone(),
        host: Arc::new(RealHost {
            sockets: HostSockets::new(context.host.clone(), relays, allowed),
            watches: if shared { watches(&tree) } else { None },
            copies: if shared {
                None
            } else {
                Some(Copies::new(context.host.clone()).map_err(ServerError::Copies)?)
            },
            tree,
            host: context.host.clone(),
            poststop: PoststopHooks::below(context.run_dir.path()),
            programs: config.hypervisor.initrd.with_file_name(PROGRAMS),
            sandbox: context.id.clone(),
            disable_guest_seccomp: config.runtime.disable_guest_seccomp,
            emptydir_mode: config.runtime.emptydir_mode,
            memlock: SandboxPolicy::new(Rules::from(&config), spec.annotations().as_ref()),
        }),
        events,
        timeouts,
        debug_console: config.agent.debug_console_enabled,
        kernel: config.hypervisor.kernel.clone(),
        sizing,
        networked,
        serves_mounts: warm,
        tracing,
    };
    let sandbox = Sandbox::start(parts, plan);
    if config.factory.vm_cache_number > 0 || config.factory.enable_template {
        tokio::spawn(refill_later(
            Arc::clone(&sandbox),
            context.host.clone(),
            context.config_path.clone(),
        ));
    }
    let pod = spec.annotations().as_ref().is_some_and(bundle::is_pod_sandbox);
    if let (true, Place::At(netns)) = (pod && networked, Place::of(&spec, false)) {
        let sandbox = Arc::clone(&sandbox);
        tokio::spawn(async move {
            if let Err(error) = forward::start(sandbox, netns).await {
                tracing::warn!(
                    error = chain(&error),
                    "the pod's ports cannot be forwarded (kubectl port-forward)"
                );
            }
        });
    }
    Ok(sandbox)
}

/// Whether the guest gets the network of the container's namespace. Without it, nothing of that namespace may be reached from the
/// guest, nor the guest from it.
fn is_networked(config: &config::Config) -> bool {
    config.runtime.internetworking_model != InterNetworking::None
}

/// Fills the pool of warm VMs again when the sandbox's first process runs, or there will be none: so the start has the CPUs for itself.
async fn refill_later(sandbox: Arc<Sandbox>, host: HostNamespace, config_path: Option<PathBuf>) {
    tokio::select! {
        () = sandbox.first_started() => {}
        _ = sandbox.ended() => {}
    }
    drop(sandbox);
    // It does not panic, and where it is cancelled the next start does it.
    let _ = tokio::task::spawn_blocking(move || pool::refill(&host, config_path)).await;
}

/// The score of the VM's processes for the host's OOM killer: the container's own; 0 where it has none, as for any process that
/// nobody has spoken for. A pod's sandbox is given a score that protects a pause program of a megabyte: it would have the host
/// kill everything else before a VM.
fn oom_score_adj(spec: &Spec) -> i32 {
    let process = spec.process().as_ref();
    let score = process.and_then(|process| process.oom_score_adj()).unwrap_or(0);
    let pod = spec.annotations().as_ref().is_some_and(bundle::is_pod_sandbox);
    if pod { score.max(0) } else { score }
}

/// Without, the containers work; their programs are not told what the host changes.
fn watches(tree: &SharedTree) -> Option<Watches> {
    match Watches::new(tree.root()) {
        Ok(watches) => Some(watches),
        Err(error) => {
            let remedy = "Linux 5.17 is needed, and a free group of fs.fanotify.max_user_groups";
            tracing::warn!(%error, remedy, "programs in containers are not told what the host changes in their mounts");
            None
        }
    }
}

fn configuration(context: &ServerContext, spec: &Spec) -> Result<Settings, VmLaunchError> {
    let settings = Settings::load(context.config_path.as_deref(), spec).map_err(VmLaunchError::Configuration)?;
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    Ok(settings)
}

/// The VM whose copy the sandbox is to have, if templates are wanted and there is one that fits.
fn saved(file: &Path, config: &config::Config, spec: &Spec) -> Option<Saved> {
    if !config.factory.enable_template {
        return None;
    }
    let fits = Sizing::new(config, spec).fits_a_warm_vm();
    let template = fits.then(|| Template::find(file, config)).flatten();
    if template.is_none() {
        pool::count_boot();
    }
    template.map(|template| template.saved(true))
}

/// What the VM boots with for the limits that are known by now.
fn size(config: &mut config::Config, spec: &Spec, warm: bool) -> Sizing {
    let sizing = Sizing::new(config, spec);
    let sizing = if warm { sizing.of_a_warm_vm() } else { sizing };
    let boot = sizing.boot();
    if let Some(beyond) = boot.beyond {
        tracing::warn!(
            vcpus = beyond.vcpus,
            memory = %beyond.memory,
            "the limits ask for more than the VM gets: {} vCPUs, {} (default_maxvcpus, default_maxmemory, the host)",
            boot.size.vcpus,
            boot.size.memory
        );
    }
    sizing.apply(config);
    sizing
}

/// The guest's name: the first container's, or the node's if it names none. A UTS namespace begins as a copy of its parent
/// (uts_namespaces(7)), so that a container without a `hostname` has the node's with runc, too.
fn hostname(spec: &Spec) -> String {
    let named = spec.hostname().clone().filter(|name| !name.is_empty());
    named.unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().into_owned())
}

fn setup(context: &ServerContext, spec: &Spec, config: &config::Config, sizing: &Sizing) -> SandboxSetup {
    let debug = context.debug || config.agent.enable_debug;
    SandboxSetup {
        sandbox_id: context.id.to_string(),
        hostname: hostname(spec),
        shares: match config.hypervisor.shared_fs {
            SharedFs::None => Vec::new(),
            SharedFs::VirtioFs => vec![Share {
                tag: protocol::SHARE_TAG.to_owned(),
                mountpoint: protocol::SHARE_MOUNTPOINT.to_owned(),
                ..Default::default()
            }],
        },
        sysctls: settings::exact_sysctls()
            .into_iter()
            .chain(Rules::from(config).sysctls())
            .collect(),
        inherited_sysctls: settings::inherited_sysctls(sizing.growth().0 > 0),
        most_extra_memory_bytes: sizing.growth().bytes(),
        kernel_modules: config.agent.kernel_modules.clone(),
        timeout_factor: config.runtime.timeout_factor.get(),
        sandbox_mounts: !config.runtime.sandbox_bind_mounts.is_empty(),
        log_level: if debug { "debug" } else { "info" }.to_owned(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: &serde_json::Value) -> Spec {
        serde_json::from_value(json.clone()).unwrap()
    }

    #[tokio::test]
    async fn a_server_that_nobody_asks_ends() {
        unclaimed(&SandboxCell::default(), Duration::from_millis(1)).await;
    }

    #[test]
    fn only_without_a_model_the_guest_has_no_network() {
        for (model, networked) in [
            (InterNetworking::None, false),
            (InterNetworking::TcFilter, true),
            (InterNetworking::Macvtap, true),
        ] {
            let mut config = config::Config::default();
            config.runtime.internetworking_model = model;
            assert_eq!(is_networked(&config), networked, "{model:?}");
        }
    }

    #[test]
    fn a_vm_has_its_containers_score_and_a_pods_is_not_protected_by_its_pause() {
        let process = |score: Option<i32>| serde_json::json!({ "cwd": "/", "args": ["x"], "user": { "uid": 0, "gid": 0 }, "oomScoreAdj": score });
        let container = |score| serde_json::json!({ "ociVersion": "1.0.2", "process": process(score) });
        assert_eq!(oom_score_adj(&spec(&container(Some(300)))), 300);
        assert_eq!(oom_score_adj(&spec(&container(Some(-5)))), -5);
        assert_eq!(oom_score_adj(&spec(&container(None))), 0);
        let mut pod = container(Some(-998));
        pod["annotations"] = serde_json::json!({ "io.kubernetes.cri.container-type": "sandbox" });
        assert_eq!(oom_score_adj(&spec(&pod)), 0);
    }
}
