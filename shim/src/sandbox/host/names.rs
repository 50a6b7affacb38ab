//! Docker's name server is relayed to the guest as long as a container asks it, and if the guest has the container's network at all.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use base::chain;
use guest::agent_client::AgentClient;
use guest::names::NameRelay;
use protocol::agent::NameServer;
use tokio::time::timeout;

use crate::sandbox::Sandbox;

/// Timeout for reading the containers' resolv.conf: one may be on a file server that hangs, and the VM's end waits for the lock.
const READ: Duration = Duration::from_secs(5);

impl Sandbox {
    /// Makes the relay what the containers need now, those that are being made included: the network changes while Docker makes one.
    /// Without it containers run all the same.
    pub(in crate::sandbox) async fn update_names(&self, agent: &AgentClient) {
        if !self.networked {
            return;
        }
        if let Err(error) = self.try_update_names(agent).await {
            tracing::warn!(sandbox = %self.id, error, "containers cannot ask Docker's name server (127.0.0.11)");
        }
    }

    async fn try_update_names(&self, agent: &AgentClient) -> Result<(), String> {
        // One after the other: what the guest is told last is what is there.
        let mut relay = self.names.lock().await;
        let wanted = timeout(READ, self.docker_is_asked()).await;
        let wanted =
            wanted.map_err(|_| format!("a container's resolv.conf cannot be read within {} s", READ.as_secs()))?;
        if wanted == relay.is_some() {
            return Ok(());
        }
        if !wanted {
            let none = agent.serve_names(&NameServer::default()).await;
            none.map_err(|error| chain(&error))?;
            // Last: an update that is dropped or fails meanwhile is made again.
            *relay = None;
            return Ok(());
        }
        let netns = format!("/proc/{}/ns/net", self.pid());
        if is_own(Path::new(&netns)).map_err(|error| chain(&error))? {
            // A container that asks for the host's network has none.
            return Ok(());
        }
        let made = NameRelay::start(&self.relays, Path::new(&netns)).await;
        let made = made.map_err(|error| chain(&error))?;
        agent.serve_names(&made.server()).await.map_err(|error| chain(&error))?;
        *relay = Some(made);
        Ok(())
    }

    async fn docker_is_asked(&self) -> bool {
        let mut files: Vec<_> = self
            .records()
            .values()
            .filter_map(|container| container.resolv_conf.get().cloned().flatten())
            .collect();
        files.sort();
        files.dedup();
        for file in files {
            if self.host.asks_docker(&file).await {
                return true;
            }
        }
        false
    }
}

/// Whether it is the network namespace that the shim is in: the host's.
fn is_own(netns: &Path) -> io::Result<bool> {
    let [own, other] = [Path::new("/proc/self/ns/net"), netns].map(std::fs::metadata);
    Ok(own?.ino() == other?.ino())
}
