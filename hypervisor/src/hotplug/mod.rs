//! Devices that are plugged into a running VM, and unplugged.
//!
//! ```text
//!           add-fd, blockdev-add, device_add            device_del, the guest releases it, blockdev-del, remove-fd
//!  (absent) ───────────────────────────────► plugged ────────────────────────────────────────────────► (absent)
//! ```
//! If a step fails, the earlier ones are undone. If QEMU has not answered a step, its outcome is read when QEMU answers
//! again ([`recovery`]); until then its slot counts as taken. The work is a separate task, so a cancelled caller leaves
//! nothing half done. Knows QEMU's names for a device, but not its contents or its users in the guest. Disks are here,
//! network devices in [`nic`].

pub(crate) mod cpu;
mod disk;
pub(crate) mod memory;
mod nic;
mod nic_names;
mod recovery;
mod release;
mod resize;
pub(crate) mod slots;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use self::disk::Names;
use self::release::{ReleaseError, release};
use self::slots::{CAPACITY, Slot, Slots};
use crate::qmp::{Qmp, QmpError};

pub(crate) use self::disk::DiskOptions;
pub use self::disk::{Disk, DiskKind, Sectors};
pub use self::nic::NicHotplug;

/// How long a guest may take to let go of a device. It has to do nothing but to remove the driver.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a device could not be plugged or unplugged.
#[derive(Debug, Clone, thiserror::Error)]
pub enum HotplugError {
    /// QEMU does not give it another size, or has ended.
    #[error("cannot resize disk {disk}")]
    Resize {
        /// The disk's serial number.
        disk: String,
        /// The error that caused it.
        #[source]
        source: QmpError,
    },
    /// All places are taken.
    #[error("all {CAPACITY} places for devices of the VM are taken")]
    Full,
    /// There is no such device.
    #[error("the VM has no {0}")]
    Unknown(String),
    /// QEMU refuses a step, or has ended.
    #[error("cannot {step} {device}")]
    Step {
        /// The failed operation, as the message names it.
        step: &'static str,
        /// What it is, and its name.
        device: String,
        /// The error that caused it.
        #[source]
        source: QmpError,
    },
    /// The guest does not let go of it.
    #[error("the guest has not let go of {device}: {reason}")]
    Held {
        /// What it is, and its name.
        device: String,
        /// What was seen.
        reason: String,
    },
    /// Its files cannot be duplicated for QEMU.
    #[error("cannot duplicate the files of {device} for QEMU")]
    Files {
        /// What it is, and its name.
        device: String,
        /// The error that caused it.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// The task that did the work is gone: the process is ending.
    #[error("interrupted")]
    Interrupted,
}

/// What is plugged into one VM. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Hotplug {
    qmp: Qmp,
    disks: DiskOptions,
    patience: Duration,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    slots: Slots,
    last: u32,
    /// By serial number.
    disks: HashMap<String, (Names, Slot)>,
    /// By QEMU's name.
    nics: HashMap<String, (nic_names::Names, Slot)>,
}

impl Hotplug {
    pub(crate) fn new(qmp: Qmp, disks: DiskOptions) -> Self {
        Self {
            disks,
            patience: qmp.scale().of(RELEASE_TIMEOUT),
            qmp,
            state: Arc::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a place back in which nothing could be plugged.
    fn give_back(&self, slot: Slot) {
        self.state().slots.give_back(slot);
    }

    /// A number that no device had before, and a free place.
    fn place(&self) -> Result<(u32, Slot), HotplugError> {
        let mut state = self.state();
        let slot = state.slots.take().ok_or(HotplugError::Full)?;
        state.last += 1;
        Ok((state.last, slot))
    }

    /// Plugs a disk. The answer is its serial number.
    pub(crate) async fn attach(&self, disk: Disk) -> Result<String, HotplugError> {
        let this = self.clone();
        let work = tokio::spawn(async move { this.plug(disk).await });
        work.await.unwrap_or(Err(HotplugError::Interrupted))
    }

    /// Unplugs it, once the guest has let go of it.
    pub(crate) async fn detach(&self, serial: &str) -> Result<(), HotplugError> {
        let this = self.clone();
        let serial = serial.to_owned();
        let work = tokio::spawn(async move { this.unplug(&serial).await });
        work.await.unwrap_or(Err(HotplugError::Interrupted))
    }

    async fn plug(&self, disk: Disk) -> Result<String, HotplugError> {
        let (number, slot) = self.place()?;
        let names = Names { number };
        match self.plug_in(names, slot, disk).await {
            Ok(()) => {
                self.state().disks.insert(names.serial(), (names, slot));
                Ok(names.serial())
            }
            Err(error) => {
                let close = vec![
                    ("blockdev-del", json!({ "node-name": names.id() })),
                    ("remove-fd", names.add_fd()),
                ];
                self.after_failure(&error, slot, names.id(), close);
                Err(error)
            }
        }
    }

    async fn plug_in(&self, names: Names, slot: Slot, disk: Disk) -> Result<(), HotplugError> {
        let node = names.blockdev_add(&disk, self.disks);
        let other = self
            .disks
            .without_io_uring()
            .map(|options| names.blockdev_add(&disk, options));
        let sectors = disk.sectors;
        let given = self.qmp.execute_with("add-fd", names.add_fd(), disk.file).await;
        given.map_err(failed("hand over the file of", names.said()))?;
        let mut node = self.qmp.execute("blockdev-add", node).await;
        if let (Err(error @ QmpError::Refused { .. }), Some(other)) = (&node, other) {
            tracing::warn!(%error, "QEMU cannot open {} with block_device_aio = \"io_uring\": it has threads", names.said());
            node = self.qmp.execute("blockdev-add", other).await;
        }
        if let Err(error) = node {
            self.undo("remove-fd", names.add_fd()).await;
            return Err(failed("open", names.said())(error));
        }
        let device = self
            .qmp
            .execute("device_add", names.device_add(slot, self.disks.iothread, sectors))
            .await;
        if let Err(error) = device {
            self.undo("blockdev-del", json!({ "node-name": names.id() })).await;
            self.undo("remove-fd", names.add_fd()).await;
            return Err(failed("plug in", names.said())(error));
        }
        Ok(())
    }

    /// What failed first is what is told.
    async fn undo(&self, command: &'static str, arguments: Value) {
        if let Err(error) = self.qmp.execute(command, arguments).await {
            tracing::warn!(%error, "QEMU keeps what is left of a device that could not be plugged in");
        }
    }

    async fn unplug(&self, serial: &str) -> Result<(), HotplugError> {
        let unknown = || HotplugError::Unknown(format!("disk {serial}"));
        let (names, slot) = self.state().disks.get(serial).copied().ok_or_else(unknown)?;
        self.release(&names.id(), names.said()).await?;
        // From here on QEMU alone decides, and it closes the file.
        self.close_node(names).await.map_err(failed("close", names.said()))?;
        let closed = self.close_file(names).await;
        closed.map_err(failed("close the file of", names.said()))?;
        let mut state = self.state();
        state.disks.remove(serial);
        state.slots.give_back(slot);
        Ok(())
    }

    /// Has the guest let go of the device of this name, and waits until it has. `said` is what messages call it.
    async fn release(&self, id: &str, said: String) -> Result<(), HotplugError> {
        match release(&self.qmp, id, self.patience).await {
            Ok(()) => Ok(()),
            Err(ReleaseError::Held(reason)) => Err(HotplugError::Held { device: said, reason }),
            Err(ReleaseError::Qmp(error)) => Err(failed("unplug", said)(error)),
        }
    }
}

fn failed(step: &'static str, device: String) -> impl FnOnce(QmpError) -> HotplugError {
    move |source| HotplugError::Step { step, device, source }
}

#[cfg(test)]
mod tests;
