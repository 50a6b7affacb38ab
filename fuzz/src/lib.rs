//! Runs a parser of foreign bytes on the corpus that is kept for it, and on mutations of the corpus.
//!
//! A parser's own tests call [`run`], so that nothing has to be public for it. `make test` does some thousands of executions of
//! each, `make fuzz` a million. The mutations follow from a seed: a failure comes again. `make fuzz` compiles the code with counters
//! ([`coverage`]): an input that reaches something new is mutated further (docs/decisions/0050-fuzzing.md).
//!
//! It knows no parser.

#[cfg(fuzzing)]
mod coverage;
#[cfg(not(fuzzing))]
#[path = "no_coverage.rs"]
mod coverage;
mod mutate;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use coverage::Coverage;
use mutate::Mutator;

/// Executions of one target where `FUZZ_EXECUTIONS` does not say another number.
const EXECUTIONS: u64 = 5_000;

/// Longest input, in bytes.
const LONGEST: usize = 4096;

/// An execution that takes longer has failed: inputs are short, and the machine is slow at worst.
const SLOW: Duration = Duration::from_secs(5);

/// Prints the input if the target panics with it.
struct Culprit<'a> {
    name: &'a str,
    execution: u64,
    input: &'a [u8],
}

impl Drop for Culprit<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let hex: String = self.input.iter().map(|byte| format!("{byte:02x}")).collect();
            eprintln!("{} fails at execution {} with {hex}", self.name, self.execution);
            eprintln!("{:?}", String::from_utf8_lossy(self.input));
        }
    }
}

/// Gives a target every file of `fuzz/corpus/NAME`, and then `FUZZ_EXECUTIONS` mutations of them, that `FUZZ_SEED` decides on. A target
/// fails if it panics, or takes longer than five seconds. Inputs that reach something new are written to `FUZZ_KEEP/NAME`, if it is set.
///
/// # Panics
/// As the target does; if it is slow; and if there is no corpus.
pub fn run(name: &str, target: impl Fn(&[u8])) {
    let corpus = corpus(&Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name));
    assert!(!corpus.is_empty(), "there is no corpus of {name}");
    let number = |variable: &str| std::env::var(variable).ok().and_then(|text| text.parse().ok());
    let executions = number("FUZZ_EXECUTIONS").unwrap_or(EXECUTIONS);
    let keep = std::env::var_os("FUZZ_KEEP").map(|directory| PathBuf::from(directory).join(name));
    let mut mutator = Mutator::new(number("FUZZ_SEED").unwrap_or(1), &corpus, LONGEST);
    let mut coverage = Coverage::new();
    for (execution, input) in (0..).zip(&corpus) {
        coverage.begin();
        one(name, execution, input, &target);
        coverage.is_new();
    }
    let known = coverage.edges();
    for execution in 0..executions {
        let input = mutator.input();
        coverage.begin();
        one(name, execution, &input, &target);
        if coverage.is_new() {
            if let Some(directory) = &keep {
                write(directory, &input);
            }
            mutator.keep(input);
        }
    }
    if cfg!(fuzzing) {
        let (edges, inputs) = (coverage.edges(), mutator.kept() - corpus.len());
        eprintln!("{name}: {edges} edges, {known} of them by the corpus; {inputs} new inputs");
    }
}

/// One file for each input, as a corpus has them.
fn write(directory: &Path, input: &[u8]) {
    // FNV-1a (draft-eastlake-fnv): a name that the same input always has.
    let name = input.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    });
    let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
    let path = directory.join(format!("{name:016x}.hex"));
    let written = std::fs::create_dir_all(directory).and_then(|()| std::fs::write(&path, hex));
    if let Err(error) = written {
        eprintln!("{} cannot be written: {error}", path.display());
    }
}

fn one(name: &str, execution: u64, input: &[u8], target: &impl Fn(&[u8])) {
    let _culprit = Culprit { name, execution, input };
    let began = Instant::now();
    target(input);
    assert!(began.elapsed() < SLOW, "{name} takes {:?}", began.elapsed());
}

/// The files of a directory in the order of their names. One that ends with `.hex` is hexadecimal, for what is no text.
fn corpus(directory: &Path) -> Vec<Vec<u8>> {
    let entries = std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(Result::ok);
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    let read = |path: &PathBuf| {
        let bytes = std::fs::read(path).unwrap_or_default();
        match path.extension().is_some_and(|extension| extension == "hex") {
            true => unhex(&bytes),
            false => bytes,
        }
    };
    paths.iter().map(read).collect()
}

fn unhex(text: &[u8]) -> Vec<u8> {
    let digits: Vec<u8> = text
        .iter()
        .filter_map(|digit| char::from(*digit).to_digit(16))
        .filter_map(|digit| u8::try_from(digit).ok())
        .collect();
    digits
        .chunks_exact(2)
        .map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn hexadecimal_is_bytes() {
        assert_eq!(unhex(b"00 ff\n7f"), [0, 255, 127]);
    }

    #[test]
    fn every_input_is_bounded_and_one_seed_gives_the_same_again() {
        let corpus = vec![b"{\"a\": 12}".to_vec(), vec![0; 5000]];
        let all = |seed| {
            let mut mutator = Mutator::new(seed, &corpus, LONGEST);
            (0..2000).map(|_| mutator.input()).collect::<Vec<_>>()
        };
        let inputs = all(7);
        assert!(inputs.iter().all(|input| input.len() <= LONGEST));
        assert_eq!(inputs, all(7));
        assert_ne!(inputs, all(8));
        let different: BTreeSet<_> = inputs.iter().collect();
        assert!(different.len() > 1500, "{}", different.len());
    }

    /// Without feedback it would take 2^32 executions for the four bytes.
    #[cfg(fuzzing)]
    #[test]
    fn a_fault_behind_four_comparisons_is_found_by_what_was_reached() {
        let corpus = [b"magic=0000".to_vec()];
        let mut mutator = Mutator::new(1, &corpus, LONGEST);
        let mut coverage = Coverage::new();
        let found = (0..100_000).any(|_| {
            let input = mutator.input();
            coverage.begin();
            let found = reaches(&input);
            if coverage.is_new() {
                mutator.keep(input);
            }
            found
        });
        assert!(found, "{} inputs were kept", mutator.kept());
    }

    #[cfg(fuzzing)]
    #[inline(never)]
    fn reaches(input: &[u8]) -> bool {
        if input.first() == Some(&0xd1) {
            if input.get(1) == Some(&0x5e) {
                if input.get(2) == Some(&0xa5) {
                    return input.get(3) == Some(&0x17);
                }
            }
        }
        false
    }

    #[test]
    fn what_is_kept_is_read_as_a_corpus() {
        let directory = std::env::temp_dir().join(format!("tatami-fuzz-{}", std::process::id()));
        write(&directory, &[0, 255, 7]);
        write(&directory, &[0, 255, 7]);
        assert_eq!(corpus(&directory), [[0, 255, 7]]);
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn a_fault_that_one_byte_hides_is_found() {
        let corpus = [b"length=00".to_vec()];
        let found = RefCell::new(false);
        let mut mutator = Mutator::new(1, &corpus, LONGEST);
        for _ in 0..20_000 {
            let input = mutator.input();
            if input.starts_with(b"length=") && input.get(7) == Some(&0xff) {
                found.replace(true);
            }
        }
        assert!(found.into_inner());
    }
}
