//! The slots for devices that are plugged into a running VM: those of one PCI bridge (docs/decisions/0009).
//!
//! A caller takes a slot here before it plugs a device, so that two devices never get the same one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The bridge's bus in QEMU.
pub(crate) const BUS: &str = "hotplug";

/// The bridge as QEMU's argument.
///
/// Hot-plugged devices are announced by ACPI, so the bridge needs no controller of its own (`shpc`). The firmware gives a
/// bridge without one no address space for devices that come later unless it is told how much: 64 KiB of each kind would
/// do for the 4 KiB and 16 KiB that a virtio device asks for, but less than 1 MiB cannot be told apart by a bridge.
pub(crate) const BRIDGE: &str =
    "pci-bridge,id=hotplug,chassis_nr=1,shpc=off,io-reserve=0,mem-reserve=2M,pref64-reserve=2M";

/// How many devices can be plugged at a time: a conventional bus has 32 numbers, and 0 is the bridge's own where it has a
/// controller.
pub(crate) const CAPACITY: u32 = 31;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot(u32);

impl Slot {
    /// As QEMU's property `addr`.
    pub(crate) fn address(self) -> String {
        format!("{:#x}", self.0)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Slots {
    taken: u32,
}

impl Slots {
    /// The first free one.
    pub(crate) fn take(&mut self) -> Option<Slot> {
        let slot = (1..=CAPACITY).find(|slot| self.taken & (1 << slot) == 0)?;
        self.taken |= 1 << slot;
        Some(Slot(slot))
    }

    pub(crate) fn give_back(&mut self, slot: Slot) {
        self.taken &= !(1 << slot.0);
    }
}

/// The slots of one VM, and the numbers of its devices. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Places(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    slots: Slots,
    last: u32,
}

impl Places {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number that no device had before, and a free slot, if there is one.
    pub(crate) fn take(&self) -> Option<(u32, Slot)> {
        let mut state = self.state();
        let slot = state.slots.take()?;
        state.last += 1;
        Some((state.last, slot))
    }

    /// Gives a slot back in which QEMU has nothing.
    pub(crate) fn give_back(&self, slot: Slot) {
        self.state().slots.give_back(slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_place_is_given_once_and_again_after_it_came_back() {
        let mut slots = Slots::default();
        let all: Vec<Slot> = std::iter::from_fn(|| slots.take()).collect();
        assert_eq!(all.len(), 31);
        assert_eq!(all[0].address(), "0x1");
        assert_eq!(all[30].address(), "0x1f");
        slots.give_back(all[4]);
        assert_eq!(slots.take(), Some(all[4]));
        assert_eq!(slots.take(), None);
    }
}
