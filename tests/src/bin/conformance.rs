//! `make conformance`: what runc's, runtime-tools' and youki's suites ask, on runc and here, as a table.
//!
//! ```text
//! conformance             every case
//! conformance TEXT…       the groups whose name, or a case's name, has one of these in it
//! conformance --list      the cases and their originals, as docs/oci.md has them
//! ```
//!
//! The exit code is 1 if ours is not what a case says. What runc does not pass is for reading: an older runc, or a host that grants less.

use std::{env, process::ExitCode};

use framework::conformance::{documented, run};

fn main() -> ExitCode {
    let wanted: Vec<String> = env::args().skip(1).collect();
    if wanted.iter().any(|word| word == "--list") {
        print!("{}", documented());
        return ExitCode::SUCCESS;
    }
    println!("{:<44} {:<6} ours", "case", "runc");
    let rows = match run(&wanted, |row| print!("{}", row.text())) {
        Ok(rows) => rows,
        Err(error) => {
            eprintln!("conformance: {error}");
            return ExitCode::FAILURE;
        }
    };
    let right = |rows: usize, all: usize| format!("{rows} of {all}");
    let ours = rows.iter().filter(|row| row.ours.is_ok()).count();
    let runc = rows.iter().filter(|row| row.runc.is_ok()).count();
    println!("runc: {}, ours: {}", right(runc, rows.len()), right(ours, rows.len()));
    if ours == rows.len() && !rows.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
