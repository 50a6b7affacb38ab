//! Packets of the vsock device in chains of 2 to 1024 descriptors, whose lengths do not add up to what the packet says.
//!
//! A chain is an indirect table (Virtio 1.2, 2.7.5.3). All packets share one table and one header, which are written anew for each while
//! the device may be reading them.

use super::{
    hostile::Chance,
    pci::{INDIRECT, NEXT, WRITE},
};
use crate::mapping::{PAGE, Shared};

/// Bytes of a packet's header (5.10.6).
pub(super) const HEADER: u32 = 44;
/// Bytes of data, and where they are in the guest's memory. What they are does not matter: they are only read.
pub(super) const DATA: u32 = 64 << 10;
pub(super) const DATA_ADDRESS: u64 = 1 << 20;
/// Descriptors of a chain.
const LENGTHS: [u16; 5] = [2, 3, 17, 128, 1024];
/// Bytes of a descriptor.
const DESCRIPTOR: usize = 16;
const LONGEST: usize = 1024;
/// Pages of the table, one after the other in the guest's memory.
const PAGES: usize = LONGEST * DESCRIPTOR / PAGE;
/// Pages among which so many in a row are looked for.
const TRIES: usize = 512;
/// An address where no memory is.
const NOWHERE: u64 = 1 << 45;

pub(super) struct Chains {
    table: Vec<(Shared, u64)>,
    pub(super) header: (Shared, u64),
    chance: Chance,
}

impl Chains {
    pub(super) fn new() -> crate::Result<Self> {
        let mut chains = Self {
            table: in_a_row()?,
            header: Shared::page()?,
            chance: Chance(20_261_130),
        };
        (0..LONGEST).for_each(|index| chains.set(index, NEXT));
        Ok(chains)
    }

    /// The bytes that the next header claims to have.
    pub(super) fn claim(&mut self) -> u32 {
        self.chance.of([0, 1, 1000, DATA, DATA, DATA + 1, u32::MAX])
    }

    /// Draws the next chain: the descriptor of its table.
    pub(super) fn draw(&mut self) -> (u64, u32, u16) {
        let count = usize::from(self.chance.of(LENGTHS));
        // What most devices look at: the first, and the end.
        for index in 1..count.min(4) {
            let flags = self.chance.of([NEXT, NEXT, NEXT, NEXT | WRITE, NEXT | INDIRECT, 0]);
            self.set(index, flags);
        }
        let end = self.chance.of([0, NEXT, WRITE]);
        self.set(count - 1, end);
        let length = self
            .chance
            .of([HEADER, HEADER, HEADER, HEADER + 1000, HEADER - 1, 1, 0]);
        let flags = self.chance.of([NEXT, NEXT, NEXT, NEXT | WRITE, 0]);
        self.write(0, self.header.1, length, flags);
        (self.table[0].1, (count * DESCRIPTOR) as u32, INDIRECT)
    }

    /// Some of the data, or what is none.
    fn set(&mut self, index: usize, flags: u16) {
        // Nothing that the device may write to is the kernel's.
        let address = match flags & WRITE {
            0 => self
                .chance
                .of([DATA_ADDRESS, DATA_ADDRESS, DATA_ADDRESS, NOWHERE, u64::MAX]),
            _ => NOWHERE,
        };
        let length = self.chance.of([0, 1, 999, 1000, DATA - 1, DATA, DATA, u32::MAX]);
        self.write(index, address, length, flags);
    }

    fn write(&self, index: usize, address: u64, length: u32, flags: u16) {
        let at = index * DESCRIPTOR;
        let (page, at) = (&self.table[at / PAGE].0, at % PAGE);
        page.write(at, address);
        page.write(at + 8, length);
        page.write(at + 12, flags);
        page.write(at + 14, index as u16 + 1);
    }
}

/// [`PAGES`] pages whose addresses follow each other.
fn in_a_row() -> crate::Result<Vec<(Shared, u64)>> {
    let mut pages = (0..TRIES).map(|_| Shared::page()).collect::<Result<Vec<_>, _>>()?;
    pages.sort_by_key(|(_, address)| *address);
    let follow = |pages: &[(Shared, u64)]| pages[PAGES - 1].1 - pages[0].1 == ((PAGES - 1) * PAGE) as u64;
    let first = pages.windows(PAGES).position(follow);
    let first = first.ok_or("the kernel gives no pages in a row")?;
    Ok(pages.drain(first..first + PAGES).collect())
}
