//! What QEMU is told of a network device that is plugged in, by which names.

use std::io;

use serde_json::{Value, json};

use super::slots::{BUS, Slot};
use super::transaction::{Command, Name, Part};
use crate::machine::nic::Nic;

/// One device's names in QEMU. The number is never used again in a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Names {
    pub(super) number: u32,
}

impl Names {
    /// Of the device. Those that are there when the VM boots have no dash.
    pub(super) fn id(self) -> String {
        format!("nic-{}", self.number)
    }

    pub(super) fn said(self) -> String {
        format!("network device {}", self.id())
    }

    pub(super) fn netdev(self) -> String {
        format!("net-{}", self.number)
    }

    /// Of the files, one for each queue. QEMU takes a name that begins with a digit for a number.
    pub(super) fn files(self, kind: &str, count: usize) -> Vec<String> {
        let name = |queue| format!("{kind}-{}-{queue}", self.number);
        (0..count).map(name).collect()
    }

    /// The device in QEMU, part by part. QEMU takes the files with the back end.
    pub(super) fn parts(self, slot: Slot, nic: &Nic) -> io::Result<Vec<Part>> {
        let taps = self.files("tap", nic.taps.len());
        let vhost = self.files("vhost", nic.vhost.len());
        let files = taps.iter().zip(&*nic.taps).chain(vhost.iter().zip(&*nic.vhost));
        let mut parts = Vec::new();
        for (name, file) in files {
            let (step, arguments) = ("hand over the files of", json!({ "fdname": name }));
            let command = Command::with_file(step, "getfd", arguments, file.try_clone()?);
            parts.push(Part::new(Name::File(name.clone()), command));
        }
        let open = Command::new("open", "netdev_add", self.netdev_add(&taps, &vhost));
        let plug = Command::new("plug in", "device_add", self.device_add(slot, nic));
        parts.push(Part::new(Name::Netdev(self.netdev()), open).takes_files());
        parts.push(Part::new(Name::Device(self.id()), plug));
        Ok(parts)
    }

    /// QEMU's QAPI, `NetdevTapOptions`: several files are one text, colons between them.
    pub(super) fn netdev_add(self, taps: &[String], vhost: &[String]) -> Value {
        let key = |one: &'static str, many: &'static str| if taps.len() > 1 { many } else { one };
        let mut netdev = json!({ "type": "tap", "id": self.netdev() });
        netdev[key("fd", "fds")] = json!(taps.join(":"));
        if !vhost.is_empty() {
            netdev["vhost"] = json!(true);
            netdev[key("vhostfd", "vhostfds")] = json!(vhost.join(":"));
        }
        netdev
    }

    /// As at the boot: without an option ROM, and with two vectors for each queue and two more.
    pub(super) fn device_add(self, slot: Slot, nic: &Nic) -> Value {
        let mut device = json!({
            "driver": "virtio-net-pci",
            "id": self.id(),
            "bus": BUS,
            "addr": slot.address(),
            "netdev": self.netdev(),
            "mac": nic.mac.to_string(),
            "romfile": "",
            // The guest's kernel speaks virtio 1 alone; a legacy device would want I/O ports.
            "disable-legacy": "on",
        });
        if nic.taps.len() > 1 {
            device["mq"] = json!(true);
            device["vectors"] = json!(2 * nic.taps.len() + 2);
        }
        device
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

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
