//! The size of the fake VM: its vCPUs, its memory, and what the host allows it.

use std::num::NonZeroU32;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use config::Mebibytes;
use hypervisor::{CpuError, MemoryError};
use node::sizing::HostLimits;
use tokio::sync::watch;

/// The memory that it boots with, in MiB.
const BOOT: u32 = 256;

/// The size of the fake VM, as it was set, change by change.
#[derive(Default)]
pub(crate) struct FakeSize {
    /// "2 vCPUs", "512 MiB".
    pub(crate) changes: watch::Sender<Vec<String>>,
    /// Changes of the VM's memory, and of what the host allows it.
    steps: watch::Sender<Vec<String>>,
    /// QEMU refuses vCPUs.
    pub(crate) refuses_vcpus: AtomicBool,
    /// The guest takes no memory any more.
    pub(crate) stuck: AtomicBool,
    /// The guest gives nothing back by itself.
    pub(crate) clings: AtomicBool,
    host: Mutex<HostLimits>,
    asked: AtomicU32,
    /// In MiB.
    has: watch::Sender<u32>,
    /// How many wait for the guest to give memory back.
    pub(crate) waited_for: watch::Sender<usize>,
}

impl FakeSize {
    pub(super) fn set_vcpus(&self, count: NonZeroU32) -> Result<(), CpuError> {
        self.changes
            .send_modify(|changes| changes.push(format!("{count} vCPUs")));
        if self.refuses_vcpus.load(Ordering::SeqCst) {
            return Err(CpuError::Interrupted);
        }
        Ok(())
    }

    pub(super) fn set_memory(&self, memory: Mebibytes) -> Result<Mebibytes, MemoryError> {
        // Asking once more for the same has the guest try again, and is no change.
        if self.asked.swap(memory.0, Ordering::SeqCst) != memory.0 {
            self.changes.send_modify(|changes| changes.push(memory.to_string()));
            self.step(memory.to_string());
        }
        if memory.0 > self.has.borrow().max(BOOT) {
            if self.stuck.load(Ordering::SeqCst) {
                return Err(MemoryError::Stuck {
                    has: Mebibytes(0),
                    asked: memory,
                });
            }
            self.has.send_replace(memory.0);
        } else if !self.clings.load(Ordering::SeqCst) {
            self.has.send_replace(memory.0);
        }
        Ok(self.beyond(*self.has.borrow()))
    }

    fn beyond(&self, has: u32) -> Mebibytes {
        Mebibytes(has.saturating_sub(self.asked.load(Ordering::SeqCst)))
    }

    pub(super) async fn surplus_other_than(&self, before: Mebibytes) -> Mebibytes {
        let _waits = Waits::new(&self.waited_for);
        let mut has = self.has.subscribe();
        let has = has.wait_for(|has| self.beyond(*has) != before).await;
        self.beyond(*has.unwrap())
    }

    /// The guest has given back what it had beyond this, by itself.
    pub(crate) fn gives_back_to(&self, memory: u32) {
        self.has.send_replace(memory);
    }

    pub(super) fn limit_host(&self, limits: impl FnOnce(HostLimits) -> HostLimits) {
        let mut host = self.host.lock().unwrap();
        let limits = limits(*host);
        let changes = limits.memory != host.memory;
        *host = limits;
        if changes {
            let memory = limits.memory;
            let memory = memory.map_or("none".to_owned(), |bytes| format!("{} MiB", bytes >> 20));
            self.step(format!("host: {memory}"));
        }
    }

    fn step(&self, step: String) {
        self.steps.send_modify(|steps| steps.push(step));
    }

    /// Waits until so many steps have been made, and gives them.
    pub(crate) async fn steps(&self, count: usize) -> Vec<String> {
        let mut steps = self.steps.subscribe();
        let made = steps.wait_for(|steps| steps.len() >= count).await;
        made.unwrap().clone()
    }

    /// Waits until so many changes have been made, and gives them.
    pub(crate) async fn after(&self, count: usize) -> Vec<String> {
        let mut changes = self.changes.subscribe();
        changes
            .wait_for(|changes| changes.len() >= count)
            .await
            .unwrap()
            .clone()
    }
}

struct Waits<'a>(&'a watch::Sender<usize>);

impl<'a> Waits<'a> {
    fn new(count: &'a watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}
