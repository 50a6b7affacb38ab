//! The rehearsal of a VM that waits for its sandbox: a container that nobody has asked for is created, run and removed before the host is called.
//!
//! What runs for the first time costs more than what has run before: QEMU has to translate it (TCG), and the kernel makes much when it is first used. A
//! VM of the pool has the time for that while nobody waits for it. Nothing of the container is left.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use oci_spec::runtime::{LinuxNamespaceType, Spec};
use protocol::agent::{Network, Stdio};
use protocol::{PAUSE_PROGRAM, PAUSE_ROOT};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::common::ids::ContainerId;
use crate::container::Services;
use crate::container::events::Events;
use crate::error::Error;
use crate::guest::pause;
use crate::network::GuestNetwork;
use crate::server::sandbox::{Deleted, Sandbox, Wanted};

/// No sandbox has a container of this name by then.
const NAME: &str = "rehearsal";

/// Timeout for the container to run and end, and for its removal. The factor of time-outs comes with the host's answer.
const LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub(crate) enum RehearsalError {
    #[error("describe the container of the rehearsal")]
    Spec(#[from] serde_json::Error),
    #[error(transparent)]
    Container(#[from] Arc<Error>),
    #[error("the rehearsal takes more than {} s", LIMIT.as_secs())]
    TimedOut,
}

impl From<Error> for RehearsalError {
    fn from(error: Error) -> Self {
        Self::Container(Arc::new(error))
    }
}

/// Does with a container what a sandbox does with its first one. `services` are the agent's; nobody hears of the container's end.
///
/// # Errors
/// The container cannot be created, run or removed. A VM that has not rehearsed works as well.
pub(crate) async fn rehearse(services: &Services, network: &GuestNetwork) -> Result<(), RehearsalError> {
    let services = Services {
        events: Events::default(),
        ..services.clone()
    };
    let id = ContainerId::new(NAME).map_err(Error::from)?;
    let sandbox = Arc::new(Sandbox::new(services, Arc::new(Notify::new())));
    // A sandbox without interfaces has these steps, too.
    network.apply(&Network::default()).await.map_err(Error::from)?;
    let wanted = Wanted {
        id: id.clone(),
        spec: serde_json::from_slice(&serde_json::to_vec(&spec())?)?,
        stdio: Stdio::default(),
        storages: Vec::new(),
        devices: Vec::new(),
        covers: Vec::new(),
        sockets: Vec::new(),
        bundle: PathBuf::new(),
        device_names: HashMap::new(),
    };
    let ran = timeout(LIMIT, run(&sandbox, &id, wanted)).await;
    // Whatever came of it.
    let removed = timeout(LIMIT, remove(&sandbox, &id)).await;
    ran.unwrap_or(Err(RehearsalError::TimedOut))?;
    removed.unwrap_or(Err(RehearsalError::TimedOut))
}

async fn run(sandbox: &Arc<Sandbox>, id: &ContainerId, wanted: Wanted) -> Result<(), RehearsalError> {
    sandbox.create(wanted, &HashMap::new()).await?;
    let container = sandbox.container(id)?;
    container.start().await?;
    container.await_end().await;
    Ok(())
}

/// A container that could not be created has left nothing.
async fn remove(sandbox: &Arc<Sandbox>, id: &ContainerId) -> Result<(), RehearsalError> {
    let Ok(container) = sandbox.container(id) else {
        return Ok(());
    };
    container.kill();
    container.await_end().await;
    while !matches!(sandbox.delete(id).await?, Deleted::All) {}
    Ok(())
}

/// The mounts, namespaces and devices that containers usually have, with the agent's own program, which ends at once.
fn spec() -> Spec {
    let mut spec = Spec::default();
    if let Some(root) = spec.root_mut() {
        root.set_path(PAUSE_ROOT.into());
    }
    if let Some(process) = spec.process_mut() {
        let words = [PAUSE_PROGRAM, pause::REHEARSAL].map(str::to_owned);
        process.set_args(Some(words.to_vec()));
    }
    // Those of a sandbox have its network.
    let namespaces = spec
        .linux_mut()
        .as_mut()
        .and_then(|linux| linux.namespaces_mut().as_mut());
    if let Some(namespaces) = namespaces {
        namespaces.retain(|namespace| namespace.typ() != LinuxNamespaceType::Network);
    }
    spec
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_container_has_the_agents_program_and_the_guests_network() {
        let spec = spec();
        let process = spec.process().clone().unwrap();
        assert_eq!(process.args().clone().unwrap(), [PAUSE_PROGRAM, pause::REHEARSAL]);
        let linux = spec.linux().clone().unwrap();
        let namespaces = linux.namespaces().clone().unwrap();
        let has = |typ| namespaces.iter().any(|namespace| namespace.typ() == typ);
        assert!(has(LinuxNamespaceType::Pid) && has(LinuxNamespaceType::Mount) && !has(LinuxNamespaceType::Network));
    }
}
