//! Updates the guest's network from the host's: after the runtime's hooks, and whenever the host's changes later.

use std::sync::Arc;

use base::chain;
use guest::agent_client::AgentClient;

use super::Sandbox;
use super::boot::Booted;
use super::host::HostError;
use crate::sandbox::error::Error;

impl Sandbox {
    /// Makes the guest's network what the host's is now. `subject` is for whom.
    pub(super) async fn update_network(&self, agent: &AgentClient, subject: &str) -> Result<(), Error> {
        let Some(machine) = self.machine() else { return Ok(()) };
        // The guest is told in the order in which the host is looked at: what it is told last is what is there.
        let mut behind = self.network.lock().await;
        let network = machine.refresh_network(*behind).await.map_err(|error| Error::Host {
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

    /// Carries later changes into the guest, until the task is aborted.
    pub(super) async fn follow_network(self: Arc<Self>, booted: Arc<Booted>) {
        loop {
            booted.machine.network_changed().await;
            if let Err(error) = self
                .update_network(&booted.agent, &format!("sandbox {}", self.id))
                .await
            {
                tracing::warn!(sandbox = %self.id, error = chain(&error), "the guest keeps its network as it was");
            }
            // Docker names its server in resolv.conf before it makes the interface of a network that has one.
            self.update_names(&booted.agent).await;
        }
    }
}
