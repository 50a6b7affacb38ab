//! The network of a running VM: the messages to the guest after the start.

use hypervisor::NicHotplug;
use protocol::agent::Network;
use tokio::sync::{Mutex, mpsc, watch};

use super::{PodNetwork, PodNetworkError};

/// The network of a VM that runs.
pub struct VmNetwork {
    pod: Mutex<PodNetwork>,
    nics: NicHotplug,
    /// Begins once the hooks have run: until then the namespace is what they are about to change.
    changes: Mutex<Option<mpsc::Receiver<()>>>,
    begun: watch::Sender<bool>,
}

impl VmNetwork {
    /// Takes the network over, with what plugs devices into its VM.
    #[must_use]
    pub fn new(pod: PodNetwork, nics: NicHotplug) -> Self {
        Self {
            pod: Mutex::new(pod),
            nics,
            changes: Mutex::new(None),
            begun: watch::Sender::new(false),
        }
    }

    /// Makes the host's part of the network what it is to be now, and gives what the guest is to have; none if that is what
    /// it was told, unless it is to be told `again`. Once it was called, changes are watched for.
    ///
    /// # Errors
    /// The host's part cannot be made.
    pub async fn refresh(&self, again: bool) -> Result<Option<Network>, PodNetworkError> {
        let mut pod = self.pod.lock().await;
        if !pod.comes_later() {
            return Ok(None);
        }
        if *self.begun.borrow() {
            return pod.refresh(&self.nics, again).await;
        }
        // From before the look, so that nothing is missed.
        let changes = pod.watch();
        let mut network = pod.refresh(&self.nics, again).await?;
        if network.is_none() && pod.devices.made > 0 {
            // There is nothing: the guest hides the devices that it has no use for.
            network = Some(Network::default());
        }
        *self.changes.lock().await = Some(changes);
        self.begun.send_replace(true);
        Ok(network)
    }

    /// Waits for the next change of the namespace. May be dropped at any time; one may wait.
    pub async fn changed(&self) {
        // The sender is in self: it cannot be gone.
        let _ = self.begun.subscribe().wait_for(|begun| *begun).await;
        let mut changes = self.changes.lock().await;
        let change = match changes.as_mut() {
            Some(changes) => changes.recv().await,
            None => None,
        };
        if change.is_none() {
            // The namespace is not watched any more.
            std::future::pending().await
        }
    }
}
