//! Bounds the names that a guest may put into the metrics.

use std::collections::HashMap;

/// Names of the guest that are passed on: they are labels, and the guest could make up any number of them.
pub(super) const GUEST_NAMES: usize = 128;

/// Longest of these names, in bytes. Linux's are shorter.
const LONGEST: usize = 64;

/// What is passed on of what the guest has named.
pub(super) fn bounded<'a, T>(named: impl Iterator<Item = (&'a str, T)>) -> impl Iterator<Item = (&'a str, T)> {
    named.filter(|(name, _)| name.len() <= LONGEST).take(GUEST_NAMES)
}

/// The guest's figures by name, as many as are passed on.
pub(super) fn sorted(map: &HashMap<String, u64>) -> Vec<(&str, u64)> {
    let mut pairs: Vec<_> = map.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    pairs.sort_unstable();
    bounded(pairs.into_iter()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_makes_up_names_has_some_of_them_passed_on_and_no_long_ones() {
        let names = (0..1000).map(|number| (format!("{number:04}"), number));
        let long = std::iter::once(("\0".repeat(LONGEST + 1), 7));
        let map: HashMap<String, u64> = names.chain(long).collect();
        let passed = sorted(&map);
        assert_eq!(passed.len(), GUEST_NAMES);
        assert_eq!((passed[0], passed[GUEST_NAMES - 1]), (("0000", 0), ("0127", 127)));
    }
}
