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
mod share;
mod start;
mod streams;
mod table;

pub use host::Host;
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

/// The smallest of `count` measurements of each kind, taken in turns: what disturbs the machine then hits all kinds.
///
/// # Errors
/// The first measurement that fails.
pub(crate) fn best_in_turns<const KINDS: usize>(
    count: usize,
    mut measure: impl FnMut(usize) -> Result<f64>,
) -> Result<[f64; KINDS]> {
    let mut best = [f64::INFINITY; KINDS];
    for _ in 0..count {
        for (kind, best) in best.iter_mut().enumerate() {
            *best = best.min(measure(kind)?);
        }
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_of_each_kind_is_taken_and_the_kinds_take_turns() {
        let figures = [5.0, 50.0, 4.0, 60.0, 6.0, 40.0];
        let mut order = Vec::new();
        let best = best_in_turns::<2>(3, |kind| {
            order.push(kind);
            Ok(figures[order.len() - 1])
        })
        .unwrap();
        assert_eq!(best, [4.0, 40.0]);
        assert_eq!(order, [0, 1, 0, 1, 0, 1]);
    }
}
