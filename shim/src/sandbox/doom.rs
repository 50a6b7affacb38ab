//! What SIGKILL does not end: a process that waits in the kernel for what never answers, a virtiofsd that hangs for example.
//!
//! containerd waits for the exit of what it has killed, without a limit. So the VM is ended where nobody is left in it for
//! whom it would have to go on.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::process::Phase;
use super::{Container, Sandbox, Slot};

/// How many times the sandbox's patience a process may take to die of SIGKILL: freeing much memory takes its time. As often it
/// is asked again whether anybody needs the VM.
const DEATH: u32 = 3;

impl Sandbox {
    /// Sees to it that a container to which SIGKILL was sent comes to its end.
    pub(super) fn see_to_end(self: &Arc<Self>, container: Arc<Container>) {
        if container.doomed.swap(true, Ordering::AcqRel) {
            return;
        }
        let sandbox = Arc::clone(self);
        tokio::spawn(async move {
            let (name, limit) = (&container.init.name, sandbox.patience * DEATH);
            let reason = format!("{name} did not die of SIGKILL within {limit:?}: it waits for what does not answer");
            let mut told = false;
            while tokio::time::timeout(limit, container.init.stopped()).await.is_err() {
                if sandbox.nobody_goes_on() {
                    return sandbox.give_up(reason).await;
                }
                if !std::mem::replace(&mut told, true) {
                    tracing::error!(container = %container.id, "{reason}; the VM goes on for the other containers");
                }
            }
        });
    }

    /// Whether every container has ended or has been sent SIGKILL. The sandbox's own, if there are others, does nothing by
    /// itself and does not count.
    fn nobody_goes_on(&self) -> bool {
        let slots = self.slots();
        let others = slots.keys().any(|id| id.as_str() != self.id.as_str());
        slots
            .iter()
            .filter(|(id, _)| !others || id.as_str() != self.id.as_str())
            .all(|(_, slot)| match slot {
                Slot::Creating(_) => false,
                Slot::Ready(container) => {
                    container.doomed.load(Ordering::Acquire) || matches!(container.init.phase(), Phase::Stopped(_))
                }
            })
    }
}
