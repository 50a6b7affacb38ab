//! Bounds the names that a guest may put into the metrics.

use std::collections::HashMap;

/// Names of the guest that are passed on: they are labels, and the guest could make up any number of them.
pub(super) const GUEST_NAMES: usize = 128;

/// The guest's figures by name, as many as are passed on.
pub(super) fn sorted(map: &HashMap<String, u64>) -> Vec<(&str, u64)> {
    let mut pairs: Vec<_> = map.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    pairs.sort_unstable();
    pairs.truncate(GUEST_NAMES);
    pairs
}
