//! A driver that breaks the rules: any virtio device, with queues and chains of descriptors that no driver would give it.
//!
//! Everything is drawn by chance from what is likely to be believed wrongly (Virtio 1.2, "Split Virtqueues", 2.7): chains that lead
//! to themselves or out of the queue, lengths of 4 GiB, addresses where no memory is or where the device's own registers are, tables
//! in tables, positions that jump, sizes that are none. The memory that a device may write to, or take away, is always ours, or
//! nobody's: the guest's kernel is to live through it. By device:
//!
//! - all: our pages are not moved ([`Shared::page`]). What is written to the device's own registers makes a ring of them where nothing is, or
//!   in the first mebibyte, which Linux leaves to the firmware. 4 GiB from anywhere go over a hole, and QEMU refuses all of the chain.
//! - generator: its bytes go to our pages.
//! - disk: it is the test's own, which nothing has mounted.
//! - network: what it sends goes to a namespace of the test's.
//! - balloon, memory: see [`BALLOON`].
//! - vsock, virtio-fs: the container's input, output and files are behind them, so the test waits for nothing that the guest says.

use std::{
    sync::atomic::{Ordering, fence},
    thread,
    time::Duration,
};

use serde_json::json;

use super::pci::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, INDIRECT, NEEDS_RESET, Registers, WRITE};
use crate::mapping::{PAGE, Shared};

/// Queues that are played with, and places in each: its three rings have a page each.
const QUEUES: u16 = 4;
const PLACES: u16 = 256;
/// The page after those of the rings: a table of descriptors that others lead to.
const TABLE: usize = QUEUES as usize * 3;
/// No page of [`Hostile::rings`]: that of the data.
const BUFFERS: usize = usize::MAX;
/// `VIRTQ_DESC_F_NEXT`.
const NEXT: u16 = 1;
/// Devices that a driver may ask, by the rules, to take memory away (Virtio 1.2, 5.5 and 5.15), by the ids that [`Registers::take`]
/// knows: so they are not asked to, or it would be the kernel's. What they read is ours, or where nothing is, and in whole words: a
/// request that begins in the middle of one would be another.
const BALLOON: &str = "0x1002";
const MEMORY: &str = "0x1058";
/// `VIRTIO_MEM_REQ_UNPLUG_ALL` (5.15.6).
const UNPLUG_ALL: u64 = 2;
/// Looks at a device after a notification before it gets the next.
const LOOKS: u32 = 20;

/// `guest-probe hostile ID ROUNDS SEED`: prints the rounds, and in how many the device said that it needs a reset.
pub(crate) fn hostile(device: &str, rounds: &str, seed: &str) -> crate::error::Result<()> {
    let rounds: u32 = rounds.parse()?;
    let mut driver = Hostile {
        chance: Chance(seed.parse::<u64>()? | 1),
        rings: (0..=TABLE).map(|_| Shared::page()).collect::<Result<_, _>>()?,
        buffers: Shared::page()?,
        registers: Registers::take(device)?,
        device: device.to_owned(),
    };
    let mut broken = 0;
    for _ in 0..rounds {
        broken += u32::from(driver.round()?);
    }
    // Our pages are somebody else's soon.
    driver.registers.reset()?;
    println!("{}", json!({ "rounds": rounds, "needs reset": broken }));
    Ok(())
}

/// xorshift64* (Marsaglia 2003; Vigna 2016): the same rounds for the same seed.
pub(super) struct Chance(pub(super) u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(super) fn of<T: Copy, const N: usize>(&mut self, choices: [T; N]) -> T {
        choices[self.below(N as u64) as usize]
    }
}

struct Hostile {
    chance: Chance,
    /// Three for each queue, and [`TABLE`].
    rings: Vec<(Shared, u64)>,
    buffers: (Shared, u64),
    registers: Registers,
    device: String,
}

impl Hostile {
    /// From a reset to a few notifications; whether the device has given up.
    fn round(&mut self) -> crate::error::Result<bool> {
        self.registers.reset()?;
        self.registers.set_status(ACKNOWLEDGE | DRIVER);
        let offered = self.registers.features();
        // Bit 32 is VERSION_1: mostly taken, or there is little to play with.
        let features = match self.chance.below(8) {
            0 => self.chance.next(),
            1 => offered & !(1 << 32),
            2 => offered,
            _ => offered & self.chance.next() | 1 << 32,
        };
        self.registers.set_features(features);
        self.registers.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
        let queues = self.registers.queues().clamp(1, QUEUES);
        let mut sizes = [0; QUEUES as usize];
        for queue in 0..queues {
            sizes[usize::from(queue)] = self.set_up(queue);
            // Nothing is available until it is written whole: a device looks once it is started.
            if self.takes_memory() {
                self.rings[usize::from(queue) * 3 + 1].0.write(2, 0_u16);
            }
        }
        self.registers
            .set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        // What is still read must not change: half of an old descriptor with half of a new one would lead elsewhere.
        let notifications = if self.takes_memory() {
            1
        } else {
            1 + self.chance.below(4)
        };
        for _ in 0..notifications {
            for queue in 0..queues {
                self.fill(queue, sizes[usize::from(queue)]);
            }
            let byte = self.chance.next() as u8;
            let at = self.chance.below(64) as usize;
            self.registers.set_config(at, byte);
            let queue = self.chance.of([0, 1, 2, 3, queues, u16::MAX]);
            self.registers.notify(queue);
            for _ in 0..LOOKS {
                thread::yield_now();
            }
            if self.takes_memory() {
                thread::sleep(Duration::from_millis(2));
            }
        }
        Ok(self.registers.status() & NEEDS_RESET != 0)
    }

    /// A queue with a size and places that are mostly such as it may have; its size.
    fn set_up(&mut self, queue: u16) -> u16 {
        let most = self.registers.most(queue).min(PLACES);
        let size = match self.chance.below(10) {
            0 => 0,
            1 => 3,
            2 => u16::MAX,
            3 => 1,
            _ => most,
        };
        let ring = usize::from(queue) * 3;
        let mut places = [0, 1, 2].map(|part| self.rings[ring + part].1);
        if self.chance.below(6) == 0 {
            let which = self.chance.below(3) as usize;
            places[which] = self.nowhere();
        }
        self.registers.set_queue(queue, size, places);
        most.max(1)
    }

    /// An address where no memory is: beyond it, the device's own registers, the last page of all.
    fn nowhere(&mut self) -> u64 {
        if self.takes_memory() {
            // Its own registers would be numbers of pages, too, and after the last address comes the first page.
            return self.chance.of([1 << 45, u64::MAX - 4095]);
        }
        let own = self.registers.address;
        self.chance
            .of([1 << 45, own, own + 0x1000, u64::MAX - 4095, u64::MAX, 0xfed0_0000])
    }

    fn takes_memory(&self) -> bool {
        [BALLOON, MEMORY].contains(&self.device.as_str())
    }

    fn fill(&mut self, queue: u16, size: u16) {
        for at in (0..PAGE).step_by(8) {
            // It takes long for a page that there is: the balloon gets few of them.
            let kind = if self.device == BALLOON && at >= 64 {
                1
            } else {
                self.chance.below(4)
            };
            let word = match kind {
                // Small numbers are types of requests, of all devices. To the balloon they are the first pages, which Linux leaves to
                // the firmware.
                0 => match self.chance.below(16) {
                    UNPLUG_ALL if self.device == MEMORY => UNPLUG_ALL + 1,
                    kind => kind,
                },
                // To the balloon these are pages that it takes away: there are none with such numbers. To the memory device they are no types.
                1 => self.chance.next() | 0x4000_0000_4000_4000,
                _ => 0,
            };
            self.buffers.0.write(at, word);
        }
        let ring = usize::from(queue) * 3;
        // A device takes a descriptor for a table only at the beginning of a chain, and elsewhere for a buffer, whatever its flags say: what
        // takes memory away would take a table for pages. Its chains have tables alone, or none.
        let tables = self.chance.below(2) == 0;
        for place in 0..size.min(32) {
            for table in [ring, TABLE] {
                let flags = match (self.takes_memory(), table != TABLE && tables) {
                    (false, _) => self
                        .chance
                        .of([0, 1, 1, 2, 3, 3, INDIRECT, INDIRECT | NEXT, INDIRECT | WRITE, 7]),
                    (true, true) => self.chance.of([INDIRECT, INDIRECT | NEXT]),
                    (true, false) => self.chance.of([0, NEXT, NEXT, WRITE, WRITE | NEXT]),
                };
                let descriptor = self.descriptor(ring, flags, place, size);
                let table = &self.rings[table].0;
                for (half, word) in descriptor.into_iter().enumerate() {
                    table.write(usize::from(place) * 16 + half * 8, word);
                }
            }
        }
        let available = &self.rings[ring + 1].0;
        let begins = available.read::<u16>(2);
        for place in 0..usize::from(size.min(32)) {
            let wild = self.chance.next() as u16;
            let head = self.chance.of([place as u16, 0, size.wrapping_sub(1), size, wild]);
            available.write(4 + place * 2, head);
        }
        let (flags, wild) = (self.chance.below(4) as u16, self.chance.next() as u16);
        available.write(0, flags);
        let step = self.chance.of([1, 2, size, size.wrapping_add(1), 0x8000, wild]);
        fence(Ordering::SeqCst);
        available.write(2, begins.wrapping_add(step));
        fence(Ordering::SeqCst);
    }

    /// A descriptor's two words (2.7.5): the address; length, flags and next place.
    fn descriptor(&mut self, ring: usize, flags: u16, place: u16, size: u16) -> [u64; 2] {
        let which = if flags & INDIRECT != 0 && self.takes_memory() {
            TABLE
        } else if flags & INDIRECT != 0 {
            self.chance.of([TABLE, TABLE, ring])
        } else if self.takes_memory() {
            // What is in a descriptor would be numbers of pages: a length of 4096 is where the kernel begins.
            BUFFERS
        } else if flags & WRITE != 0 {
            // Not the descriptors: what the device would find there afterwards could be an address of the kernel's.
            self.chance.of([BUFFERS, BUFFERS, ring + 1, ring + 2])
        } else {
            self.chance.of([BUFFERS, BUFFERS, TABLE, ring])
        };
        let ours = self.chance.below(6) != 0;
        let address = match self.rings.get(which) {
            _ if !ours => self.nowhere(),
            Some((_, address)) => *address,
            None => self.buffers.1,
        };
        let length: u32 = if ours {
            // It ends with its page: what comes after it is the kernel's.
            self.chance.of([0, 1, 8, 16, 512, PAGE as u32])
        } else {
            // Where nothing is, the balloon would find the first page, as often as there are four bytes.
            let page = if self.device == BALLOON { 16 } else { 4096 };
            self.chance.of([0, 1, 16, page, u32::MAX, u32::MAX - 1])
        };
        let length = if self.takes_memory() { length & !7 } else { length };
        let wild = self.chance.next() as u16;
        let next = self.chance.of([place, place + 1, 0, size, u16::MAX, wild]);
        let rest = u64::from(length) | u64::from(flags) << 32 | u64::from(next) << 48;
        [address, rest]
    }
}
