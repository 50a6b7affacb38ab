//! Updates the guest's network from the host's: after the runtime's hooks, and whenever the host's changes later.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use base::chain;
use guest::agent_client::AgentClient;

use crate::sandbox::Sandbox;
use crate::sandbox::error::Error;
use crate::sandbox::host::HostError;
use crate::sandbox::vm::boot::Booted;

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
