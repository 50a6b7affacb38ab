//! The host's side of containers, without mounts: what is attached is remembered.

use std::collections::BTreeSet;
use std::path::Path;

use async_trait::async_trait;
use containerd_shim_protos::types::mount::Mount;
use shim::hooks::HookPoint;
use shim::id::ContainerId;
use shim::sandbox::host::{ContainerHooks, GuestContainer, HostError, HostSide};
use tokio::sync::watch;

#[derive(Default)]
pub(crate) struct FakeHost {
    attached: watch::Sender<BTreeSet<ContainerId>>,
}

impl FakeHost {
    /// The containers that have mounts now.
    pub(crate) fn attached(&self) -> Vec<String> {
        self.attached.borrow().iter().map(ContainerId::to_string).collect()
    }

    /// Waits until nothing is attached any more.
    pub(crate) async fn detached(&self) {
        let mut attached = self.attached.subscribe();
        attached.wait_for(BTreeSet::is_empty).await.unwrap();
    }
}

#[async_trait]
impl HostSide for FakeHost {
    async fn attach(&self, container: &ContainerId, bundle: &Path, _: &[Mount]) -> Result<GuestContainer, HostError> {
        self.attached.send_modify(|attached| {
            attached.insert(container.clone());
        });
        let spec = std::fs::read(bundle.join("config.json")).map_err(|error| HostError::Spec(Box::new(error)))?;
        if String::from_utf8_lossy(&spec).contains("unmountable") {
            return Err(HostError::Other("cannot mount /nowhere".into()));
        }
        Ok(GuestContainer {
            spec,
            join_namespaces: Default::default(),
            hooks: None,
        })
    }

    async fn run_hooks(&self, _: &ContainerHooks, _: HookPoint, _: u32) -> Result<(), HostError> {
        Ok(())
    }

    async fn detach(&self, container: &ContainerId) -> Result<(), HostError> {
        self.attached.send_modify(|attached| {
            attached.remove(container);
        });
        Ok(())
    }
}
