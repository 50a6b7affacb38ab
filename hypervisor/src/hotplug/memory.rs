//! Memory that is plugged and unplugged: one virtio-mem device, created when memory is first requested
//! (docs/decisions/0015).
//!
//! The guest decides when it takes and gives back memory. Taking is waited for as long as there is progress. Memory that
//! is still to be given back is reported as [`Surplus`], which changes whenever the guest gives some back.

use std::sync::Arc;
use std::time::Duration;

use config::Mebibytes;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::sync::broadcast::error::RecvError;

use super::release::{ReleaseError, exists};
use super::slots::{BUS, Places, Slot};
use super::transaction::{self, Command, Left, Name, NotAdded, Part, Undo};
use crate::machine::size::Size;
use crate::machine::spec::Backing;
use crate::qmp::{Event, Qmp, QmpError};

/// QEMU's names of the memory and of the device.
const BACKEND: &str = "plugged-memory";
const DEVICE: &str = "plugged-memory-device";

/// The guest takes and gives back memory in pieces of a page block, of 2 or 4 MiB.
const GRANULE: u32 = 4;

/// How long the guest may take without getting on. A piece is at most one memory block, 128 MiB.
const PATIENCE: Duration = Duration::from_secs(15);

/// Why the VM has not the memory that it was to have.
#[derive(Debug, Clone, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what they are")]
pub enum MemoryError {
    /// QEMU refuses a step, or has ended.
    #[error("cannot {step}")]
    Step {
        /// The failed operation, as the message names it.
        step: &'static str,
        #[source]
        source: QmpError,
    },
    /// More than what the VM was started for.
    #[error("the VM can have {most}, and not {wanted}")]
    TooMuch { wanted: Mebibytes, most: Mebibytes },
    /// There is no place for the device.
    #[error("all places for devices of the VM are taken")]
    Full,
    /// The task that did the work is gone: the process is ending.
    #[error("interrupted")]
    Interrupted,
    #[error("the guest has {has} of plugged memory and was asked to have {asked}")]
    Stuck { has: Mebibytes, asked: Mebibytes },
}

/// The memory that a VM has when it is asked to have `wanted`: pieces are plugged, as many as there is room for.
#[must_use]
pub fn plugged(boot: Mebibytes, most: Mebibytes, wanted: Mebibytes) -> Mebibytes {
    let more = pieces(boot, wanted).min(room(boot, most));
    Mebibytes(boot.0.saturating_add(more.0))
}

/// What is plugged so that there is so much in all.
fn pieces(boot: Mebibytes, wanted: Mebibytes) -> Mebibytes {
    Mebibytes(wanted.0.saturating_sub(boot.0).next_multiple_of(GRANULE))
}

/// What can be plugged.
fn room(boot: Mebibytes, most: Mebibytes) -> Mebibytes {
    let room = most.0.saturating_sub(boot.0);
    Mebibytes(room - room % GRANULE)
}

fn failed(step: &'static str) -> impl FnOnce(QmpError) -> MemoryError {
    move |source| MemoryError::Step { step, source }
}

#[derive(Debug)]
pub(crate) struct Memory {
    qmp: Qmp,
    boot: Mebibytes,
    most: Mebibytes,
    patience: Duration,
    /// Changed in a task of its own: a caller that gives up leaves nothing half done.
    device: Arc<Mutex<Device>>,
}

impl Memory {
    pub(crate) fn new(qmp: Qmp, places: Places, boot: Size, largest: Size, backing: Backing) -> Self {
        let device = Device {
            qmp: qmp.clone(),
            places,
            room: room(boot.memory, largest.memory),
            backing,
            patience: qmp.scale().of(PATIENCE),
            state: DeviceState::Absent,
        };
        Self {
            boot: boot.memory,
            most: largest.memory,
            patience: qmp.scale().of(PATIENCE),
            qmp,
            device: Arc::new(Mutex::new(device)),
        }
    }

    /// Asks the guest to have so much memory in all, never less than what it booted with. Returns when it has taken what it
    /// lacked. The answer is what it has beyond.
    pub(crate) async fn set(&mut self, wanted: Mebibytes) -> Result<Mebibytes, MemoryError> {
        if wanted > self.most {
            let most = self.most;
            return Err(MemoryError::TooMuch { wanted, most });
        }
        let more = pieces(self.boot, wanted);
        // Before the command: the event may be there before its answer.
        let mut events = self.qmp.events();
        let device = Arc::clone(&self.device).lock_owned();
        let asking = tokio::spawn(async move { device.await.ask(more).await });
        let Some(more) = asking.await.unwrap_or(Err(MemoryError::Interrupted))? else {
            return Ok(Mebibytes(0));
        };
        loop {
            let has = self.has().await?;
            if let Some(beyond) = has.checked_sub(more.bytes()) {
                return Ok(mebibytes(beyond));
            }
            let changed = tokio::select! {
                changed = tokio::time::timeout(self.patience, changed(&mut events)) => changed,
                _ = self.qmp.closed() => Ok(Err(QmpError::Closed)),
            };
            match changed {
                Ok(result) => result.map_err(failed("wait for the guest"))?,
                // The event may be late (QEMU sends one a second), but not so late.
                Err(_) if self.has().await? == has => {
                    let has = mebibytes(has);
                    return Err(MemoryError::Stuck { has, asked: more });
                }
                Err(_) => {}
            }
        }
    }

    async fn has(&self) -> Result<u64, MemoryError> {
        bytes(&self.qmp, "size").await
    }

    /// By which it is seen what the guest has yet to give back. May outlive this, and what it is used for does not hold up changes.
    pub(crate) fn surplus(&self) -> Surplus {
        Surplus(self.qmp.clone())
    }
}

#[derive(Debug, Clone, Copy)]
enum DeviceState {
    /// Neither it nor its memory is there.
    Absent,
    Present,
    /// QEMU does not answer: it may be there, in this slot, or its memory alone.
    Unknown(Slot),
}

/// The device, and how it is made.
#[derive(Debug)]
struct Device {
    qmp: Qmp,
    places: Places,
    /// What can be plugged.
    room: Mebibytes,
    backing: Backing,
    /// How long the guest may take to let go of a device that was not to come.
    patience: Duration,
    state: DeviceState,
}

impl Device {
    /// Asks the guest to have so much of it, or of what there is room for. The answer is how much; none if there is no device
    /// and none is needed.
    async fn ask(&mut self, more: Mebibytes) -> Result<Option<Mebibytes>, MemoryError> {
        let more = more.min(self.room);
        if let DeviceState::Unknown(slot) = self.state {
            self.look(slot).await?;
        }
        if matches!(self.state, DeviceState::Present) {
            self.request(more).await?;
        } else if more.0 > 0 {
            self.plug(more).await?;
        } else {
            return Ok(None);
        }
        Ok(Some(more))
    }

    /// Asks the guest for another amount. If QEMU has not answered, what it has decides.
    async fn request(&self, more: Mebibytes) -> Result<(), MemoryError> {
        let request = json!({ "path": path(), "property": "requested-size", "value": more.bytes() });
        let Err(error) = self.qmp.execute("qom-set", request).await else {
            return Ok(());
        };
        let unanswered = matches!(error, QmpError::Timeout { .. });
        if unanswered
            && bytes(&self.qmp, "requested-size")
                .await
                .is_ok_and(|bytes| bytes == more.bytes())
        {
            return Ok(());
        }
        Err(failed("ask the guest for another amount of memory")(error))
    }

    /// Learns from QEMU what it has of the device. It has done all that it was told before when it answers.
    async fn look(&mut self, slot: Slot) -> Result<(), MemoryError> {
        let there = exists(&self.qmp, DEVICE).await;
        if there.map_err(failed("ask whether memory has been plugged in"))? {
            self.state = DeviceState::Present;
            return Ok(());
        }
        let backend = [Name::Object(BACKEND.to_owned())];
        match transaction::remove(&self.qmp, &backend, self.patience).await {
            Ok(()) => {
                self.is_absent(slot);
                Ok(())
            }
            Err((_, ReleaseError::Qmp(error))) => Err(failed("remove memory that is not plugged in")(error)),
            // No guest holds an object.
            Err((_, ReleaseError::Held { .. })) => Ok(()),
        }
    }

    async fn plug(&mut self, more: Mebibytes) -> Result<(), MemoryError> {
        let (_, slot) = self.places.take().ok_or(MemoryError::Full)?;
        self.state = DeviceState::Unknown(slot);
        let backend = backend(self.room, self.backing);
        let step = "make the memory that is to be plugged in";
        let backend = Part::new(
            Name::Object(BACKEND.to_owned()),
            Command::new(step, "object-add", backend),
        );
        let device = device(slot, more, self.backing);
        let device = Command::new("plug in memory", "device_add", device);
        let device = Part::new(Name::Device(DEVICE.to_owned()), device);
        match transaction::add(&self.qmp, vec![backend, device], Undo::Removed, self.patience).await {
            Ok(_) => {
                self.state = DeviceState::Present;
                Ok(())
            }
            Err(NotAdded { step, source, left, .. }) => {
                if matches!(left, Left::Nothing) {
                    self.is_absent(slot);
                }
                Err(failed(step)(source))
            }
        }
    }

    fn is_absent(&mut self, slot: Slot) {
        self.state = DeviceState::Absent;
        self.places.give_back(slot);
    }
}

/// What the guest has beyond what it was last asked to have.
#[derive(Debug)]
pub(crate) struct Surplus(Qmp);

impl Surplus {
    /// Waits until it is another one than `before`, which was not nothing, for as long as that takes. The answer is what it is then.
    pub(crate) async fn other_than(&self, before: Mebibytes) -> Result<Mebibytes, MemoryError> {
        let Self(qmp) = self;
        // Before it is looked at: what happens afterwards is told.
        let mut events = qmp.events();
        loop {
            let asked = bytes(qmp, "requested-size").await?;
            let now = mebibytes(bytes(qmp, "size").await?.saturating_sub(asked));
            if now != before {
                return Ok(now);
            }
            let changed = tokio::select! {
                changed = changed(&mut events) => changed,
                _ = qmp.closed() => Err(QmpError::Closed),
            };
            changed.map_err(failed("wait for the guest"))?;
        }
    }
}

/// Rounded up.
fn mebibytes(bytes: u64) -> Mebibytes {
    Mebibytes(u32::try_from(bytes.div_ceil(1 << 20)).unwrap_or(u32::MAX))
}

/// A property of the device, in bytes.
async fn bytes(qmp: &Qmp, property: &str) -> Result<u64, MemoryError> {
    let answer = qmp
        .execute("qom-get", json!({ "path": path(), "property": property }))
        .await;
    let answer = answer.map_err(failed("ask how much memory the guest has"))?;
    Ok(answer.as_u64().unwrap_or_default())
}

fn path() -> String {
    format!("/machine/peripheral/{DEVICE}")
}

/// Shared like the rest of the guest's memory, for the daemons map it. `reserve=off`: what is not plugged takes no memory
/// of the host.
fn backend(size: Mebibytes, backing: Backing) -> Value {
    let mut backend = json!({ "qom-type": "memory-backend-memfd", "id": BACKEND, "size": size.bytes(), "share": true, "reserve": false });
    if backing.huge {
        backend["hugetlb"] = json!(true);
        backend["hugetlbsize"] = json!(2 << 20);
    }
    backend
}

/// `prealloc`: what the guest takes is taken from the host before (QEMU's virtio-mem).
fn device(slot: Slot, more: Mebibytes, backing: Backing) -> Value {
    let mut device = json!({
        "driver": "virtio-mem-pci",
        "id": DEVICE,
        "bus": BUS,
        "addr": slot.address(),
        "memdev": BACKEND,
        "requested-size": more.bytes(),
    });
    if backing.prealloc {
        device["prealloc"] = json!(true);
    }
    device
}

/// Waits until the guest has taken or given back some (QEMU's QAPI, MEMORY_DEVICE_SIZE_CHANGE).
async fn changed(events: &mut tokio::sync::broadcast::Receiver<Event>) -> Result<(), QmpError> {
    loop {
        match events.recv().await {
            Ok(event) if event.name == "MEMORY_DEVICE_SIZE_CHANGE" => return Ok(()),
            Ok(_) => {}
            // It may have been among those that were lost.
            Err(RecvError::Lagged(_)) => return Ok(()),
            Err(RecvError::Closed) => return Err(QmpError::Closed),
        }
    }
}

#[cfg(test)]
mod tests;
