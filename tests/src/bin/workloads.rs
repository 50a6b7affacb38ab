//! What `make workloads` executes: real programs on runc and on this runtime, all or those that are named, as a table.
//!
//! ```text
//! workloads ROOT [CASE…]
//! ```

use std::{path::PathBuf, process::ExitCode};

use framework::{
    Error, Result,
    workloads::{self, CASES, Case},
};

fn main() -> ExitCode {
    match run() {
        Ok(0) => ExitCode::SUCCESS,
        Ok(failures) => {
            eprintln!("workloads: {failures} do right on runc and not here");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("workloads: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<usize> {
    let mut arguments = std::env::args().skip(1);
    let root = arguments
        .next()
        .ok_or_else(|| Error::unexpected("the first argument is the root that tests/workloads/root made"))?;
    let names: Vec<String> = arguments.collect();
    let (table, failures) = workloads::run(&PathBuf::from(root), &chosen(&names)?)?;
    print!("{table}");
    Ok(failures)
}

/// The cases of these names; all without a name.
fn chosen(names: &[String]) -> Result<Vec<&'static Case>> {
    if names.is_empty() {
        return Ok(CASES.iter().collect());
    }
    let find = |name: &String| {
        CASES.iter().find(|case| case.name == name).ok_or_else(|| {
            let known: Vec<_> = CASES.iter().map(|case| case.name).collect();
            Error::unexpected(format!("no case {name}: there are {}", known.join(", ")))
        })
    };
    names.iter().map(find).collect()
}
