//! Updates the guest's network from the host's: after the runtime's hooks, and whenever the host's changes later. Docker's name server is
//! relayed to the guest as long as a container asks it, if the guest has the container's network at all.

use std::io;
use std::ops::RangeInclusive;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base::chain;
use guest::agent_client::AgentClient;
use guest::names::NameRelay;
use protocol::agent::NameServer;
use tokio::time::timeout;

use crate::sandbox::Sandbox;
use crate::sandbox::error::Error;
use crate::sandbox::host::HostError;
use crate::sandbox::vm::boot::Booted;

/// Timeout for reading the containers' resolv.conf: one may be on a file server that hangs, and the VM's end waits for the lock.
const READ: Duration = Duration::from_secs(5);

impl Sandbox {
    /// Makes the guest's network what the host's is now. `subject` is for whom.
    pub(in crate::sandbox) async fn update_network(&self, agent: &AgentClient, subject: &str) -> Result<(), Error> {
        let Some(vm) = self.running_vm() else { return Ok(()) };
        // The guest is told in the order in which the host is looked at: what it is told last is what is there.
        let mut behind = self.network.lock().await;
        let network = vm.refresh_network(*behind).await.map_err(|error| Error::Host {
            operation: "set up the network of",
            subject: subject.to_owned(),
            source: HostError::Other(Box::new(error)),
        })?;
        let Some(network) = network else { return Ok(()) };
        *behind = true;
        let updated = agent.update_network(&network).await;
        updated.map_err(|source| Error::Agent {
            operation: "set up the network of",
            subject: subject.to_owned(),
            source,
        })?;
        *behind = false;
        Ok(())
    }

    /// Carries later changes into the guest, until the task is aborted. What has failed is tried again.
    pub(in crate::sandbox) async fn follow_network(self: Arc<Self>, booted: Arc<Booted>) {
        let mut retry = Retry::new(self.timeouts.network_retries());
        loop {
            tokio::select! {
                () = booted.vm.network_changed() => {}
                () = retry.due() => {}
            }
            let updated = self
                .update_network(&booted.agent, &format!("sandbox {}", self.id))
                .await;
            match updated {
                Ok(()) => retry.succeeded(),
                Err(error) => {
                    let error = chain(&error);
                    let is_new = retry.is_new(&error);
                    let wait = retry.failed(&error);
                    if is_new {
                        tracing::warn!(sandbox = %self.id, error, ?wait, "the guest keeps its network as it was; the update is tried again");
                    }
                }
            }
            // Docker names its server in resolv.conf before it makes the interface of a network that has one.
            self.update_names(&booted.agent).await;
        }
    }

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

/// When an update that has failed is tried again: each time after twice the wait.
struct Retry {
    waits: RangeInclusive<Duration>,
    /// The last error, and the wait that follows it.
    failure: Option<(String, Duration)>,
}

impl Retry {
    fn new(waits: RangeInclusive<Duration>) -> Self {
        Self { waits, failure: None }
    }

    async fn due(&self) {
        match &self.failure {
            Some((_, wait)) => tokio::time::sleep(*wait).await,
            None => std::future::pending().await,
        }
    }

    fn succeeded(&mut self) {
        self.failure = None;
    }

    /// Whether the last error was another one.
    fn is_new(&self, error: &str) -> bool {
        self.failure.as_ref().is_none_or(|(last, _)| last != error)
    }

    fn failed(&mut self, error: &str) -> Duration {
        let wait = match &self.failure {
            Some((_, wait)) => (*wait * 2).min(*self.waits.end()),
            None => *self.waits.start(),
        };
        self.failure = Some((error.to_owned(), wait));
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_its_bound_until_an_update_succeeds() {
        let mut retry = Retry::new(Duration::from_secs(1)..=Duration::from_secs(5));
        let waits: Vec<_> = (0..5).map(|_| retry.failed("no place").as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 5, 5]);
        assert!(!retry.is_new("no place") && retry.is_new("another"));
        retry.succeeded();
        assert_eq!(retry.failed("no place").as_secs(), 1);
    }
}
