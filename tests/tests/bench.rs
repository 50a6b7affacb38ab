//! The benchmark's program says which sections there are. What it measures is not tested.

use std::process::{Command, Output};

use framework::{Error, Result};

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
