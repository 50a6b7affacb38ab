//! Forwards the host's changes of files to the guest, one batch after the other, as long as the VM lives.

use base::chain;
use guest::agent_client::{AgentClient, AgentError, Refusal};
use node::volumes::copies::Copies;
use node::watch::Watches;
use protocol::agent::HostChanges;
use tokio::sync::watch;

use super::Vm;

/// Ends with the VM, or when the guest says that it cannot.
pub(super) async fn tell(watches: Watches, agent: AgentClient, mut vm: watch::Receiver<Vm>) {
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
                Err(error) => tracing::warn!(%error, "some of the host's changes are not told to the guest"),
            }
        }
    };
    tokio::select! {
        () = telling => {}
        _ = vm.wait_for(|vm| matches!(vm, Vm::Failed(_) | Vm::Ended { .. })) => {}
    }
}

/// Makes the guest's copies of files what the host's are, as long as the VM lives.
pub(super) async fn copy(copies: Copies, agent: AgentClient, mut vm: watch::Receiver<Vm>) {
    let copying = async {
        loop {
            let changed = match copies.next().await {
                Ok(changed) => changed,
                Err(error) => {
                    tracing::warn!(%error, "changes of what is copied into the guest cannot be read any longer");
                    return;
                }
            };
            for request in changed {
                if let Err(error) = agent.update_storage(&request).await {
                    tracing::warn!(
                        storage = request.name,
                        error = chain(&error),
                        "containers keep old files"
                    );
                }
            }
        }
    };
    tokio::select! {
        () = copying => {}
        _ = vm.wait_for(|vm| matches!(vm, Vm::Failed(_) | Vm::Ended { .. })) => {}
    }
}
