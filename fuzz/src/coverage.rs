//! What an execution has reached, where the code is compiled with LLVM's counters (`make fuzz`, `--cfg fuzzing`).
//!
//! LLVM gives each edge between basic blocks a byte that is incremented whenever it is taken, and tells where these bytes are
//! (clang's SanitizerCoverage.rst, "Inline 8bit-counters"). How often an edge was taken counts by powers of two, as in AFL
//! (its technical_details.txt): a loop that runs once more is nothing new, one that runs twice as often is.

use std::sync::{Mutex, PoisonError};

/// Counters that are looked at together: a program has a million.
const BLOCK: usize = 1024;
static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// The counters of the program, as LLVM tells of them before `main`.
static COUNTERS: Mutex<Vec<Counters>> = Mutex::new(Vec::new());

/// One program's or library's counters.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Counters {
    start: usize,
    length: usize,
}

impl Counters {
    /// The counters. Only the thread that runs a target looks at them while it does not run.
    #[allow(unsafe_code, reason = "LLVM's counters are memory that it tells of by two addresses")]
    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: LLVM told of this range, which is a section of the program that is never unmapped, and of bytes. The
        // instrumented code writes to it without any reference of Rust's; a count that another thread adds meanwhile is lost at worst.
        unsafe { std::slice::from_raw_parts_mut(self.start as *mut u8, self.length) }
    }
}

/// Called by LLVM's code, once for each object file, before `main`.
#[allow(unsafe_code, reason = "LLVM calls it by this name")]
#[unsafe(no_mangle)]
extern "C" fn __sanitizer_cov_8bit_counters_init(start: *mut u8, stop: *mut u8) {
    let counters = Counters {
        start: start as usize,
        length: (stop as usize).saturating_sub(start as usize),
    };
    let mut all = COUNTERS.lock().unwrap_or_else(PoisonError::into_inner);
    if !all.contains(&counters) {
        all.push(counters);
    }
}

/// Called by LLVM's code with the table of what each counter belongs to, which nobody needs.
#[allow(unsafe_code, reason = "LLVM calls it by this name")]
#[unsafe(no_mangle)]
extern "C" fn __sanitizer_cov_pcs_init(_start: *const usize, _stop: *const usize) {}

pub(crate) struct Coverage {
    counters: Vec<Counters>,
    /// For each counter, a bit for each bucket that it was in.
    seen: Vec<Vec<u8>>,
}

impl Coverage {
    pub(crate) fn new() -> Self {
        let counters = COUNTERS.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let seen = counters.iter().map(|one| vec![0; one.length]).collect();
        Self { counters, seen }
    }

    /// Before an execution: what has run since the last one does not count, such as the mutations.
    pub(crate) fn begin(&mut self) {
        for one in &mut self.counters {
            one.bytes().fill(0);
        }
    }

    /// Takes note of an execution. Whether it has reached something new.
    pub(crate) fn is_new(&mut self) -> bool {
        let mut new = false;
        for (counters, seen) in self.counters.iter_mut().zip(&mut self.seen) {
            let blocks = counters.bytes().chunks_mut(BLOCK).zip(seen.chunks_mut(BLOCK));
            // Nearly all are 0: a block at a time, by the C library, whose code has no counters; then eight at a time.
            for (counters, seen) in blocks.filter(|(counters, _)| **counters != ZEROS[..counters.len()]) {
                let (eights, rest) = counters.as_chunks_mut::<8>();
                let (seen_eights, seen_rest) = seen.as_chunks_mut::<8>();
                for (eight, seen) in eights.iter_mut().zip(seen_eights) {
                    if u64::from_ne_bytes(*eight) != 0 {
                        new |= take(eight, seen);
                    }
                }
                new |= take(rest, seen_rest);
            }
        }
        new
    }

    pub(crate) fn edges(&self) -> usize {
        self.seen.iter().flatten().filter(|buckets| **buckets != 0).count()
    }
}

fn take(counters: &mut [u8], seen: &mut [u8]) -> bool {
    let mut new = false;
    for (counter, seen) in counters.iter_mut().zip(seen) {
        let bucket = bucket(std::mem::take(counter));
        new |= bucket & !*seen != 0;
        *seen |= bucket;
    }
    new
}

/// AFL's buckets: 1, 2, 3, 4 to 7, 8 to 15, 16 to 31, 32 to 127, and more.
fn bucket(count: u8) -> u8 {
    match count {
        0 => 0,
        1 => 1,
        2 => 2,
        3 => 4,
        4..=7 => 8,
        8..=15 => 16,
        16..=31 => 32,
        32..=127 => 64,
        128.. => 128,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_new_by_its_bucket() {
        let mut seen = [0; 3];
        assert!(take(&mut [0, 1, 5], &mut seen));
        assert!(!take(&mut [0, 1, 7], &mut seen));
        assert!(take(&mut [0, 2, 4], &mut seen));
        let mut counters = [9, 0, 0];
        assert!(take(&mut counters, &mut seen));
        assert_eq!(counters, [0; 3]);
    }
}
