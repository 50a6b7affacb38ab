//! The two columns: what each runtime makes of each case, and the same list as docs/oci.md has it.

use std::{collections::BTreeMap, fmt::Write as _};

use super::{
    bench::Bench,
    case::{Group, Seen},
    suite::groups,
};
use crate::{Result, Runtime};

/// What a runtime made of a case: right, or what was seen instead.
pub type Column = std::result::Result<(), String>;

#[derive(Debug)]
pub struct Row {
    pub name: &'static str,
    pub runc: Column,
    pub ours: Column,
}

impl Row {
    /// The line, and below it what was wrong.
    pub fn text(&self) -> String {
        let word = |column: &Column| if column.is_ok() { "pass" } else { "FAIL" };
        let mut text = format!("{:<44} {:<6} {}\n", self.name, word(&self.runc), word(&self.ours));
        for (runtime, column) in [("runc", &self.runc), ("ours", &self.ours)] {
            if let Err(seen) = column {
                // Writing to a string cannot fail.
                let _ = writeln!(text, "    {runtime}: {}", one_line(seen));
            }
        }
        text
    }
}

fn one_line(text: &str) -> String {
    let words: Vec<_> = text.split_whitespace().collect();
    words.join(" ").chars().take(600).collect()
}

/// Runs the groups whose name, or the name of one of whose cases, has one of the wanted texts in it, or all if none is wanted. `tell` is
/// told each line. The answer is the lines.
///
/// # Errors
/// There is no containerd, or something is left behind.
pub fn run(wanted: &[String], mut tell: impl FnMut(&Row)) -> Result<Vec<Row>> {
    let has = |text: &str| wanted.is_empty() || wanted.iter().any(|wanted| text.contains(wanted.as_str()));
    let is_wanted = |group: &&Group| has(group.name) || group.cases.iter().any(|case| has(case.name));
    let (runc, ours) = (Bench::start(Runtime::Runc)?, Bench::start(Runtime::Kata)?);
    let mut rows = Vec::new();
    for group in groups().filter(is_wanted) {
        let seen = [look(&runc, group), look(&ours, group)];
        for case in group.cases {
            let [runc, ours] = seen.each_ref().map(|seen| seen.column(case.name));
            let row = Row {
                name: case.name,
                runc,
                ours,
            };
            tell(&row);
            rows.push(row);
        }
    }
    ours.end()?;
    if let Err(error) = runc.end() {
        eprintln!("runc: {error}");
    }
    Ok(rows)
}

/// What was seen of a group, and why it came to no end if it did not.
struct Looked {
    seen: Seen,
    failed: Option<String>,
}

impl Looked {
    fn column(&self, case: &str) -> Column {
        self.seen.of(case).map_err(|wrong| match &self.failed {
            Some(failed) => format!("{wrong}: {failed}"),
            None => wrong,
        })
    }
}

fn look(bench: &Bench, group: &Group) -> Looked {
    let mut seen = Seen::default();
    let done = bench.ready().and_then(|()| (group.run)(bench, &mut seen));
    Looked {
        seen,
        failed: done.err().map(|error| error.to_string()),
    }
}

/// The list as docs/oci.md has it: the originals, and our cases in the spirit of each.
pub fn documented() -> String {
    let mut rows: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for case in groups().flat_map(|group| group.cases) {
        for original in case.like.split("; ") {
            rows.entry(original).or_default().push(format!("`{}`", case.name));
        }
    }
    let mut text = String::from("| original | ours |\n|---|---|\n");
    for (original, cases) in rows {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "| {original} | {} |", cases.join(", "));
    }
    text
}
