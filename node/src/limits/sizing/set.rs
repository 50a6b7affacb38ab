//! A set of CPUs, or of memory nodes, in the format of cpuset(7).

use std::fmt;

/// The highest number that is counted, and one. Hosts with more CPUs than a VM can ever have are beside the point.
const PLACES: usize = 1024;
const BITS: usize = u64::BITS as usize;

/// Some numbers below 1024.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NumberSet([u64; PLACES / BITS]);

impl NumberSet {
    /// Reads a list (cpuset(7), "List format"); none if it is no list, or has a number that is too high.
    #[must_use]
    pub fn parse(list: &str) -> Option<Self> {
        let mut set = Self([0; PLACES / BITS]);
        for part in list.trim().split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
            if first > last || last >= PLACES {
                return None;
            }
            for number in first..=last {
                set.0[number / BITS] |= 1 << (number % BITS);
            }
        }
        Some(set)
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.0.iter().map(|bits| bits.count_ones()).sum()
    }

    /// What is in either.
    #[must_use]
    pub fn union(mut self, other: Self) -> Self {
        for (bits, more) in self.0.iter_mut().zip(other.0) {
            *bits |= more;
        }
        self
    }

    /// All of them, in order.
    pub fn numbers(&self) -> impl Iterator<Item = usize> {
        (0..PLACES).filter(|number| self.has(*number))
    }

    fn has(&self, number: usize) -> bool {
        number < PLACES && self.0[number / BITS] >> (number % BITS) & 1 == 1
    }
}

impl fmt::Display for NumberSet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        let mut number = 0;
        while number < PLACES {
            if !self.has(number) {
                number += 1;
                continue;
            }
            let first = number;
            while self.has(number) {
                number += 1;
            }
            match number - 1 {
                last if last == first => write!(formatter, "{separator}{first}")?,
                last => write!(formatter, "{separator}{first}-{last}")?,
            }
            separator = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_list_is_read_and_written() {
        for (list, written, count) in [
            ("0", "0", 1),
            ("0-2,7", "0-2,7", 4),
            ("7, 0-2 ,1\n", "0-2,7", 4),
            ("62-65,1023", "62-65,1023", 5),
        ] {
            let set = NumberSet::parse(list).unwrap();
            assert_eq!((set.to_string().as_str(), set.count()), (written, count), "{list}");
            assert_eq!(set.numbers().count(), count as usize, "{list}");
        }
        for wrong in ["", "x", "3-1", "1-", "-1", "1024", "0-99999999999"] {
            assert_eq!(NumberSet::parse(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_what_is_in_both(one: BTreeSet<u8>, other: BTreeSet<u8>) {
            let list = |set: &BTreeSet<u8>| set.iter().map(u8::to_string).collect::<Vec<_>>().join(",");
            prop_assume!(!one.is_empty() && !other.is_empty());
            let (a, b) = (NumberSet::parse(&list(&one)).unwrap(), NumberSet::parse(&list(&other)).unwrap());
            let both: BTreeSet<u8> = one.union(&other).copied().collect();
            let union = a.union(b);
            prop_assert_eq!(union.count() as usize, both.len());
            prop_assert_eq!(NumberSet::parse(&union.to_string()), NumberSet::parse(&list(&both)));
        }
    }
}
