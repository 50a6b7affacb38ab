//! Mutations of a corpus: what decoders get wrong, more often than chance would have it.

/// Bytes and numbers at which lengths and counts go wrong.
const NUMBERS: [u64; 14] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x7fff,
    0x8000,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    u64::MAX,
];

/// Texts at which readers of numbers, JSON, TOML and lines go wrong.
const TEXTS: [&str; 24] = [
    "0",
    "-1",
    "1e999",
    "18446744073709551616",
    "9223372036854775807",
    "0x7fffffffffffffff",
    "null",
    "true",
    "\"\"",
    "{}",
    "[]",
    "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    "\\u0000",
    "\\ud800",
    "\u{fffd}",
    "\n",
    "\r\n",
    "\0",
    " ",
    "/../",
    "%s%n",
    "=",
    ",",
    ":",
];

/// Inputs that count as the last.
const LAST: usize = 8;

/// Makes inputs out of a pool of them, which is the corpus at first, decided by a seed.
pub(crate) struct Mutator {
    state: u64,
    pool: Vec<Vec<u8>>,
    /// The last one is gone through first.
    walks: Vec<Walk>,
    walks_next: bool,
    longest: usize,
}

/// Bytes of an input that are gone through.
const WALKED: usize = 64;

/// Goes through the bytes of an input, and gives each every value: what is compared with a byte is met so, which chance does
/// once in 256 times the input's length.
struct Walk {
    input: Vec<u8>,
    at: usize,
    value: u8,
}

impl Walk {
    fn next(&mut self) -> Option<Vec<u8>> {
        if self.at >= WALKED {
            return None;
        }
        let mut input = self.input.clone();
        *input.get_mut(self.at)? = self.value;
        self.value = self.value.wrapping_add(1);
        if self.value == 0 {
            self.at += 1;
        }
        Some(input)
    }
}

impl Mutator {
    pub(crate) fn new(seed: u64, corpus: &[Vec<u8>], longest: usize) -> Self {
        Self {
            // Not 0, from which the generator would not come away.
            state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            pool: corpus.to_vec(),
            walks: Vec::new(),
            walks_next: false,
            longest,
        }
    }

    /// xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift generators", 2016).
    fn random(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Less than `bound`, which may be 0.
    fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound.max(1)).unwrap_or(u64::MAX);
        usize::try_from(self.random() % bound).unwrap_or(0)
    }

    /// Adds an input to those that others are made of. Every other input goes through its bytes first.
    pub(crate) fn keep(&mut self, input: Vec<u8>) {
        self.walks.push(Walk {
            input: input.clone(),
            at: 0,
            value: 0,
        });
        self.pool.push(input);
    }

    fn walk(&mut self) -> Option<Vec<u8>> {
        self.walks_next = !self.walks_next;
        while self.walks_next && !self.walks.is_empty() {
            let input = self.walks.last_mut().and_then(Walk::next);
            if input.is_some() {
                return input;
            }
            self.walks.pop();
        }
        None
    }

    /// Inputs that others are made of.
    pub(crate) fn kept(&self) -> usize {
        self.pool.len()
    }

    /// Every other time one of the last: what has just been found has had few successors.
    fn pick(&mut self) -> Vec<u8> {
        let few = match self.below(2) {
            0 => self.pool.len().min(LAST),
            _ => self.pool.len(),
        };
        let index = self.pool.len() - few + self.below(few);
        self.pool.get(index).cloned().unwrap_or_default()
    }

    /// The next input: one of the pool with one mutation, or with up to eight.
    pub(crate) fn input(&mut self) -> Vec<u8> {
        if let Some(input) = self.walk() {
            return input;
        }
        let mut input = self.pick();
        let more = match self.below(2) {
            0 => 0,
            _ => self.below(8),
        };
        for _ in 0..=more {
            self.mutate(&mut input);
        }
        input.truncate(self.longest);
        input
    }

    fn mutate(&mut self, input: &mut Vec<u8>) {
        let at = self.below(input.len() + 1);
        let length = self.below(input.len() - at.min(input.len()) + 1).min(64);
        match self.below(9) {
            0 => {
                let bit = self.below(8);
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << bit;
                }
            }
            1 => {
                let value = self.random().to_le_bytes()[0];
                if let Some(byte) = input.get_mut(at) {
                    *byte = value;
                }
            }
            2 => {
                input.drain(at..at + length);
            }
            3 => {
                let copy = input[at..at + length].to_vec();
                input.splice(at..at, copy);
            }
            4 => input.truncate(at),
            5 => {
                let number = self.number();
                let end = (at + number.len()).min(input.len());
                input.splice(at..end, number);
            }
            6 => {
                let text = TEXTS[self.below(TEXTS.len())];
                input.splice(at..at + length, text.bytes());
            }
            7 => {
                let other = self.pick();
                let from = self.below(other.len() + 1);
                input.splice(at.., other[from..].iter().copied());
            }
            _ => {
                let bytes = self.random().to_le_bytes();
                let count = self.below(bytes.len()) + 1;
                input.splice(at..at, bytes.into_iter().take(count));
            }
        }
    }

    /// One of [`NUMBERS`] in 1, 2, 4 or 8 bytes, of either order.
    fn number(&mut self) -> Vec<u8> {
        let number = NUMBERS[self.below(NUMBERS.len())];
        let width = 1 << self.below(4);
        match self.below(2) {
            0 => number.to_le_bytes()[..width].to_vec(),
            _ => number.to_be_bytes()[8 - width..].to_vec(),
        }
    }
}
