//! `make test-kernel`: every fix of the guest kernel, on the kernel that has it and on one without, as a table.
//!
//! ```text
//! kernel-table            every fix
//! kernel-table FIX…       only these
//! kernel-table debug      whether the kernel of `make kernel-debug` has what it is for
//! ```
//!
//! A fix is proven if its tests find the kernel right with it and wrong without it. Tests of AUX areas need a PMU that has
//! one, which is not in the shipped kernel: they run on the variant `control`, the shipped source with a test PMU added.

use std::{env, fmt::Write as _, process::ExitCode};

use framework::{
    Error, Node, Result,
    kernel::{self, Fix, KernelNode, Verdict},
};
use serde_json::{Value, json};

/// What the kernel of `make kernel-debug` is asked for by.
const DEBUG: &str = "debug";
const DEBUG_ANNOTATION: &str = "io.katacontainers.config.runtime.kernel_debug";

/// The outcome of a fix's tests on one kernel.
struct Cell {
    as_expected: bool,
    text: String,
}

fn main() -> ExitCode {
    let wanted: Vec<String> = env::args().skip(1).collect();
    let shown = match wanted.as_slice() {
        [only] if only == DEBUG => debug_kernel(),
        _ => table(&wanted),
    };
    match shown {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("kernel-table: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Prints the table, a row as soon as it is known; true if everything is as expected.
fn table(wanted: &[String]) -> Result<bool> {
    let fixes = fixes(wanted)?;
    let shipped = KernelNode::shipped()?;
    let mut control = None;
    let mut good = true;
    println!("{:<22} {:<24} {:<10} without it", "fix", "test", "shipped");
    for fix in &fixes {
        let without = KernelNode::variant(&fix.id);
        for test in &fix.tests {
            let with = if kernel::needs_test_pmu(test) {
                if control.is_none() {
                    control = Some(KernelNode::variant("control")?);
                }
                control.as_ref().unwrap_or(&shipped)
            } else {
                &shipped
            };
            let with = cell(with.run(test), |verdict| matches!(verdict, Verdict::Right(_)));
            let without = match &without {
                Ok(node) => cell(node.run(test), |verdict| matches!(verdict, Verdict::Wrong(_))),
                Err(error) => Cell {
                    as_expected: false,
                    text: format!("no kernel: {error}"),
                },
            };
            good &= with.as_expected && without.as_expected;
            print!("{}", row(&fix.id, test, &with, &without));
        }
    }
    println!("{}", if good { "all as expected" } else { "NOT AS EXPECTED" });
    Ok(good)
}

/// Whether a pod that asks for it has BTF, fentry and the function tracers, and its modules are found; prints what there is.
fn debug_kernel() -> Result<bool> {
    let node = Node::start()?.quiet();
    let script = "uname -r; ip link add bond7 type bond && grep -c '^bonding ' /proc/modules; guest-probe tracing";
    let mut spec = node
        .spec(DEBUG, &["sh", "-c", script])?
        .annotation(DEBUG_ANNOTATION, "true")?
        .set("/linux/maskedPaths", json!([]))?;
    for set in ["bounding", "effective", "permitted"] {
        for capability in ["CAP_SYS_ADMIN", "CAP_NET_ADMIN"] {
            spec = spec.push(&format!("/process/capabilities/{set}"), capability)?;
        }
    }
    let said = node.run_spec(DEBUG, &spec)?.arg("--rm").ok()?;
    node.nothing_left()?;
    let mut lines = said.lines();
    let (release, modules) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let found: Value = serde_json::from_str(lines.next().unwrap_or_default())
        .map_err(|error| Error::unexpected(format!("{said}: {error}")))?;
    let tracers: Vec<&str> = found["tracers"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let good = release.ends_with("-debug")
        && modules == "1"
        && found["calls"].as_u64() >= Some(10)
        && ["function", "function_graph"]
            .iter()
            .all(|tracer| tracers.contains(tracer));
    println!(
        "{DEBUG:<22} {release}: {found}: {}",
        if good { "as expected" } else { "NOT AS EXPECTED" }
    );
    Ok(good)
}

fn cell(outcome: Result<Verdict>, expected: impl Fn(&Verdict) -> bool) -> Cell {
    match outcome {
        Ok(verdict) => {
            let as_expected = expected(&verdict);
            let text = match verdict {
                Verdict::Right(says) => format!("passes: {says}"),
                Verdict::Wrong(says) => format!("fails: {says}"),
            };
            Cell { as_expected, text }
        }
        Err(error) => Cell {
            as_expected: false,
            text: format!("could not tell: {error}"),
        },
    }
}

fn row(fix: &str, test: &str, with: &Cell, without: &Cell) -> String {
    let short = |cell: &Cell| {
        let word = cell.text.split(':').next().unwrap_or_default().to_owned();
        if cell.as_expected { word } else { format!("{word} !!") }
    };
    let mut row = format!("{fix:<22} {test:<24} {:<10} {}\n", short(with), short(without));
    for (name, cell) in [("with", with), ("without", without)] {
        let said = cell.text.split_once(": ").map_or("", |(_, said)| said);
        // Writing to a string cannot fail.
        let _ = writeln!(row, "    {name}: {said}");
    }
    row
}

/// The fixes of the table, or those wanted, which must be in it.
fn fixes(wanted: &[String]) -> Result<Vec<Fix>> {
    let all = kernel::fixes()?;
    if let Some(unknown) = wanted.iter().find(|id| all.iter().all(|fix| fix.id != **id)) {
        return Err(Error::unexpected(format!("the table of fixes has no {unknown}")));
    }
    Ok(all
        .into_iter()
        .filter(|fix| wanted.is_empty() || wanted.contains(&fix.id))
        .collect())
}
