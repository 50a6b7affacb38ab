//! A driver of the vsock device that sends without end and takes nothing: what the host keeps for a guest has to be bounded.
//!
//! Unlike [`super::hostile`] it keeps the rules of its rings, but for `rings` and `chains`. Virtio 1.2: "Socket Device" (5.10).

use std::{
    sync::atomic::{Ordering, fence},
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

use super::{
    chains::{Chains, DATA, DATA_ADDRESS, HEADER},
    pci::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEXT, Registers, WRITE},
};
use crate::mapping::{PAGE, Shared};

/// The PCI id of a vsock device.
const VSOCK: &str = "0x1053";
const VERSION_1: u64 = 1 << 32;
/// `VIRTIO_F_INDIRECT_DESC` and `VIRTIO_F_EVENT_IDX`.
const INDIRECT_DESC: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;

/// The queues (5.10.2).
const RX: u16 = 0;
const TX: u16 = 1;
/// Descriptors in a queue. A packet has two: its header, and its data.
const PLACES: u16 = 128;
const PACKETS: u16 = PLACES / 2;
/// Bytes between two headers.
const HEADER_STRIDE: usize = PAGE / PACKETS as usize;
/// Descriptors of a packet's data where it has several.
const PARTS: u16 = 7;

const HOST: u64 = 2;
/// `VIRTIO_VSOCK_TYPE_STREAM`, and a type that there is not.
const STREAM: u16 = 1;
const UNKNOWN: u16 = 77;
/// Operations (5.10.6).
const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const RST: u16 = 3;
const RW: u16 = 5;
const CREDIT_REQUEST: u16 = 7;

/// The first of the ports that connections come from.
const PORT: u32 = 5000;
/// Timeout for the device to use a packet, and for the answer at the end.
const PATIENCE: Duration = Duration::from_secs(20);

/// `guest-probe vsock-flood KIND PORT SECONDS`: prints how many packets were sent to the host's port, and what a connection to it
/// was answered afterwards.
pub(crate) fn flood(kind: &str, port: &str, seconds: &str) -> crate::Result<()> {
    let port: u32 = port.parse()?;
    let end = Instant::now() + Duration::from_secs(seconds.parse()?);
    let mut driver = Driver::take(match kind {
        "rings" => EVENT_IDX,
        "chains" => INDIRECT_DESC,
        _ => 0,
    })?;
    let host = Packet {
        to: HOST,
        kind: STREAM,
        op: REQUEST,
        from_port: PORT,
        to_port: port,
        data: 0,
    };
    driver.send(host)?;
    driver.settle()?;
    driver.cut = match kind {
        "header-in-two" => Cut::Header,
        "data-in-parts" => Cut::Data,
        _ => Cut::None,
    };
    if kind == "chains" {
        driver.chains = Some(Chains::new()?);
    }
    let mut next = PORT + 1;
    while Instant::now() < end {
        match kind {
            "own-cid" => driver.send(Packet {
                to: driver.cid,
                op: RW,
                data: DATA,
                ..host
            })?,
            "credit" => driver.send(Packet {
                op: CREDIT_REQUEST,
                ..host
            })?,
            "response" => driver.send(Packet { op: RESPONSE, ..host })?,
            "connections" => {
                driver.send(Packet {
                    from_port: next,
                    ..host
                })?;
                // Every second one ends at once.
                if next.is_multiple_of(2) {
                    driver.send(Packet {
                        from_port: next,
                        op: RST,
                        ..host
                    })?;
                }
                next += 1;
            }
            // On the connection of the first packet.
            "header-in-two" | "data-in-parts" | "chains" => driver.send(Packet {
                op: RW,
                data: DATA,
                ..host
            })?,
            "rings" => driver.send_again(Packet { kind: UNKNOWN, ..host })?,
            other => return Err(format!("unknown: {other}").into()),
        }
    }
    let sent = driver.sent;
    if driver.cut != Cut::None || driver.chains.is_some() {
        driver.settle()?;
        (driver.cut, driver.chains) = (Cut::None, None);
    }
    let answer = driver.answer(Packet {
        from_port: u32::MAX - 1,
        ..host
    });
    println!(
        "{}",
        json!({ "sent": sent, "answer": answer.unwrap_or_else(|error| error.to_string()) })
    );
    // Our pages are somebody else's soon.
    Ok(driver.registers.reset()?)
}

#[derive(Clone, Copy)]
struct Packet {
    to: u64,
    kind: u16,
    op: u16,
    from_port: u32,
    to_port: u32,
    /// Bytes of [`DATA_ADDRESS`].
    data: u32,
}

impl Packet {
    /// Writes its header (5.10.6).
    fn write(self, from: u64, page: &Shared, at: usize) {
        page.write(at, from);
        page.write(at + 8, self.to);
        page.write(at + 16, self.from_port);
        page.write(at + 20, self.to_port);
        page.write(at + 24, self.data);
        page.write(at + 28, self.kind);
        page.write(at + 30, self.op);
        page.write(at + 32, 0_u32);
        // What there is room for, and what was taken.
        page.write(at + 36, 1_u32 << 18);
        page.write(at + 40, 0_u32);
    }
}

/// How a packet is laid out in descriptors. A device may not rely on it (2.7.4.1); Linux has a descriptor for the header and one for the
/// data, or several if a program sends with MSG_ZEROCOPY.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// The header, and the data.
    None,
    /// The header in two, and the data.
    Header,
    /// The header, and [`PARTS`] of the data.
    Data,
}

impl Cut {
    /// Places of the queue that a packet takes: PLACES is a multiple of it.
    fn places(self) -> u16 {
        match self {
            Self::None => 2,
            Self::Header | Self::Data => (PARTS + 1).next_power_of_two(),
        }
    }
}

/// Descriptors, available and used, a page each, and their addresses.
struct Ring([(Shared, u64); 3]);

impl Ring {
    fn new() -> crate::Result<Self> {
        let ring = Self([Shared::page()?, Shared::page()?, Shared::page()?]);
        for (page, _) in &ring.0 {
            page.write_bytes(0, &[0; PAGE]);
        }
        // No interrupts: nobody would take them.
        ring.0[1].0.write(0, 1_u16);
        Ok(ring)
    }

    fn addresses(&self) -> [u64; 3] {
        [self.0[0].1, self.0[1].1, self.0[2].1]
    }

    fn descriptor(&self, index: u16, address: u64, length: u32, flags: u16) {
        let (table, at) = (&self.0[0].0, usize::from(index) * 16);
        table.write(at, address);
        table.write(at + 8, length);
        table.write(at + 12, flags);
        table.write(at + 14, index.wrapping_add(1));
    }

    /// Gives the device a chain as the `number`th.
    fn offer(&self, number: u16, head: u16) {
        let available = &self.0[1].0;
        available.write(4 + usize::from(number % PLACES) * 2, head);
        fence(Ordering::SeqCst);
        available.write(2, number.wrapping_add(1));
        fence(Ordering::SeqCst);
    }

    fn used(&self) -> u16 {
        fence(Ordering::SeqCst);
        self.0[2].0.read(2)
    }

    /// `avail_event` (2.7.10): how far the device has come, with EVENT_IDX.
    fn taken(&self) -> u16 {
        fence(Ordering::SeqCst);
        self.0[2].0.read(4 + usize::from(PLACES) * 8)
    }
}

struct Driver {
    registers: Registers,
    tx: Ring,
    rx: Ring,
    headers: (Shared, u64),
    /// How packets are laid out, if it is not by `cut`.
    chains: Option<Chains>,
    cut: Cut,
    cid: u64,
    next: u16,
    sent: u64,
}

impl Driver {
    /// Takes the device away from the guest's kernel and brings it up (3.1.1). There are no buffers for what it has to say.
    fn take(features: u64) -> crate::Result<Self> {
        let (tx, rx, headers) = (Ring::new()?, Ring::new()?, Shared::page()?);
        let events = Ring::new()?;
        let registers = Registers::take(VSOCK)?;
        registers.reset()?;
        registers.set_status(ACKNOWLEDGE | DRIVER);
        registers.set_features(VERSION_1 | features);
        registers.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
        if registers.status() & FEATURES_OK == 0 {
            return Err("the device does not take the features".into());
        }
        for (queue, ring) in [&rx, &tx, &events].into_iter().enumerate() {
            registers.set_queue(queue as u16, PLACES, ring.addresses());
        }
        registers.set_status(ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK);
        Ok(Self {
            cid: registers.config(0),
            registers,
            tx,
            rx,
            headers,
            chains: None,
            cut: Cut::None,
            next: 0,
            sent: 0,
        })
    }

    /// Puts a packet into the place of the `next` one.
    fn fill(&mut self, packet: Packet) -> u16 {
        let places = self.cut.places();
        let slot = self.next % (PLACES / places);
        let head = slot * places;
        if let Some(chains) = &mut self.chains {
            let data = chains.claim();
            Packet { data, ..packet }.write(self.cid, &chains.header.0, 0);
            let (table, length, flags) = chains.draw();
            self.tx.descriptor(head, table, length, flags);
            return head;
        }
        let at = usize::from(slot) * HEADER_STRIDE;
        packet.write(self.cid, &self.headers.0, at);
        let header = self.headers.1 + at as u64;
        let half = HEADER / 2;
        let mut parts = match self.cut {
            Cut::Header => vec![(header, half), (header + u64::from(half), HEADER - half)],
            Cut::None | Cut::Data => vec![(header, HEADER)],
        };
        if packet.data > 0 && self.cut == Cut::Data {
            let length = packet.data.div_ceil(u32::from(PARTS));
            let data = (0..packet.data).step_by(length as usize);
            parts.extend(data.map(|at| (DATA_ADDRESS + u64::from(at), length.min(packet.data - at))));
        } else if packet.data > 0 {
            parts.push((DATA_ADDRESS, packet.data));
        }
        for (index, (address, length)) in (head..).zip(&parts) {
            let is_last = index == head + parts.len() as u16 - 1;
            self.tx
                .descriptor(index, *address, *length, if is_last { 0 } else { NEXT });
        }
        head
    }

    /// Sends a packet as soon as its place is free.
    fn send(&mut self, packet: Packet) -> crate::Result<()> {
        let packets = PLACES / self.cut.places();
        self.wait("used", |driver| driver.next.wrapping_sub(driver.tx.used()) < packets)?;
        self.offer(packet);
        // Half of the places are left for what is sent while the device works.
        if self.sent.is_multiple_of(u64::from(packets) / 2) || self.sent == 1 {
            self.registers.notify(TX);
        }
        Ok(())
    }

    /// Waits until all is used: then packets may be laid out otherwise.
    fn settle(&self) -> crate::Result<()> {
        self.wait("used", |driver| driver.next == driver.tx.used())
    }

    /// Sends a packet as often as there are places, as soon as the device has taken those before: it has yet to give them back.
    fn send_again(&mut self, packet: Packet) -> crate::Result<()> {
        self.wait("taken", |driver| driver.tx.taken() == driver.next)?;
        for _ in 0..PACKETS {
            self.offer(packet);
        }
        self.registers.notify(TX);
        Ok(())
    }

    fn offer(&mut self, packet: Packet) {
        let head = self.fill(packet);
        self.tx.offer(self.next, head);
        self.next = self.next.wrapping_add(1);
        self.sent += 1;
    }

    fn wait(&self, what: &str, done: impl Fn(&Self) -> bool) -> crate::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            self.registers.notify(TX);
            if Instant::now() > deadline {
                return Err(format!("after {} packets no more were {what}", self.sent).into());
            }
            thread::yield_now();
        }
        Ok(())
    }

    /// What a request is answered, once the device gets buffers.
    fn answer(&mut self, request: Packet) -> crate::Result<String> {
        const BUFFERS: u16 = 16;
        let buffers = (0..BUFFERS).map(|_| Shared::page()).collect::<Result<Vec<_>, _>>()?;
        let mut offered = 0;
        for (index, (_, address)) in buffers.iter().enumerate() {
            self.rx.descriptor(index as u16, *address, PAGE as u32, WRITE);
            self.rx.offer(offered, index as u16);
            offered += 1;
        }
        self.send(request)?;
        self.registers.notify(TX);
        self.registers.notify(RX);
        let mut seen = 0_u16;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if self.rx.used() == seen {
                thread::yield_now();
                continue;
            }
            let used = &self.rx.0[2].0;
            let head = used.read::<u32>(4 + usize::from(seen % PLACES) * 8) as u16;
            seen = seen.wrapping_add(1);
            let Some((buffer, _)) = buffers.get(usize::from(head)) else {
                return Err("a buffer that it was not given".into());
            };
            let (to_port, op) = (buffer.read::<u32>(20), buffer.read::<u16>(30));
            if to_port == request.from_port {
                return Ok(match op {
                    RESPONSE => String::from("response"),
                    RST => String::from("reset"),
                    other => format!("operation {other}"),
                });
            }
            self.rx.offer(offered, head);
            offered = offered.wrapping_add(1);
            self.registers.notify(RX);
        }
        Err("no answer".into())
    }
}
