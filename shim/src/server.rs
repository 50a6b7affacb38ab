//! The server: sets the sandbox up, serves containerd on the inherited socket, and leaves nothing behind at its end.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use hypervisor::{NetworkNamespace, VmRequest};
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, Spec};
use protocol::agent::{SandboxSetup, Share};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use ttrpc::r#async::Server;
use ttrpc::r#async::transport::Listener;

use crate::context::ServerContext;
use crate::error::chain;
use crate::events::Publisher;
use crate::host_cgroup::HostCgroup;
use crate::process::ProcessRef;
use crate::qemu::QemuLauncher;
use crate::run_dir::{RunDirError, SandboxState};
use crate::sandbox::boot::BootPlan;
use crate::sandbox::host::RealHost;
use crate::sandbox::{Parts, Sandbox};
use crate::service::Service;
use crate::share::{ShareError, SharedTree};
use crate::vm::LaunchError;

/// Longest time without progress that the output of an ended process is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// For containerd to take the last events.
const FLUSH: Duration = Duration::from_secs(2);

/// Why the server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitReason {
    /// containerd asked for it and nothing was left.
    Shutdown,
    /// SIGTERM or SIGINT.
    Signal,
}

/// Why the server failed.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The socket cannot be used.
    #[error("cannot serve on the sandbox's socket")]
    Listen(#[source] io::Error),
    /// The protocol's server.
    #[error("cannot serve on the sandbox's socket")]
    Serve(#[source] ttrpc::Error),
    /// The shared directory.
    #[error("cannot set up the sandbox's shared directory")]
    Share(#[from] ShareError),
    /// What the sandbox is made of cannot be written down.
    #[error(transparent)]
    State(#[from] RunDirError),
}

/// Serves until the sandbox ends, and its VM with it. What it leaves on the host is the caller's to remove.
///
/// # Errors
/// The socket cannot be served on, or the shared directory cannot be set up.
pub async fn serve(listener: UnixListener, context: ServerContext) -> Result<ExitReason, ServerError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(ServerError::Listen)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServerError::Listen)?;
    let events = Publisher::start(&context.ttrpc_address, context.namespace.as_str());
    let sandbox = start_sandbox(&context, events.clone())?;
    let shutdown = Arc::new(Notify::new());
    let service = Service::new(Arc::clone(&sandbox), Arc::clone(&shutdown));
    let listener = Listener::try_from(listener).map_err(ServerError::Listen)?;
    let mut server = Server::new().add_listener(listener).register_service(service.methods());
    server.start().await.map_err(ServerError::Serve)?;
    let reason = tokio::select! {
        () = shutdown.notified() => ExitReason::Shutdown,
        _ = terminate.recv() => ExitReason::Signal,
        _ = interrupt.recv() => ExitReason::Signal,
    };
    tracing::info!(sandbox = %context.id, ?reason, "the server ends");
    sandbox.stop().await;
    events.flush(FLUSH).await;
    server.disconnect().await;
    Ok(reason)
}

fn start_sandbox(context: &ServerContext, events: Publisher) -> Result<Arc<Sandbox>, ServerError> {
    let tree = SharedTree::new(&context.run_dir, context.host.clone())?;
    // A bundle that cannot be read is reported by Create, which reads it too.
    let spec = Spec::load(context.bundle.join("config.json")).unwrap_or_default();
    let (config, problem) = match configuration(context, &spec) {
        Ok(config) => (config, None),
        Err(error) => (config::Config::default(), Some(error)),
    };
    let linux = spec.linux().as_ref();
    let cgroups_path = linux.and_then(|linux| linux.cgroups_path().clone());
    let cgroup = HostCgroup::create(cgroups_path.as_deref(), &context.id);
    let namespaces = linux.and_then(|linux| linux.namespaces().as_ref());
    let netns = network_namespace(namespaces.map_or(&[], Vec::as_slice));
    let mut state = SandboxState::new(&context.namespace, &context.id);
    state.shim = ProcessRef::own();
    state.cgroups = cgroup.directories().to_vec();
    // Before anything else is made: whoever removes the sandbox finds the cgroup here, however early it ends.
    context.run_dir.write_state(&state)?;
    let request = VmRequest {
        id: context.id.to_string(),
        run_dir: context.run_dir.path().to_owned(),
        shared_dir: tree.root().to_owned(),
        share_tag: protocol::SHARE_TAG.to_owned(),
        netns,
        cgroup_procs: cgroup.procs_files(),
        kernel_params: Vec::new(),
        host_port: protocol::DEFAULT_HOST_PORT,
        port_parameter: protocol::PORT_PARAMETER.to_owned(),
    };
    let launcher = QemuLauncher {
        plan: problem.map_or(Ok(config.hypervisor.clone()), Err),
        request,
        cgroup,
        run_dir: context.run_dir.clone(),
        state,
    };
    let log = context.log.clone();
    let plan = BootPlan {
        launcher: Arc::new(launcher),
        setup: setup(context, &spec, &config),
        dial_timeout: config.agent.dial_timeout,
        create_timeout: config.runtime.create_container_timeout,
        log: Arc::new(move |line: &[u8]| log.relay(line)),
    };
    let parts = Parts {
        id: context.id.clone(),
        namespace: context.namespace.clone(),
        host: Arc::new(RealHost {
            tree,
            host: context.host.clone(),
            sandbox: context.id.clone(),
            disable_guest_seccomp: config.runtime.disable_guest_seccomp,
        }),
        events,
        patience: PATIENCE,
    };
    Ok(Sandbox::start(parts, plan))
}

/// Where QEMU runs. A network namespace without a path is a new one (OCI runtime spec, config-linux.md, "Namespaces"):
/// Docker's createRuntime hook enters it by QEMU's pid and puts the network there.
fn network_namespace(namespaces: &[LinuxNamespace]) -> NetworkNamespace {
    let network = namespaces
        .iter()
        .find(|namespace| namespace.typ() == LinuxNamespaceType::Network);
    match network.map(|namespace| namespace.path().clone().filter(|path| !path.as_os_str().is_empty())) {
        None => NetworkNamespace::Inherited,
        Some(Some(path)) => NetworkNamespace::At(path),
        Some(None) => NetworkNamespace::New,
    }
}

/// The file, then the sandbox's annotations.
fn configuration(context: &ServerContext, spec: &Spec) -> Result<config::Config, LaunchError> {
    let environment = std::env::var_os("KATA_CONF_FILE").map(std::path::PathBuf::from);
    let path = config::locate(context.config_path.as_deref(), environment.as_deref());
    let loaded = config::load(&path).map_err(|error| LaunchError { message: chain(&error) })?;
    let mut config = loaded.config;
    let annotations: BTreeMap<_, _> = spec.annotations().clone().unwrap_or_default().into_iter().collect();
    let more = config::annotations::apply(&mut config, &annotations)
        .map_err(|error| LaunchError { message: chain(&error) })?;
    for warning in loaded.warnings.iter().chain(&more) {
        tracing::warn!("{warning}");
    }
    Ok(config)
}

fn setup(context: &ServerContext, spec: &Spec, config: &config::Config) -> SandboxSetup {
    let debug = context.debug || config.agent.enable_debug;
    SandboxSetup {
        sandbox_id: context.id.to_string(),
        hostname: spec.hostname().clone().unwrap_or_default(),
        shares: vec![Share {
            tag: protocol::SHARE_TAG.to_owned(),
            mountpoint: protocol::SHARE_MOUNTPOINT.to_owned(),
            ..Default::default()
        }],
        log_level: if debug { "debug" } else { "info" }.to_owned(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_namespace_is_the_hosts_a_given_one_or_a_new_one() {
        let runs_in = |namespaces: serde_json::Value| {
            let namespaces: Vec<LinuxNamespace> = serde_json::from_value(namespaces).unwrap();
            network_namespace(&namespaces)
        };
        let pid = serde_json::json!({ "type": "pid" });
        assert_eq!(runs_in(serde_json::json!([pid])), NetworkNamespace::Inherited);
        let new = serde_json::json!([pid, { "type": "network" }]);
        assert_eq!(runs_in(new), NetworkNamespace::New);
        let given = serde_json::json!([{ "type": "network", "path": "/run/netns/a" }]);
        assert_eq!(runs_in(given), NetworkNamespace::At("/run/netns/a".into()));
    }
}
