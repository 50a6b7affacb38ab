//! Memory for containers without a memory limit, as they need it (docs/sizing.md).
//!
//! ```text
//! agent: the containers come near to what there is ─ScaleMemory─► counted, at most default_memory_limit ─► the VM grows ─► answer
//! agent: they have needed less for a while         ─ScaleMemory─► counted                               ─► the VM shrinks, nobody waits
//! ```
//! The guest decides when it asks; the configuration limits how much it gets. A request is one number, and one request is carried out
//! at a time, so a guest that asks without end keeps only one task of the shim busy.

use std::sync::Arc;

use base::chain;
use config::Mebibytes;
use guest::warn_rate_limited;
use hypervisor::MemoryError;
use protocol::agent::MemoryGranted;
use tokio::sync::mpsc;

use crate::sandbox::Sandbox;
use crate::sandbox::connections::host_service::Demand;

impl Sandbox {
    /// Carries out what the guest asks for, one demand after the other, until its connection is gone.
    pub(in crate::sandbox) async fn follow_demands(self: Arc<Self>, mut demands: mpsc::Receiver<Demand>) {
        while let Some(Demand { extra, answer }) = demands.recv().await {
            let granted = self.scale(extra).await.map_err(|error| {
                let error = chain(&error);
                warn_rate_limited!(sandbox = %self.id, extra = %extra, error, "the VM does not get the memory that its containers need");
                error
            });
            // The guest may be gone: then so is its need.
            let _ = answer.send(granted);
        }
    }

    async fn scale(self: &Arc<Self>, extra: Mebibytes) -> Result<MemoryGranted, MemoryError> {
        let (extra, most) = self.sizes.count_extra(extra);
        let granted = MemoryGranted {
            extra_bytes: extra.bytes(),
            most_bytes: most.bytes(),
            ..MemoryGranted::default()
        };
        let Some(vm) = self.running_vm() else {
            return Ok(granted);
        };
        let mut target = self.sizes.turn().await;
        let wanted = self.sizes.wanted().size;
        if wanted.memory <= target.confirmed.memory {
            if wanted.memory < target.vm.memory || target.beyond.0 > 0 {
                // Whoever waited for that has given up its turn.
                self.shrink_to_target();
            }
            return Ok(granted);
        }
        if let Some(host) = self.sizes.host(wanted) {
            vm.raise_host(host).await;
        }
        let before = target.confirmed.memory;
        // Also if it fails: what the guest was told, it may still do.
        target.vm.memory = wanted.memory;
        match vm.set_memory(wanted.memory).await {
            Ok(beyond) => {
                target.beyond = beyond;
                target.confirmed.memory = wanted.memory;
            }
            Err(error) => {
                self.sizes
                    .count_extra(Mebibytes(extra.0.saturating_sub(wanted.memory.0 - before.0)));
                self.shrink_to_target();
                return Err(error);
            }
        }
        tracing::debug!(sandbox = %self.id, memory = %wanted.memory, "the VM has more memory for containers without a limit");
        if target.beyond.0 > 0 {
            self.shrink_to_target();
        }
        Ok(granted)
    }
}
