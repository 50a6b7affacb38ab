//! The disks of the fake VM.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use hypervisor::{Disk, HotplugError};
use tokio::sync::watch;

#[derive(Default)]
pub(crate) struct FakeDisks {
    plugged: Mutex<BTreeSet<String>>,
    last: AtomicUsize,
    /// How many can be plugged in; 0 is 31, as in QEMU.
    pub(crate) places: AtomicUsize,
    /// The guest does not let go of a disk for now.
    pub(crate) clings: AtomicBool,
    /// Those that it was asked for in vain: it may let go of them later.
    asked: Mutex<BTreeSet<String>>,
    /// Plugging in waits until this is false.
    pub(crate) slow: watch::Sender<bool>,
    /// How often plugging in was begun.
    pub(crate) begun: watch::Sender<usize>,
}

impl FakeDisks {
    pub(super) async fn attach(&self, disk: &Disk) -> Result<String, HotplugError> {
        // The shim hands over a file that is open for what it says.
        let flags = rustix::fs::fcntl_getfl(&disk.file).unwrap();
        let writes = flags.contains(rustix::fs::OFlags::RDWR);
        assert_eq!(writes, !disk.read_only);
        self.begun.send_modify(|begun| *begun += 1);
        let mut slow = self.slow.subscribe();
        slow.wait_for(|slow| !*slow).await.unwrap();
        let places = match self.places.load(Ordering::SeqCst) {
            0 => 31,
            places => places,
        };
        if self.plugged().len() >= places {
            return Err(HotplugError::Full);
        }
        let serial = format!("tatami-{}", self.last.fetch_add(1, Ordering::SeqCst) + 1);
        self.plugged.lock().unwrap().insert(serial.clone());
        Ok(serial)
    }

    pub(super) fn detach(&self, serial: &str) -> Result<(), HotplugError> {
        if self.clings.load(Ordering::SeqCst) {
            self.asked.lock().unwrap().insert(serial.to_owned());
            return Err(HotplugError::Held {
                device: format!("disk {serial}"),
                reason: "it clings".to_owned(),
            });
        }
        let was_plugged = self.plugged.lock().unwrap().remove(serial);
        let was_asked_for = self.asked.lock().unwrap().remove(serial);
        assert!(was_plugged || was_asked_for, "{serial} is unplugged twice");
        Ok(())
    }

    /// The guest lets go of all that it was asked for.
    pub(crate) fn let_go(&self) {
        let asked = self.asked.lock().unwrap();
        self.plugged.lock().unwrap().retain(|serial| !asked.contains(serial));
    }

    /// The serial numbers of what is plugged in.
    pub(crate) fn plugged(&self) -> Vec<String> {
        self.plugged.lock().unwrap().iter().cloned().collect()
    }
}
