//! The benchmark's program: what it prints for programs can be read, and it says which sections there are. What it
//! measures is not tested.

use std::process::{Command, Output};

use framework::{Error, Result};
use serde_json::Value;

fn bench(arguments: &[&str]) -> Result<Output> {
    Command::new(env!("CARGO_BIN_EXE_bench"))
        .args(arguments)
        .output()
        .map_err(Error::io("running bench"))
}

#[test]
fn an_unknown_section_or_option_is_refused_with_those_that_there_are() -> Result<()> {
    for (argument, expected) in [
        (
            "nothing",
            "no section nothing: there are start, memory, streams, virtio-fs",
        ),
        ("--xml", "unknown option --xml"),
    ] {
        let output = bench(&[argument])?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success());
        assert!(said.contains(expected), "{said}");
    }
    Ok(())
}

/// Our runtime's sandboxes alone have what the sections look at.
mod kata_only {
    use super::*;

    #[test]
    fn a_section_by_name_gives_rows_that_programs_can_read_and_leaves_nothing() -> Result<()> {
        let output = bench(&["--json", "streams"])?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        let rows: Value = serde_json::from_slice(&output.stdout)?;
        let rows = rows.as_array().cloned().unwrap_or_default();
        assert_eq!(rows.len(), 3, "{rows:?}");
        for row in rows {
            assert_eq!(row["section"], "streams");
            assert!(row["what"].is_string() && row["unit"].is_string(), "{row}");
            for figure in ["value", "floor", "ratio", "n"] {
                assert!(row[figure].as_f64().is_some_and(|figure| figure > 0.0), "{row}");
            }
        }
        Ok(())
    }
}
