//! What QEMU is told of a network device that is plugged in, by which names.

use serde_json::{Value, json};

use super::slots::{BUS, Slot};
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
