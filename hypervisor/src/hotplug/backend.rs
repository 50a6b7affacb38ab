//! The devices that lead out of a VM which begins as a copy of a saved one: share and vsock, which other VMs have from their boot on.
//!
//! They are never unplugged, so their places are never given back.

use std::os::fd::OwnedFd;

use serde_json::{Value, json};

use super::slots::{BUS, Slot};
use super::{DeviceManager, HotplugError};
use crate::machine::vsock::Cid;

/// One of them, with the other end of it.
#[derive(Debug)]
pub(crate) enum Backend {
    /// Connected to virtiofsd.
    Share {
        socket: OwnedFd,
        tag: String,
        queue_size: u16,
    },
    /// Connected to the vsock daemon.
    VhostUser { socket: OwnedFd },
    /// The kernel's, with the CID that is set on it.
    Vhost { device: OwnedFd, cid: Cid },
}

impl Backend {
    /// As at the boot. QEMU's name of it, and of what it is made of.
    fn id(&self) -> &'static str {
        match self {
            Backend::Share { .. } => "share",
            Backend::VhostUser { .. } | Backend::Vhost { .. } => "vsock",
        }
    }

    fn device_add(&self, slot: Slot) -> Value {
        let id = self.id();
        let mut device = json!({ "id": id, "bus": BUS, "addr": slot.address() });
        match self {
            Backend::Share { tag, queue_size, .. } => {
                device["driver"] = json!("vhost-user-fs-pci");
                device["chardev"] = json!(id);
                device["tag"] = json!(tag);
                device["queue-size"] = json!(queue_size);
            }
            Backend::VhostUser { .. } => {
                device["driver"] = json!("vhost-user-vsock-pci");
                device["chardev"] = json!(id);
            }
            Backend::Vhost { cid, .. } => {
                device["driver"] = json!("vhost-vsock-pci");
                device["guest-cid"] = json!(cid.number());
                device["vhostfd"] = json!(id);
            }
        }
        device
    }
}

impl DeviceManager {
    /// Plugs it in. What QEMU refuses ends the VM: there is nothing to be undone.
    pub(crate) async fn plug_backend(&self, backend: Backend) -> Result<(), HotplugError> {
        let (_, slot) = self.places.take().ok_or(HotplugError::Full)?;
        let (id, device) = (backend.id(), backend.device_add(slot));
        let failed = |step| {
            move |source| HotplugError::Step {
                step,
                device: id.to_owned(),
                source,
            }
        };
        let is_socket = !matches!(backend, Backend::Vhost { .. });
        let (Backend::Share { socket: file, .. }
        | Backend::VhostUser { socket: file }
        | Backend::Vhost { device: file, .. }) = backend;
        let given = self.qmp.execute_with("getfd", json!({ "fdname": id }), file).await;
        given.map_err(failed("hand over the other end of"))?;
        if is_socket {
            let address = json!({ "type": "fd", "data": { "str": id } });
            let socket = json!({ "type": "socket", "data": { "addr": address, "server": false } });
            let added = self
                .qmp
                .execute("chardev-add", json!({ "id": id, "backend": socket }))
                .await;
            added.map_err(failed("connect"))?;
        }
        let plugged = self.qmp.execute("device_add", device).await;
        plugged.map(drop).map_err(failed("plug in"))
    }
}
