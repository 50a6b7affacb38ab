//! The host's side of containers, without mounts: what is attached is remembered.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Mutex;

use async_trait::async_trait;
use containerd_shim_protos::types::mount::Mount;
use shim::hooks::HookPoint;
use shim::id::ContainerId;
use shim::sandbox::host::{ContainerHooks, GuestContainer, HostError, HostSide};

#[derive(Default)]
pub(crate) struct FakeHost {
    attached: Mutex<BTreeSet<ContainerId>>,
}

impl FakeHost {
    /// The containers that have mounts now.
    pub(crate) fn attached(&self) -> Vec<String> {
        self.attached
            .lock()
            .unwrap()
            .iter()
            .map(ContainerId::to_string)
            .collect()
    }
}

#[async_trait]
impl HostSide for FakeHost {
    async fn attach(&self, container: &ContainerId, bundle: &Path, _: &[Mount]) -> Result<GuestContainer, HostError> {
        self.attached.lock().unwrap().insert(container.clone());
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
        self.attached.lock().unwrap().remove(container);
        Ok(())
    }
}
