//! The core against a simulated guest, host, VMM and client. Whatever they do, and whenever, what [`check`] says must hold.
//!
//! A history is made from one number: what clients ask and when ([`script`]), how long each piece of work takes and what becomes of it
//! ([`world`], [`guest`]). `TATAMI_HISTORIES` says how many histories are run, `TATAMI_SEED` runs one and prints it. A history that
//! fails is shortened, as far as it still fails, and printed with its seed.
// A test fails by a panic, in its helpers, too.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod check;
mod dice;
mod guest;
mod script;
mod world;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use script::Script;
use world::World;

/// Histories in an ordinary run of the tests.
const HISTORIES: u64 = 100_000;

/// After so many a line says how far a run is.
const SHOWN: u64 = 100_000;

/// What went wrong, and all that happened until then.
struct Failure {
    what: String,
    history: Vec<String>,
}

fn fails(script: &Script, logs: bool) -> Option<Failure> {
    let mut world = World::new(script, logs);
    let what = world.run().err()?;
    let history = world.history();
    Some(Failure { what, history })
}

/// Leaves out what the failure does not need.
fn shorten(mut script: Script) -> Script {
    loop {
        let mut shorter = (0..script.len()).map(|at| script.without(at));
        match shorter.find(|shorter| fails(shorter, false).is_some()) {
            Some(shorter) => script = shorter,
            None => return script,
        }
    }
}

fn fail(seed: u64) -> ! {
    let script = shorten(Script::of(seed));
    let failure = fails(&script, true).expect("it has just failed");
    panic!(
        "seed {seed}: {}\nasked:\n{script}\nhistory:\n  {}",
        failure.what,
        failure.history.join("\n  ")
    );
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn whatever_happens_and_whenever_nothing_is_forgotten_told_twice_or_left_unanswered() {
    if let Some(seed) = number("TATAMI_SEED") {
        if fails(&Script::of(seed), false).is_some() {
            fail(seed);
        }
        return;
    }
    let histories = number("TATAMI_HISTORIES").unwrap_or(HISTORIES);
    let began = Instant::now();
    let next = AtomicU64::new(0);
    let first_failure = AtomicU64::new(u64::MAX);
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= histories.min(first_failure.load(Ordering::Relaxed)) {
                        return;
                    }
                    if seed > 0 && seed.is_multiple_of(SHOWN) {
                        eprintln!("histories: {seed} of {histories} after {} s", began.elapsed().as_secs());
                    }
                    if fails(&Script::of(seed), false).is_some() {
                        first_failure.fetch_min(seed, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let first = first_failure.into_inner();
    if first != u64::MAX {
        fail(first);
    }
}
