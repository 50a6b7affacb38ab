//! Chance that depends on what it is asked for, not on what was asked before: a history that lacks one request is otherwise the same.

use std::collections::BTreeMap;

#[derive(Default)]
pub(crate) struct Dice {
    seed: u64,
    thrown: BTreeMap<u64, u64>,
}

/// The mixing function of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators").
pub(crate) fn mix(mut bits: u64) -> u64 {
    bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            seed,
            thrown: BTreeMap::new(),
        }
    }

    /// The next number for this question.
    pub(crate) fn throw(&mut self, question: u64) -> u64 {
        let count = self.thrown.entry(question).or_default();
        *count += 1;
        mix(mix(self.seed ^ mix(question)) ^ *count)
    }

    /// Whether something happens that happens so many times out of a thousand.
    pub(crate) fn happens(&mut self, question: u64, per_mille: u64) -> bool {
        self.throw(question) % 1000 < per_mille
    }

    /// How long something takes, in milliseconds: mostly little, seldom up to `longest`.
    pub(crate) fn takes(&mut self, question: u64, longest: u64) -> u64 {
        let (kind, length) = (self.throw(question) % 20, self.throw(question));
        match kind {
            0..14 => length % 20,
            14..18 => length % 1500.min(longest),
            _ => length % longest,
        }
    }
}
