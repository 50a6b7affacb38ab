//! Real programs on both runtimes, in one containerd: whether they do right, and what it costs.
//!
//! A case is a script in `tests/workloads/` that checks what it does and measures its steps (`lib.sh` there), or a function that
//! drives a container from outside. The container's root is the Debian root that `tests/workloads/root` made, below an overlay of its own.

mod case;
mod cases;
mod container;
mod driven;
mod root;
mod table;

use std::path::Path;

pub use self::{case::Case, cases::CASES};
use self::{
    container::Container,
    table::{Outcome, Step},
};
use crate::{Error, Node, Result, Runtime};

/// Runs cases on both runtimes; gives the table as Markdown, and how many cases fail here and not on runc.
///
/// # Errors
/// containerd cannot be started, or something is left on the machine.
pub fn run(debian: &Path, cases: &[&Case]) -> Result<(String, usize)> {
    let mut node = Node::start_runtime(Runtime::Kata)?.quiet();
    let mut outcomes = Vec::new();
    for case in cases {
        let mut both = Vec::new();
        for runtime in [Runtime::Runc, Runtime::Kata] {
            eprintln!("running: {} on {}", case.name, runtime.name());
            node.switch(runtime);
            let steps = one(&node, debian, case);
            if let Err(error) = &steps {
                eprintln!("{} fails on {}: {error}", case.name, runtime.name());
            }
            both.push(steps.map_err(|error| error.to_string()));
        }
        let ours = both.pop().unwrap_or_else(|| Err(String::new()));
        let runc = both.pop().unwrap_or_else(|| Err(String::new()));
        outcomes.push(Outcome {
            case: case.name,
            runc,
            ours,
        });
    }
    node.nothing_left()?;
    let failures = outcomes.iter().filter(|outcome| outcome.is_failure()).count();
    Ok((table::markdown(&outcomes), failures))
}

/// Runs one case on the node's runtime and removes what it made.
fn one(node: &Node, debian: &Path, case: &Case) -> Result<Vec<Step>> {
    let container = Container::new(node, debian, case.name)?;
    let done = (case.run)(&container, case);
    let cleared = container.clear();
    let steps = done?;
    cleared?;
    if steps.is_empty() {
        return Err(Error::unexpected(format!("{} measured nothing", case.name)));
    }
    Ok(steps)
}
