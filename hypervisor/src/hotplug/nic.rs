//! Network devices that are plugged in: the steps.
//!
//! ```text
//!           getfd…, netdev_add, device_add            device_del, the guest releases it, netdev_del
//!  (absent) ──────────────────────────────► plugged ─────────────────────────────────────────────► (absent)
//! ```
//! Afterwards only QEMU has the tap's files: the tap ends with the device.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use serde_json::json;

use super::nic_names::Names;
use super::slots::Slot;
use super::{Hotplug, HotplugError, failed};
use crate::machine::nic::Nic;

/// Plugs network devices into one VM. Clones share it.
#[derive(Debug, Clone)]
pub struct NicHotplug(pub(crate) Hotplug);

impl NicHotplug {
    /// Plugs a device. The answer is its name. The guest finds it later, by its MAC address.
    ///
    /// # Errors
    /// All places are taken, or QEMU refuses it; nothing is left of it then.
    pub async fn attach(&self, nic: Nic) -> Result<String, HotplugError> {
        let hotplug = self.0.clone();
        let work = tokio::spawn(async move { hotplug.plug_nic(nic).await });
        work.await.unwrap_or(Err(HotplugError::Interrupted))
    }

    /// Unplugs it. When it returns QEMU has closed its tap.
    ///
    /// # Errors
    /// There is no such device, or the guest has not let go of it within ten seconds: it stays plugged in, and this may be
    /// called again.
    pub async fn detach(&self, id: &str) -> Result<(), HotplugError> {
        let (hotplug, id) = (self.0.clone(), id.to_owned());
        let work = tokio::spawn(async move { hotplug.unplug_nic(&id).await });
        work.await.unwrap_or(Err(HotplugError::Interrupted))
    }
}

impl Hotplug {
    async fn plug_nic(&self, nic: Nic) -> Result<String, HotplugError> {
        let (number, slot) = self.place()?;
        let names = Names { number };
        match self.plug_nic_in(names, slot, &nic).await {
            Ok(()) => {
                self.state().nics.insert(names.id(), (names, slot));
                Ok(names.id())
            }
            Err(error) => {
                let close = vec![("netdev_del", json!({ "id": names.netdev() }))];
                self.after_failure(&error, slot, names.id(), close);
                Err(error)
            }
        }
    }

    async fn plug_nic_in(&self, names: Names, slot: Slot, nic: &Nic) -> Result<(), HotplugError> {
        let (taps, vhost) = (
            names.files("tap", nic.taps.len()),
            names.files("vhost", nic.vhost.len()),
        );
        let files: Vec<(&String, &OwnedFd)> = taps
            .iter()
            .zip(&*nic.taps)
            .chain(vhost.iter().zip(&*nic.vhost))
            .collect();
        if let Err(error) = self.hand_over(names, &files).await {
            self.take_back(&files).await;
            return Err(error);
        }
        let netdev = self.qmp.execute("netdev_add", names.netdev_add(&taps, &vhost)).await;
        if let Err(error) = netdev {
            self.take_back(&files).await;
            return Err(failed("open", names.said())(error));
        }
        let device = self.qmp.execute("device_add", names.device_add(slot, nic)).await;
        if let Err(error) = device {
            self.undo("netdev_del", json!({ "id": names.netdev() })).await;
            return Err(failed("plug in", names.said())(error));
        }
        Ok(())
    }

    async fn hand_over(&self, names: Names, files: &[(&String, &OwnedFd)]) -> Result<(), HotplugError> {
        for (name, file) in files {
            let copy = file.try_clone().map_err(|source| HotplugError::Files {
                device: names.said(),
                source: Arc::new(source),
            })?;
            let given = self.qmp.execute_with("getfd", json!({ "fdname": name }), copy).await;
            given.map_err(failed("hand over the files of", names.said()))?;
        }
        Ok(())
    }

    /// QEMU has taken some of them, or closed them, before it refused.
    async fn take_back(&self, files: &[(&String, &OwnedFd)]) {
        for (name, _) in files {
            let closed = self.qmp.execute("closefd", json!({ "fdname": name })).await;
            if let Err(error) = closed {
                tracing::debug!(%error, name, "QEMU does not have the file any more");
            }
        }
    }

    async fn unplug_nic(&self, id: &str) -> Result<(), HotplugError> {
        let unknown = || HotplugError::Unknown(format!("network device {id}"));
        let (names, slot) = self.state().nics.get(id).copied().ok_or_else(unknown)?;
        self.release(id, names.said()).await?;
        // From here on QEMU alone decides, and it closes the tap.
        let closed = self.close_netdev(&names.netdev()).await;
        closed.map_err(failed("close", names.said()))?;
        let mut state = self.state();
        state.nics.remove(id);
        state.slots.give_back(slot);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hotplug::slots::Slots;
    use crate::machine::mac_address::MacAddress;

    fn nic(queues: usize) -> Nic {
        let file = || std::fs::File::open("/dev/null").unwrap().into();
        Nic {
            mac: MacAddress([2, 0, 0, 0, 0, 7]),
            taps: (0..queues).map(|_| file()).collect(),
            vhost: Arc::new([]),
        }
    }

    #[test]
    fn a_device_with_one_queue_has_one_file() {
        let (names, slot) = (Names { number: 3 }, Slots::default().take().unwrap());
        assert_eq!(
            names.netdev_add(&names.files("tap", 1), &[]),
            json!({ "type": "tap", "id": "net-3", "fd": "tap-3-0" })
        );
        assert_eq!(
            names.device_add(slot, &nic(1)),
            json!({
                "driver": "virtio-net-pci", "id": "nic-3", "bus": "hotplug", "addr": "0x1", "netdev": "net-3",
                "mac": "02:00:00:00:00:07", "romfile": "", "disable-legacy": "on",
            })
        );
    }

    #[test]
    fn a_device_with_two_queues_has_two_files_of_each_kind_and_six_vectors() {
        let (names, slot) = (Names { number: 3 }, Slots::default().take().unwrap());
        assert_eq!(
            names.netdev_add(&names.files("tap", 2), &names.files("vhost", 2)),
            json!({
                "type": "tap", "id": "net-3", "fds": "tap-3-0:tap-3-1", "vhost": true, "vhostfds": "vhost-3-0:vhost-3-1",
            })
        );
        let device = names.device_add(slot, &nic(2));
        assert_eq!((&device["mq"], &device["vectors"]), (&json!(true), &json!(6)));
    }
}
