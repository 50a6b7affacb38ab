//! What `make bench` executes: every section of the benchmark, or those that are named, as one table.
//!
//! ```text
//! bench [--json] [SECTION…]
//! ```

use std::process::ExitCode;

use framework::{
    Error, Result,
    bench::{Host, MORE_SECTIONS, SECTIONS, Section, human, json},
};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (options, names): (Vec<_>, Vec<_>) = arguments.iter().partition(|word| word.starts_with('-'));
    if let Some(other) = options.iter().find(|option| **option != "--json") {
        return Err(Error::unexpected(format!(
            "unknown option {other}: it takes --json and names of sections"
        )));
    }
    let sections = chosen(&names)?;
    let host = Host::start()?;
    let mut table = Vec::new();
    for (name, section) in sections {
        eprintln!("measuring: {name}");
        table.push((name, section(&host)?));
    }
    host.finish()?;
    if options.is_empty() {
        print!("{}", human(&table));
    } else {
        println!("{:#}", json(&table));
    }
    Ok(())
}

/// The sections of these names; all without a name.
fn chosen(names: &[&String]) -> Result<Vec<(&'static str, Section)>> {
    if names.is_empty() {
        return Ok(SECTIONS.to_vec());
    }
    let find = |name: &&String| {
        let found = SECTIONS
            .iter()
            .chain(MORE_SECTIONS)
            .find(|(known, _)| known == name)
            .copied();
        found.ok_or_else(|| {
            let known: Vec<_> = SECTIONS.iter().chain(MORE_SECTIONS).map(|(name, _)| *name).collect();
            Error::unexpected(format!("no section {name}: there are {}", known.join(", ")))
        })
    };
    names.iter().map(find).collect()
}
