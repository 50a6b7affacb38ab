//! Measurements, each against a floor that is taken in the same run: what the machine can do without the runtime.
//!
//! Clocks of shared machines are noisy, so a figure is the best of several, taken in turns with its floor, and what
//! counts is the ratio. A section is a function from a [`Host`] to [`Row`]s; the table knows no section.

mod bare;
mod host;
mod machine;
mod memory;
mod network;
mod pod_files;
mod programs;
mod pss;
mod share;
mod start;
mod streams;
mod table;
mod turns;

pub use host::Host;
pub use memory::{Footprint, of_each};
pub use table::{Row, Unit, human, json};

use crate::Result;

/// One part of the table.
pub type Section = fn(&Host) -> Result<Vec<Row>>;

/// Every part by the name that the command line has for it, in the order of the table.
pub const SECTIONS: &[(&str, Section)] = &[
    ("start", start::measure),
    ("memory", memory::measure),
    ("streams", streams::measure),
    ("virtio-fs", share::measure),
    ("programs", programs::measure),
    ("pod-files", pod_files::measure),
    ("network", network::measure),
];

/// Parts that take long and that are measured only where they are named.
pub const MORE_SECTIONS: &[(&str, Section)] = &[
    ("virtio-fs-settings", share::settings),
    ("kernels", start::kernels),
    ("containers", start::containers),
];
