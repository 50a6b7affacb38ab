//! The registers of a virtio device on PCI whose driver this process is (Virtio 1.2, "Virtio Over PCI Bus", 4.1).

use std::{
    env,
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use crate::mapping::{Shared, Word};

/// The vendor of all virtio devices.
const VENDOR: &str = "0x1af4";
/// How long a device may take for its reset.
const RESET: Duration = Duration::from_secs(10);

/// `device_status` (2.1).
pub(super) const ACKNOWLEDGE: u8 = 1;
pub(super) const DRIVER: u8 = 2;
pub(super) const DRIVER_OK: u8 = 4;
pub(super) const FEATURES_OK: u8 = 8;
pub(super) const NEEDS_RESET: u8 = 64;

/// A descriptor's flags (2.7.5): another follows, the device may write to it, it leads to a table of them.
pub(super) const NEXT: u16 = 1;
pub(super) const WRITE: u16 = 2;
pub(super) const INDIRECT: u16 = 4;

/// Where the registers are in the common configuration (4.1.4.3).
const DEVICE_FEATURE_SELECT: usize = 0;
const DEVICE_FEATURE: usize = 4;
const DRIVER_FEATURE_SELECT: usize = 8;
const DRIVER_FEATURE: usize = 12;
const QUEUES: usize = 18;
const STATUS: usize = 20;
const QUEUE_SELECT: usize = 22;
const QUEUE_SIZE: usize = 24;
const QUEUE_ENABLE: usize = 28;
const QUEUE_NOTIFY: usize = 30;
const QUEUE_RINGS: [usize; 3] = [32, 40, 48];

struct Capability {
    kind: u8,
    bar: u8,
    offset: usize,
    length: usize,
    notify_multiplier: usize,
}

/// A part of a device's registers.
struct Part {
    memory: Shared,
    offset: usize,
    length: usize,
}

pub(super) struct Registers {
    common: Part,
    notify: Part,
    notify_multiplier: usize,
    config: Option<Part>,
    /// Where its registers are in the guest's physical memory.
    pub(super) address: u64,
}

impl Registers {
    /// Takes a device with this PCI id away from the guest's kernel.
    pub(super) fn take(device: &str) -> io::Result<Self> {
        // Names begin here: everything above may be on the device that is taken away.
        env::set_current_dir("/sys")?;
        let path = find(device)?;
        for entry in fs::read_dir(&path)? {
            let entry = entry?;
            let name = entry.file_name();
            if name.to_string_lossy().starts_with("virtio") && entry.path().join("driver").exists() {
                fs::write(entry.path().join("driver/unbind"), name.to_string_lossy().as_bytes())?;
            }
        }
        let config = File::open(path.join("config"))?;
        let capabilities = capabilities(&config)?;
        let part = |kind| -> io::Result<Option<(Part, usize)>> {
            let Some(found) = capabilities.iter().find(|capability| capability.kind == kind) else {
                return Ok(None);
            };
            let resource = path.join(format!("resource{}", found.bar));
            let file = File::options().read(true).write(true).open(resource)?;
            let part = Part {
                memory: Shared::file(&file, false)?,
                offset: found.offset,
                length: found.length,
            };
            Ok(Some((part, found.notify_multiplier)))
        };
        let missing = || io::Error::other("a device without its registers");
        let (common, _) = part(1)?.ok_or_else(missing)?;
        let (notify, notify_multiplier) = part(2)?.ok_or_else(missing)?;
        Ok(Self {
            common,
            notify,
            notify_multiplier,
            config: part(4)?.map(|(part, _)| part),
            address: resource(&path)?,
        })
    }

    fn read<T: Word>(&self, register: usize) -> T {
        self.common.memory.read(self.common.offset + register)
    }

    fn write<T: Word>(&self, register: usize, value: T) {
        self.common.memory.write(self.common.offset + register, value);
    }

    pub(super) fn status(&self) -> u8 {
        self.read(STATUS)
    }

    pub(super) fn set_status(&self, status: u8) {
        self.write(STATUS, status);
    }

    /// Resets the device, and waits until it says that it has done so.
    pub(super) fn reset(&self) -> io::Result<()> {
        self.set_status(0);
        let deadline = Instant::now() + RESET;
        while self.status() != 0 {
            if Instant::now() > deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the device cannot be reset"));
            }
            thread::yield_now();
        }
        Ok(())
    }

    /// What the device offers.
    pub(super) fn features(&self) -> u64 {
        [0_u32, 1].iter().rev().fold(0, |features, half| {
            self.write(DEVICE_FEATURE_SELECT, *half);
            features << 32 | u64::from(self.read::<u32>(DEVICE_FEATURE))
        })
    }

    pub(super) fn set_features(&self, features: u64) {
        for half in [0_u32, 1] {
            self.write(DRIVER_FEATURE_SELECT, half);
            self.write(DRIVER_FEATURE, (features >> (half * 32)) as u32);
        }
    }

    pub(super) fn queues(&self) -> u16 {
        self.read(QUEUES)
    }

    /// How many places a queue has at most.
    pub(super) fn most(&self, queue: u16) -> u16 {
        self.write(QUEUE_SELECT, queue);
        self.read(QUEUE_SIZE)
    }

    /// Gives a queue its size and the addresses of its descriptors, of what is available and of what is used, and switches it on.
    pub(super) fn set_queue(&self, queue: u16, size: u16, rings: [u64; 3]) {
        self.write(QUEUE_SELECT, queue);
        self.write(QUEUE_SIZE, size);
        for (register, address) in QUEUE_RINGS.into_iter().zip(rings) {
            // Two halves: not every device takes 64 bits at once.
            self.write(register, (address & 0xffff_ffff) as u32);
            self.write(register + 4, (address >> 32) as u32);
        }
        self.write(QUEUE_ENABLE, 1_u16);
    }

    /// Tells the device to look at a queue.
    pub(super) fn notify(&self, queue: u16) {
        self.write(QUEUE_SELECT, queue);
        let place = usize::from(self.read::<u16>(QUEUE_NOTIFY)) * self.notify_multiplier;
        if place + 2 <= self.notify.length {
            self.notify.memory.write(self.notify.offset + place, queue);
        }
    }

    /// A number of the device's own configuration; 0 if it has not so much.
    pub(super) fn config(&self, at: usize) -> u64 {
        let config = self.config.as_ref().filter(|config| at + 8 <= config.length);
        config.map_or(0, |config| {
            let half = |at: usize| u64::from(config.memory.read::<u32>(config.offset + at));
            half(at) | half(at + 4) << 32
        })
    }

    /// Writes a byte of the device's own configuration, if it has so much.
    pub(super) fn set_config(&self, at: usize, value: u8) {
        if let Some(config) = self.config.as_ref().filter(|config| at < config.length) {
            config.memory.write(config.offset + at, value);
        }
    }
}

fn find(device: &str) -> io::Result<PathBuf> {
    for entry in fs::read_dir("bus/pci/devices")? {
        let path = entry?.path();
        let is = |file: &str, id: &str| fs::read_to_string(path.join(file)).is_ok_and(|text| text.trim() == id);
        if is("vendor", VENDOR) && is("device", device) {
            return Ok(path);
        }
    }
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        format!("there is no device {device}"),
    ))
}

/// The address of the last of a device's memories.
fn resource(path: &Path) -> io::Result<u64> {
    let text = fs::read_to_string(path.join("resource"))?;
    let mut starts = text.lines().filter_map(|line| {
        let start = line.split_ascii_whitespace().next()?.strip_prefix("0x")?;
        u64::from_str_radix(start, 16).ok().filter(|start| *start != 0)
    });
    starts
        .next_back()
        .ok_or_else(|| io::Error::other("a device without memory"))
}

/// Where the device's registers are (4.1.4).
fn capabilities(config: &File) -> io::Result<Vec<Capability>> {
    let mut space = [0; 256];
    config.read_exact_at(&mut space, 0)?;
    let number = |at: usize| -> io::Result<usize> {
        let bytes = space.get(at..at + 4).ok_or(io::ErrorKind::InvalidData)?;
        Ok(bytes
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | usize::from(*byte)))
    };
    let mut found = Vec::new();
    let mut at = usize::from(space[0x34]);
    while at != 0 && at + 20 <= space.len() && found.len() < 16 {
        if space[at] == 9 {
            found.push(Capability {
                kind: space[at + 3],
                bar: space[at + 4],
                offset: number(at + 8)?,
                length: number(at + 12)?,
                notify_multiplier: number(at + 16)?,
            });
        }
        at = usize::from(space[at + 1]);
    }
    Ok(found)
}
