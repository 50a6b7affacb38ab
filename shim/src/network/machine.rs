//! The network of a VM that runs: what the guest is told after the start.

use std::sync::Arc;

use protocol::agent::Network;
use tokio::sync::{Mutex, mpsc};

use super::{NetworkError, PodNetwork};

/// The network of a VM that runs.
pub struct MachineNetwork {
    pod: Arc<Mutex<PodNetwork>>,
    /// Begins once the hooks have run: until then the namespace is what they are about to change.
    changes: Mutex<Option<mpsc::Receiver<Network>>>,
    begun: tokio::sync::watch::Sender<bool>,
}

impl MachineNetwork {
    /// Takes the network over.
    #[must_use]
    pub fn new(pod: PodNetwork) -> Self {
        Self {
            pod: Arc::new(Mutex::new(pod)),
            changes: Mutex::new(None),
            begun: tokio::sync::watch::Sender::new(false),
        }
    }

    /// What the guest is to have now; none if that is what it was told.
    ///
    /// # Errors
    /// The host's part cannot be made.
    pub async fn after_hooks(&self) -> Result<Option<Network>, NetworkError> {
        let mut pod = self.pod.lock().await;
        if !pod.comes_later() {
            return Ok(None);
        }
        if *self.begun.borrow() {
            return pod.refresh().await;
        }
        let changes = pod.watch();
        // Even if there is nothing: the guest hides the devices that it has no use for.
        let network = pod.refresh().await?.or_else(|| Some(Network::default()));
        let (sender, receiver) = mpsc::channel(1);
        *self.changes.lock().await = Some(receiver);
        self.begun.send_replace(true);
        // It ends when this machine, and so the receiver, is dropped.
        tokio::spawn(follow(Arc::clone(&self.pod), changes, sender));
        Ok(network)
    }

    /// What the guest is to have after the next change. May be dropped at any time; one may wait.
    pub async fn next(&self) -> Network {
        // The sender is in self: it cannot be gone.
        let _ = self.begun.subscribe().wait_for(|begun| *begun).await;
        let mut changes = self.changes.lock().await;
        match changes.as_mut() {
            Some(changes) => match changes.recv().await {
                Some(network) => network,
                // The namespace is not watched any more.
                None => std::future::pending().await,
            },
            None => std::future::pending().await,
        }
    }
}

async fn follow(pod: Arc<Mutex<PodNetwork>>, mut changes: mpsc::Receiver<()>, told: mpsc::Sender<Network>) {
    loop {
        tokio::select! {
            () = told.closed() => return,
            change = changes.recv() => if change.is_none() { return },
        }
        let refreshed = pod.lock().await.refresh().await;
        match refreshed {
            Ok(None) => {}
            Ok(Some(network)) => {
                if told.send(network).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "a change of the network is not carried into the guest");
            }
        }
    }
}
