//! Forwards the host's changes of files to the guest, one batch after the other, as long as the VM lives.

use std::collections::BTreeSet;
use std::time::Duration;

use base::chain;
use guest::agent_client::{AgentClient, AgentError, Refusal};
use guest::warn_rate_limited;
use node::volumes::copies::Copies;
use node::watch::Watches;
use protocol::agent::HostChanges;
use tokio::sync::watch;

use crate::sandbox::VmState;

/// Pause before files that the guest has not taken are sent again; then twice as long each time.
const FIRST_RETRY: Duration = Duration::from_millis(500);

/// The longest of these pauses.
const LAST_RETRY: Duration = Duration::from_secs(30);

/// Ends with the VM, or when the guest says that it cannot.
pub(in crate::sandbox) async fn tell(watches: Watches, agent: AgentClient, mut vm: watch::Receiver<VmState>) {
    let telling = async {
        loop {
            let changes = match watches.next().await {
                Ok(changes) => changes,
                Err(error) => {
                    tracing::warn!(%error, "the host's changes cannot be read any longer");
                    return;
                }
            };
            let request = HostChanges {
                changes,
                ..Default::default()
            };
            match agent.report_changes(&request).await {
                Ok(_) => {}
                Err(
                    error @ AgentError::Refused {
                        refusal: Refusal::Unsupported,
                        ..
                    },
                ) => {
                    tracing::info!(%error, "programs in containers are not told what the host changes");
                    return;
                }
                Err(error) => warn_rate_limited!(%error, "some of the host's changes are not told to the guest"),
            }
        }
    };
    tokio::select! {
        () = telling => {}
        _ = vm.wait_for(|vm| matches!(vm, VmState::Failed(_) | VmState::Ended { .. })) => {}
    }
}

/// Makes the guest's copies of files what the host's are, as long as the VM lives. What the guest does not take is sent again: it may have
/// changed while the container that has it was being made.
pub(in crate::sandbox) async fn copy(copies: Copies, agent: AgentClient, mut vm: watch::Receiver<VmState>) {
    let copying = async {
        let mut pending = BTreeSet::new();
        let mut pause = FIRST_RETRY;
        let mut next = Box::pin(copies.next());
        loop {
            let read = tokio::select! {
                read = &mut next => {
                    next = Box::pin(copies.next());
                    read
                }
                () = tokio::time::sleep(pause), if !pending.is_empty() => copies.read(&pending).await,
            };
            let changed = match read {
                Ok(changed) => changed,
                Err(error) => {
                    tracing::warn!(%error, "changes of what is copied into the guest cannot be read any longer");
                    return;
                }
            };
            for request in changed {
                match agent.update_storage(&request).await {
                    Ok(_) => drop(pending.remove(&request.name)),
                    Err(error) => {
                        let (storage, error) = (&request.name, chain(&error));
                        if pending.contains(storage) {
                            tracing::debug!(storage, error, "containers still keep old files");
                        } else {
                            tracing::warn!(storage, error, "containers keep old files until they are sent again");
                            pending.insert(request.name);
                        }
                    }
                }
            }
            pending.retain(|storage| copies.has(storage));
            pause = match pending.is_empty() {
                true => FIRST_RETRY,
                false => LAST_RETRY.min(pause * 2),
            };
        }
    };
    tokio::select! {
        () = copying => {}
        _ = vm.wait_for(|vm| matches!(vm, VmState::Failed(_) | VmState::Ended { .. })) => {}
    }
}
