//! A driver for the virtio-fs device, in a process: it takes the device away from the kernel and speaks to the host by itself.
//!
//! Virtio 1.2: "Virtio Over PCI Bus" (4.1), "Split Virtqueues" (2.7), "File System Device" (5.11). One request at a time.

use std::{
    env,
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::atomic::{Ordering, fence},
    thread,
    time::{Duration, Instant},
};

use crate::mapping::{PAGE, Shared};

/// PCI ids of a virtio-fs device.
const IDS: [(&str, &str); 2] = [("vendor", "0x1af4"), ("device", "0x105a")];
/// A queue for requests; 0 is the one for urgent ones.
const QUEUE: u16 = 1;
const QUEUE_SIZE: u16 = 8;
/// How long the host may take to answer: it may have nothing to say to what is no request at all.
const PATIENCE: Duration = Duration::from_secs(10);

/// In the first page.
const DESCRIPTORS: usize = 0;
const AVAILABLE: usize = 1024;
const USED: usize = 2048;
/// In the second page.
const REPLY: usize = 1024;

/// The device, ours.
pub(super) struct Device {
    notify: Shared,
    notify_at: usize,
    rings: Shared,
    buffers: Shared,
    buffers_address: u64,
    next: u16,
}

struct Capability {
    kind: u8,
    bar: u8,
    offset: usize,
    notify_multiplier: usize,
}

impl Device {
    /// Takes the device away from the guest's kernel and sets it up.
    pub(super) fn take() -> io::Result<Self> {
        // Names begin here: everything above is on the device that is taken away.
        env::set_current_dir("/sys")?;
        let (rings, rings_address) = Shared::page()?;
        let (buffers, buffers_address) = Shared::page()?;
        let path = find()?;
        for entry in fs::read_dir(&path)? {
            let name = entry?.file_name();
            let name = name.to_string_lossy();
            if name.starts_with("virtio") {
                fs::write("bus/virtio/drivers/virtiofs/unbind", name.as_bytes())?;
            }
        }
        let capabilities = capabilities(&File::open(path.join("config"))?)?;
        let part = |kind| -> io::Result<(Shared, &Capability)> {
            let found = capabilities.iter().find(|capability| capability.kind == kind);
            let capability = found.ok_or_else(|| io::Error::other("a device without its registers"))?;
            let resource = path.join(format!("resource{}", capability.bar));
            let file = File::options().read(true).write(true).open(resource)?;
            Ok((Shared::file(&file, false)?, capability))
        };
        let (common, at) = part(1)?;
        let (notify, notify_capability) = part(2)?;
        rings.write_bytes(0, &[0; PAGE]);
        // No interrupts: nobody would take them.
        rings.write(AVAILABLE, 1_u16);
        let queue = set_up(&common, at.offset, rings_address)?;
        Ok(Self {
            notify,
            notify_at: notify_capability.offset + usize::from(queue) * notify_capability.notify_multiplier,
            rings,
            buffers,
            buffers_address,
            next: 0,
        })
    }

    /// Sends a request; gives the reply, or nothing if there is none in time.
    pub(super) fn exchange(&mut self, request: &[u8]) -> io::Result<Option<Vec<u8>>> {
        if request.len() > REPLY {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.buffers.write_bytes(0, request);
        self.buffers.write_bytes(REPLY, &[0; 16]);
        let (length, room) = (request.len() as u32, (PAGE - REPLY) as u32);
        // The first leads to the second, which the device may write to.
        self.descriptor(0, self.buffers_address, length, 1, 1);
        self.descriptor(1, self.buffers_address + REPLY as u64, room, 2, 0);
        let slot = usize::from(self.next % QUEUE_SIZE);
        self.rings.write(AVAILABLE + 4 + slot * 2, 0_u16);
        fence(Ordering::SeqCst);
        self.next = self.next.wrapping_add(1);
        self.rings.write(AVAILABLE + 2, self.next);
        fence(Ordering::SeqCst);
        self.notify.write(self.notify_at, QUEUE);
        let deadline = Instant::now() + PATIENCE;
        while self.rings.read::<u16>(USED + 2) != self.next {
            if Instant::now() > deadline {
                return Ok(None);
            }
            thread::yield_now();
        }
        fence(Ordering::SeqCst);
        let written = self.buffers.read::<u32>(REPLY) as usize;
        Ok(Some(self.buffers.read_bytes(REPLY, written.clamp(16, PAGE - REPLY))))
    }

    fn descriptor(&self, index: usize, address: u64, length: u32, flags: u16, next: u16) {
        let at = DESCRIPTORS + index * 16;
        self.rings.write(at, address);
        self.rings.write(at + 8, length);
        self.rings.write(at + 12, flags);
        self.rings.write(at + 14, next);
    }
}

fn find() -> io::Result<PathBuf> {
    for entry in fs::read_dir("bus/pci/devices")? {
        let path = entry?.path();
        let is = |(file, id): &(&str, &str)| fs::read_to_string(path.join(file)).is_ok_and(|text| text.trim() == *id);
        if IDS.iter().all(is) {
            return Ok(path);
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "there is no virtio-fs device"))
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
                notify_multiplier: number(at + 16)?,
            });
        }
        at = usize::from(space[at + 1]);
    }
    Ok(found)
}

/// Brings the device up with one queue (3.1.1); gives the queue's place among the notifications.
fn set_up(common: &Shared, at: usize, rings: u64) -> io::Result<u16> {
    let status = |value: u8| common.write(at + 20, value);
    status(0);
    let deadline = Instant::now() + PATIENCE;
    while common.read::<u8>(at + 20) != 0 {
        if Instant::now() > deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the device cannot be reset"));
        }
        thread::yield_now();
    }
    status(1 | 2);
    // VIRTIO_F_VERSION_1, the 33rd feature, and nothing else.
    for (half, features) in [(0_u32, 0_u32), (1, 1)] {
        common.write(at + 8, half);
        common.write(at + 12, features);
    }
    status(1 | 2 | 8);
    if common.read::<u8>(at + 20) & 8 == 0 {
        return Err(io::Error::other("the device does not take the features"));
    }
    common.write(at + 22, QUEUE);
    common.write(at + 24, QUEUE_SIZE);
    for (register, part) in [(32, DESCRIPTORS), (40, AVAILABLE), (48, USED)] {
        let address = rings + part as u64;
        // Two halves: not every device takes 64 bits at once.
        common.write(at + register, (address & 0xffff_ffff) as u32);
        common.write(at + register + 4, (address >> 32) as u32);
    }
    let place = common.read::<u16>(at + 30);
    common.write(at + 28, 1_u16);
    status(1 | 2 | 4 | 8);
    Ok(place)
}

/// Whether the kernel has a virtio-fs device at all.
pub(super) fn present() -> bool {
    Path::new("/sys/bus/virtio/drivers/virtiofs").exists()
}
