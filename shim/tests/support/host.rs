//! The host's side of containers, without mounts: what is attached is remembered.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use containerd_shim_protos::types::mount::Mount;
use node::hooks::HookPoint;
use node::sizing::Limits;
use node::volumes::Volumes;
use node::volumes::disk::HostDisk;
use protocol::agent::BlockDevice;
use shim::id::ContainerId;
use shim::sandbox::host::{ContainerHooks, GuestContainer, HostError, HostSide};
use tokio::sync::watch;

#[derive(Default)]
pub(crate) struct FakeHost {
    attached: watch::Sender<BTreeSet<ContainerId>>,
    /// How often somebody wanted to know whether a container asks Docker's name server.
    pub(crate) names_asked: AtomicUsize,
}

impl FakeHost {
    pub(crate) fn attached(&self) -> Vec<String> {
        self.attached.borrow().iter().map(ContainerId::to_string).collect()
    }

    pub(crate) async fn attaches(&self) {
        let mut attached = self.attached.subscribe();
        attached.wait_for(|attached| !attached.is_empty()).await.unwrap();
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
        if String::from_utf8_lossy(&spec).contains("silent") {
            return std::future::pending().await;
        }
        let limits = limits(&spec)?;
        let resolv_conf = String::from_utf8_lossy(&spec)
            .contains("resolver")
            .then(|| bundle.join("resolv.conf"));
        Ok(GuestContainer {
            volumes: volumes(&spec)?,
            spec,
            join_namespaces: Default::default(),
            network_of: None,
            hooks: None,
            memlock: Default::default(),
            inherited: Default::default(),
            sockets: Vec::new(),
            resolv_conf,
            limits,
            covers: Vec::new(),
        })
    }

    async fn asks_docker(&self, _: &Path) -> bool {
        self.names_asked.fetch_add(1, Ordering::SeqCst);
        false
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

fn limits(spec: &[u8]) -> Result<Limits, HostError> {
    let spec: serde_json::Value = serde_json::from_slice(spec).map_err(|error| HostError::Spec(Box::new(error)))?;
    let resources = &spec["linux"]["resources"];
    let resources = serde_json::from_value(resources.clone()).unwrap_or_default();
    Ok(Limits::of(&resources))
}

/// The images that a test's bundle names as `disks`, each a device of the container.
fn volumes(spec: &[u8]) -> Result<Volumes, HostError> {
    let spec: serde_json::Value = serde_json::from_slice(spec).map_err(|error| HostError::Spec(Box::new(error)))?;
    let mut volumes = Volumes::default();
    for image in spec["disks"].as_array().into_iter().flatten() {
        let path = image["image"].as_str().unwrap();
        let read_only = image["readOnly"].as_bool().unwrap_or(false);
        let handle = std::fs::File::open(path).unwrap();
        let disk = HostDisk::of(handle.into(), Path::new(path), read_only);
        volumes
            .disks
            .push(disk.map_err(|error| HostError::Spec(Box::new(error)))?);
        let device = BlockDevice {
            path: "/dev/disk".to_owned(),
            ..Default::default()
        };
        volumes.devices.push((device, volumes.disks.len() - 1));
    }
    Ok(volumes)
}
