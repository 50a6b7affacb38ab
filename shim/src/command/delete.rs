//! `delete`: containerd's last resort if a shim has ended or does not answer. containerd kills this process after 5 s.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use containerd_shim_protos::api::{DeleteRequest, DeleteResponse, KillRequest, ShutdownRequest, WaitRequest};
use containerd_shim_protos::shim_async::{Client, TaskClient};
use node::bundle;
use node::run_dir::RunDir;
use protobuf::MessageField;
use protobuf::well_known_types::timestamp::Timestamp;
use ttrpc::context;

use super::joined;
use crate::cleanup;
use crate::id::{ContainerId, SandboxId};
use crate::program::alive::is_alive;
use crate::program::arguments::Arguments;

/// 128 + SIGKILL: what containerd's own shims answer.
const KILLED: u32 = 137;

/// SIGKILL on Linux (signal(7)).
const SIGKILL: u32 = 9;

/// Timeout for the container to die of it.
const DEATH_LIMIT: Duration = Duration::from_secs(3);

/// Timeout for the server of a sandbox that is no pod to end its last container.
const LAST_LIMIT: Duration = Duration::from_millis(1500);

/// Timeout for a pod's server to end one of its containers.
const END_LIMIT: Duration = Duration::from_secs(4);

/// Removes what is left, and answers what containerd takes for the container's end. Of a pod whose shim runs nothing but the
/// container is touched: that shim ends it.
#[must_use]
pub fn delete(arguments: &Arguments, bundle: &Path) -> DeleteResponse {
    let own = SandboxId::from(&arguments.id);
    // The bundle may be gone already; then the container can only be found by its own id.
    let named = bundle::sandbox_of(bundle, &arguments.id).unwrap_or_else(|_| own.clone());
    let run_dir = joined::found(bundle).unwrap_or_else(|| RunDir::of(&arguments.namespace, &named));
    let pid = vmm(&run_dir);
    let is_own = run_dir == RunDir::of(&arguments.namespace, &own);
    if (!is_own || run_dir.is_joined()) && is_alive(&run_dir.socket()) {
        // Docker starts a container again by its id, in the same sandbox, maybe before this process runs, which containerd starts after each deletion.
        if run_dir.is_joined() && !is_working_directory(bundle) {
            return killed(pid);
        }
        let address = run_dir.address();
        // What hangs is removed by whoever is the last: that takes most of containerd's 5 s.
        let is_last = run_dir.is_joined() && !joined::others(bundle, &address);
        let limit = if is_last { LAST_LIMIT } else { END_LIMIT };
        match end_in_pod(&address, &arguments.id, run_dir.is_joined(), limit) {
            Ok(ended) => return ended.unwrap_or_else(|| killed(pid)),
            Err(Failed::Unanswered) if is_last => {}
            // A server that was killed is connected to until the kernel has closed its socket. containerd starts this process for each of its containers at
            // that moment, and does not start it again.
            Err(Failed::HungUp) if run_dir.is_joined() && has_ended(&run_dir) => {}
            Err(_) => return killed(pid),
        }
    }
    // Before the lock: whoever has it may be starting a new sandbox of this id.
    let server = cleanup::recorded_server(&run_dir);
    cleanup::remove_sandbox(&run_dir, server);
    killed(pid)
}

/// Whether containerd has started this process for the bundle that is there now: it starts it there.
fn is_working_directory(bundle: &Path) -> bool {
    let identity = |path: &Path| fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
    let own = identity(Path::new("."));
    own.is_some() && own == identity(bundle)
}

/// The pid that stood for the sandbox; 0 where none is known.
fn vmm(run_dir: &RunDir) -> u32 {
    let state = run_dir.read_state().ok().flatten();
    let vmm = state.and_then(|state| state.vm.first().copied());
    vmm.and_then(|vmm| u32::try_from(vmm.pid).ok()).unwrap_or(0)
}

fn killed(pid: u32) -> DeleteResponse {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    DeleteResponse {
        pid,
        exit_status: KILLED,
        exited_at: MessageField::some(Timestamp {
            seconds: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(now.subsec_nanos()).unwrap_or(0),
            ..Timestamp::default()
        }),
        ..DeleteResponse::default()
    }
}

/// Whether a server that has hung up is a process that ends.
fn has_ended(run_dir: &RunDir) -> bool {
    let deadline = Instant::now() + LAST_LIMIT;
    let server = cleanup::recorded_server(run_dir);
    server.is_none_or(|server| server.ends_by(deadline)) && !is_alive(&run_dir.socket())
}

/// Why a server has not ended a container.
enum Failed {
    /// It has not answered in time.
    Unanswered,
    /// It cannot be reached any more, or the connection ended.
    HungUp,
}

/// Has the pod's server end the container, and, if it is not a pod's, itself if it has no other one. None where it does not know it; why, is logged.
fn end_in_pod(
    address: &str,
    container: &ContainerId,
    is_joined: bool,
    limit: Duration,
) -> Result<Option<DeleteResponse>, Failed> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = runtime.map(|runtime| {
        let end = async {
            let ended = end(address, container.as_str()).await;
            if is_joined {
                shut_down(address, container.as_str()).await;
            }
            ended
        };
        runtime.block_on(async { tokio::time::timeout(limit, end).await })
    });
    match ended {
        Ok(Ok(Ok(answer))) => return Ok(Some(answer)),
        Ok(Ok(Err(error))) => {
            tracing::warn!(%error, %container, "the pod's shim has not deleted the container");
            if !matches!(error, ttrpc::Error::RpcStatus(_)) {
                return Err(Failed::HungUp);
            }
        }
        Ok(Err(_)) => {
            tracing::warn!(%container, "the pod's shim has not deleted the container in time");
            return Err(Failed::Unanswered);
        }
        Err(error) => tracing::warn!(%error, %container, "the pod's shim cannot be asked to delete the container"),
    }
    Ok(None)
}

/// Asks a server to end, as containerd does after each deletion. One that has other containers stays.
async fn shut_down(address: &str, container: &str) {
    let request = ShutdownRequest {
        id: container.to_owned(),
        ..Default::default()
    };
    if let Ok(client) = Client::connect(address).await {
        let limit = context::with_duration(END_LIMIT);
        let _ = TaskClient::new(client).shutdown(limit, &request).await;
    }
}

/// Kills a container and deletes it, by the server that listens on this address (`unix://…`).
///
/// # Errors
/// There is no such server or container, or it cannot be deleted.
pub async fn end(address: &str, container: &str) -> ttrpc::Result<DeleteResponse> {
    let id = container.to_owned();
    let limit = || context::with_duration(END_LIMIT);
    let tasks = TaskClient::new(Client::connect(address).await?);
    let kill = KillRequest {
        id: id.clone(),
        signal: SIGKILL,
        all: true,
        ..Default::default()
    };
    if tasks.kill(limit(), &kill).await.is_ok() {
        let wait = WaitRequest {
            id: id.clone(),
            ..Default::default()
        };
        // Whether it has ended, the answer to the deletion tells.
        let _ = tasks.wait(context::with_duration(DEATH_LIMIT), &wait).await;
    }
    // One that cannot be killed has ended.
    let delete = DeleteRequest {
        id,
        ..Default::default()
    };
    tasks.delete(limit(), &delete).await
}
