//! A driver for the virtio-fs device, in a process: it takes the device away from the kernel and speaks to the host by itself.
//!
//! Virtio 1.2: "Virtio Over PCI Bus" (4.1), "Split Virtqueues" (2.7), "File System Device" (5.11). One request at a time, or as many short
//! ones as fit into a page.

use std::{
    io,
    path::Path,
    sync::atomic::{Ordering, fence},
    thread,
    time::{Duration, Instant},
};

use super::pci::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, Registers};
use crate::mapping::{PAGE, Shared};

/// The PCI id of a virtio-fs device.
const VIRTIO_FS: &str = "0x105a";
/// VIRTIO_F_VERSION_1.
const VERSION_1: u64 = 1 << 32;
/// A queue for requests; 0 is the one for urgent ones.
const QUEUE: u16 = 1;
const QUEUE_SIZE: u16 = 32;
/// How long the host may take to answer: it may have nothing to say to what is no request at all.
const PATIENCE: Duration = Duration::from_secs(10);

/// In the first page.
const DESCRIPTORS: usize = 0;
const AVAILABLE: usize = 1024;
const USED: usize = 2048;
/// In the second page.
const REPLY: usize = 1024;
/// In the third page: short requests, each with the place for its reply (the longest is that of LOOKUP, 144 bytes).
const SHORT: usize = PAGE / BATCH;
const SHORT_REPLY: usize = 96;
/// Short requests that are sent together: each takes two descriptors.
pub(super) const BATCH: usize = QUEUE_SIZE as usize / 2;

pub(super) struct Device {
    registers: Registers,
    rings: Shared,
    buffers: Shared,
    buffers_address: u64,
    short: Shared,
    short_address: u64,
    next: u16,
}

impl Device {
    /// Takes the device away from the guest's kernel and brings it up with one queue (3.1.1).
    pub(super) fn take() -> io::Result<Self> {
        let (rings, address) = Shared::page()?;
        let (buffers, buffers_address) = Shared::page()?;
        let (short, short_address) = Shared::page()?;
        let registers = Registers::take(VIRTIO_FS)?;
        rings.write_bytes(0, &[0; PAGE]);
        // No interrupts: nobody would take them.
        rings.write(AVAILABLE, 1_u16);
        registers.reset()?;
        registers.set_status(ACKNOWLEDGE | DRIVER);
        registers.set_features(VERSION_1);
        registers.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
        if registers.status() & FEATURES_OK == 0 {
            return Err(io::Error::other("the device does not take the features"));
        }
        let places = [DESCRIPTORS, AVAILABLE, USED].map(|part| address + part as u64);
        registers.set_queue(QUEUE, QUEUE_SIZE, places);
        registers.set_status(ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK);
        Ok(Self {
            registers,
            rings,
            buffers,
            buffers_address,
            short,
            short_address,
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
        self.offer(0);
        if !self.notify_and_wait() {
            return Ok(None);
        }
        let written = self.buffers.read::<u32>(REPLY) as usize;
        Ok(Some(self.buffers.read_bytes(REPLY, written.clamp(16, PAGE - REPLY))))
    }

    /// Sends short requests, at most [`BATCH`]; gives their replies in the same order, or nothing if one of them has none in time.
    pub(super) fn exchange_short(&mut self, requests: &[Vec<u8>]) -> io::Result<Option<Vec<Vec<u8>>>> {
        if requests.len() > BATCH || requests.iter().any(|request| request.len() > SHORT_REPLY) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (index, request) in requests.iter().enumerate() {
            let at = index * SHORT;
            self.short.write_bytes(at, request);
            self.short.write_bytes(at + SHORT_REPLY, &[0; 16]);
            let address = self.short_address + at as u64;
            let head = index * 2;
            self.descriptor(head, address, request.len() as u32, 1, head as u16 + 1);
            let room = (SHORT - SHORT_REPLY) as u32;
            self.descriptor(head + 1, address + SHORT_REPLY as u64, room, 2, 0);
            self.offer(head as u16);
        }
        if !self.notify_and_wait() {
            return Ok(None);
        }
        let reply = |index: usize| {
            let at = index * SHORT + SHORT_REPLY;
            let written = self.short.read::<u32>(at) as usize;
            self.short.read_bytes(at, written.clamp(16, SHORT - SHORT_REPLY))
        };
        Ok(Some((0..requests.len()).map(reply).collect()))
    }

    /// Makes a chain available.
    fn offer(&mut self, head: u16) {
        let slot = usize::from(self.next % QUEUE_SIZE);
        self.rings.write(AVAILABLE + 4 + slot * 2, head);
        fence(Ordering::SeqCst);
        self.next = self.next.wrapping_add(1);
        self.rings.write(AVAILABLE + 2, self.next);
        fence(Ordering::SeqCst);
    }

    /// Whether all that was offered is used in time.
    fn notify_and_wait(&self) -> bool {
        self.registers.notify(QUEUE);
        let deadline = Instant::now() + PATIENCE;
        while self.rings.read::<u16>(USED + 2) != self.next {
            if Instant::now() > deadline {
                return false;
            }
            thread::yield_now();
        }
        fence(Ordering::SeqCst);
        true
    }

    fn descriptor(&self, index: usize, address: u64, length: u32, flags: u16, next: u16) {
        let at = DESCRIPTORS + index * 16;
        self.rings.write(at, address);
        self.rings.write(at + 8, length);
        self.rings.write(at + 12, flags);
        self.rings.write(at + 14, next);
    }
}

/// Whether the kernel has a virtio-fs device at all.
pub(super) fn present() -> bool {
    Path::new("/sys/bus/virtio/drivers/virtiofs").exists()
}
