//! The devices of a running VM: disks, network devices, memory and vCPUs. [`DeviceManager`] is the only one that changes them.
//!
//! ```text
//!            desired                       changes                               actual
//!  table of disks and NICs,   ── transaction: all parts, or none ──►   what QEMU has, and is asked
//!  size asked for             ◄── read back if QEMU has not answered ──
//! ```
//! The manager remembers which disks and network devices there are to be, and in which slot each is. vCPUs and memory it does
//! not remember, but for what the guest has yet to let go of: a change of them begins with what QEMU has. Each change is one [`transaction`]. It is a task of its own, so
//! a cancelled caller leaves nothing half done. If the outcome of a transaction is unknown because QEMU does not answer at
//! all, the slot stays taken, and what may be there is removed when QEMU answers again. Knows QEMU's names for a device, but
//! not its contents or its users in the guest.

mod backend;
pub(crate) mod cpu;
mod disk;
pub(crate) mod memory;
mod nic;
mod nic_names;
mod release;
pub(crate) mod slots;
mod transaction;

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use config::Mebibytes;
use serde_json::json;

use self::cpu::CpuError;
use self::memory::{Memory, MemoryError, Surplus};
use self::release::ReleaseError;
use self::slots::{CAPACITY, Places, Slot};
use self::transaction::{Left, Name, NotAdded, Part, Undo};
use crate::machine::accel::Accel;
use crate::machine::nic::Nic;
use crate::machine::size::Size;
use crate::machine::spec::Backing;
use crate::qmp::{Qmp, QmpError};

pub(crate) use self::backend::Backend;
pub(crate) use self::disk::DiskOptions;
pub use self::disk::{Disk, DiskKind, Sectors};
pub use self::nic::NicHotplug;
#[cfg(any(test, feature = "scripted"))]
pub(crate) use self::release::UNDER_WAY;

/// How long a guest may take to let go of a device. It has to do nothing but to remove the driver.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a device could not be plugged or unplugged.
#[derive(Debug, Clone, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what they are")]
pub enum HotplugError {
    /// QEMU does not give it another size, or has ended.
    #[error("cannot resize disk {disk}")]
    Resize {
        disk: String,
        #[source]
        source: QmpError,
    },
    #[error("all {CAPACITY} places for devices of the VM are taken")]
    Full,
    #[error("the VM has no {0}")]
    Unknown(String),
    /// QEMU refuses a step, or has ended.
    #[error("cannot {step} {device}")]
    Step {
        /// The failed operation, as the message names it.
        step: &'static str,
        device: String,
        #[source]
        source: QmpError,
    },
    /// The guest does not let go of it.
    #[error("the guest has not let go of {device}: {reason}")]
    Held { device: String, reason: String },
    /// Its files cannot be duplicated for QEMU.
    #[error("cannot duplicate the files of {device} for QEMU")]
    Files {
        device: String,
        #[source]
        source: Arc<std::io::Error>,
    },
    /// The task that did the work is gone: the process is ending.
    #[error("interrupted")]
    Interrupted,
}

/// How a VM is made, as far as its devices depend on it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Machine {
    pub(crate) disks: DiskOptions,
    pub(crate) accel: Accel,
    /// On what the guest's memory is.
    pub(crate) backing: Backing,
    pub(crate) size: Size,
    /// The size up to which it can grow.
    pub(crate) largest: Size,
}

/// The devices of one VM. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct DeviceManager {
    qmp: Qmp,
    disks: DiskOptions,
    accel: Accel,
    patience: Duration,
    places: Places,
    /// By serial number of a disk, or QEMU's name of a network device.
    plugged: Arc<Mutex<HashMap<String, Plugged>>>,
    vcpus: Arc<tokio::sync::Mutex<cpu::Vcpus>>,
    late_vcpus: Arc<tokio::sync::Notify>,
    memory: Arc<tokio::sync::Mutex<Memory>>,
}

/// A disk or network device that is there.
#[derive(Debug, Clone)]
struct Plugged {
    said: String,
    slot: Slot,
    parts: Vec<Name>,
}

impl DeviceManager {
    pub(crate) fn new(qmp: Qmp, machine: Machine) -> Self {
        let Machine {
            disks,
            accel,
            backing,
            size,
            largest,
        } = machine;
        let places = Places::default();
        let late_vcpus: Arc<tokio::sync::Notify> = Arc::default();
        let memory = Memory::new(qmp.clone(), places.clone(), size, largest, backing);
        Self {
            disks,
            accel,
            patience: qmp.scale().of(RELEASE_TIMEOUT),
            places,
            plugged: Arc::default(),
            vcpus: Arc::new(tokio::sync::Mutex::new(cpu::Vcpus::new(Arc::clone(&late_vcpus)))),
            late_vcpus,
            memory: Arc::new(tokio::sync::Mutex::new(memory)),
            qmp,
        }
    }

    fn plugged(&self) -> MutexGuard<'_, HashMap<String, Plugged>> {
        self.plugged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Plugs a disk. The answer is its serial number.
    pub(crate) async fn attach_disk(&self, disk: Disk) -> Result<String, HotplugError> {
        let this = self.clone();
        let work = tokio::spawn(async move {
            let (number, slot) = this.places.take().ok_or(HotplugError::Full)?;
            let names = disk::Names { number };
            let parts = names.parts(slot, disk, this.disks);
            this.add(names.serial(), names.said(), slot, parts).await
        });
        work.await.unwrap_or(Err(HotplugError::Interrupted))
    }

    /// Unplugs it, once the guest has let go of it. When it returns QEMU has closed its file.
    pub(crate) async fn detach_disk(&self, serial: &str) -> Result<(), HotplugError> {
        self.detach(serial, "disk").await
    }

    /// Plugs a network device. The answer is its name.
    async fn attach_nic(&self, nic: Nic) -> Result<String, HotplugError> {
        let this = self.clone();
        let work = tokio::spawn(async move {
            let (number, slot) = this.places.take().ok_or(HotplugError::Full)?;
            let names = nic_names::Names { number };
            match names.parts(slot, &nic) {
                Ok(parts) => this.add(names.id(), names.said(), slot, parts).await,
                Err(source) => {
                    this.places.give_back(slot);
                    let (device, source) = (names.said(), Arc::new(source));
                    Err(HotplugError::Files { device, source })
                }
            }
        });
        work.await.unwrap_or(Err(HotplugError::Interrupted))
    }

    /// Unplugs it, once the guest has let go of it. When it returns QEMU has closed its tap.
    async fn detach_nic(&self, id: &str) -> Result<(), HotplugError> {
        self.detach(id, "network device").await
    }

    /// Adds a device of these parts. If that fails, its slot is free again when QEMU has nothing in it.
    async fn add(&self, key: String, said: String, slot: Slot, parts: Vec<Part>) -> Result<String, HotplugError> {
        match transaction::add(&self.qmp, parts, Undo::Removed, self.patience).await {
            Ok(parts) => {
                self.plugged().insert(key.clone(), Plugged { said, slot, parts });
                Ok(key)
            }
            Err(NotAdded { step, source, left, .. }) => {
                match left {
                    Left::Nothing => self.places.give_back(slot),
                    Left::Perhaps(parts) => drop(tokio::spawn(self.clone().recover(slot, parts))),
                }
                let device = said;
                Err(HotplugError::Step { step, device, source })
            }
        }
    }

    async fn detach(&self, key: &str, kind: &'static str) -> Result<(), HotplugError> {
        let (this, key) = (self.clone(), key.to_owned());
        let work = tokio::spawn(async move { this.remove(&key, kind).await });
        work.await.unwrap_or(Err(HotplugError::Interrupted))
    }

    async fn remove(&self, key: &str, kind: &str) -> Result<(), HotplugError> {
        let found = self.plugged().get(key).cloned();
        let plugged = found.ok_or_else(|| HotplugError::Unknown(format!("{kind} {key}")))?;
        let removed = transaction::remove(&self.qmp, &plugged.parts, self.patience).await;
        let device = plugged.said;
        removed.map_err(|(part, error)| match error {
            ReleaseError::Held { reason, .. } => HotplugError::Held { device, reason },
            ReleaseError::Qmp(source) => {
                let step = part.removal();
                HotplugError::Step { step, device, source }
            }
        })?;
        // Another call may have removed it meanwhile, and the slot may be another device's.
        if self.plugged().remove(key).is_some() {
            self.places.give_back(plugged.slot);
        }
        Ok(())
    }

    /// Removes what may be there of a device as soon as QEMU and the guest do their part, and frees its slot when the device is
    /// not in it. Ends with QEMU.
    async fn recover(self, slot: Slot, parts: Vec<Name>) {
        let (mut slot, mut logged) = (Some(slot), false);
        loop {
            let (name, reason) = match transaction::remove(&self.qmp, &parts, self.patience).await {
                Ok(()) => break,
                Err((_, ReleaseError::Qmp(QmpError::Closed))) => return,
                Err((_, ReleaseError::Qmp(QmpError::Timeout { .. }))) => continue,
                Err((name, ReleaseError::Held { reason, .. })) => (name, reason),
                Err((name, ReleaseError::Qmp(error))) => (name, error.to_string()),
            };
            if !std::mem::replace(&mut logged, true) {
                tracing::warn!(
                    reason,
                    ?name,
                    "what is left of a device that came too late stays for now"
                );
            }
            // Parts are removed from the last on: the device is gone if another part is what stays.
            if !matches!(name, Name::Device(_))
                && let Some(slot) = slot.take()
            {
                self.places.give_back(slot);
            }
            tokio::time::sleep(self.patience).await;
        }
        if let Some(slot) = slot {
            self.places.give_back(slot);
        }
    }

    /// Tells QEMU, and through QEMU the guest, that a disk has so many bytes. QEMU enlarges an image, and cuts one off that is
    /// larger: that is the caller's to bar. A block device must have the size already: QEMU only reads it again.
    pub(crate) async fn resize_disk(&self, serial: &str, bytes: u64) -> Result<(), HotplugError> {
        let disk = || serial.to_owned();
        let found = self.plugged().get(serial).cloned();
        let plugged = found.ok_or_else(|| HotplugError::Unknown(disk()))?;
        let node = plugged.parts.iter().find_map(|part| match part {
            Name::Node(name) => Some(name.clone()),
            _ => None,
        });
        let arguments = json!({ "node-name": node, "size": bytes });
        let resized = self.qmp.execute("block_resize", arguments).await;
        resized
            .map(drop)
            .map_err(|source| HotplugError::Resize { disk: disk(), source })
    }

    /// Gives the VM so many vCPUs.
    pub(crate) async fn set_vcpus(&self, count: NonZeroU32) -> Result<(), CpuError> {
        cpu::set_whole(self.qmp.clone(), self.accel, count, Arc::clone(&self.vcpus)).await
    }

    /// Waits until vCPUs have been added that the VM lacked because the guest kept others. One task may wait; nothing is lost meanwhile.
    pub(crate) async fn vcpus_came_late(&self) {
        self.late_vcpus.notified().await;
    }

    /// Asks the guest to have so much memory in all. The answer is what it has beyond.
    pub(crate) async fn set_memory(&self, memory: Mebibytes) -> Result<Mebibytes, MemoryError> {
        self.memory.lock().await.set(memory).await
    }

    /// By which it is seen what the guest has yet to give back.
    pub(crate) async fn surplus(&self) -> Surplus {
        self.memory.lock().await.surplus()
    }
}

#[cfg(test)]
mod tests;
