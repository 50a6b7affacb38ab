//! What came of the cases, as a table in Markdown.

use std::fmt::Write as _;

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Step {
    pub(super) name: String,
    pub(super) seconds: f64,
}

/// A case on both runtimes: its steps, or why it is not right.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) case: &'static str,
    pub(super) runc: Result<Vec<Step>, String>,
    pub(super) ours: Result<Vec<Step>, String>,
}

impl Outcome {
    /// Whether it is wrong here and right on runc.
    pub(super) fn is_failure(&self) -> bool {
        self.ours.is_err() && self.runc.is_ok()
    }

    fn verdict(&self) -> &'static str {
        match (&self.runc, &self.ours) {
            (Ok(_), Ok(_)) => "right",
            (Ok(_), Err(_)) => "**wrong**",
            (Err(_), Ok(_)) => "right; fails on runc on this machine",
            (Err(_), Err(_)) => "fails on runc too",
        }
    }
}

/// The table: a line for each step, with the seconds on both and their ratio.
pub(super) fn markdown(outcomes: &[Outcome]) -> String {
    let mut text = String::from("| program | step | runc, s | here, s | ratio | |\n|---|---|---|---|---|---|\n");
    for outcome in outcomes {
        let steps = |of: &Result<Vec<Step>, String>| of.clone().unwrap_or_default();
        let (runc, ours) = (steps(&outcome.runc), steps(&outcome.ours));
        let longer = if ours.len() >= runc.len() { &ours } else { &runc };
        let names: Vec<&str> = longer.iter().map(|step| step.name.as_str()).collect();
        let verdict = outcome.verdict();
        if names.is_empty() {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "| {} | | | | | {verdict} |", outcome.case);
        }
        for (number, name) in names.iter().enumerate() {
            let of = |steps: &[Step]| steps.iter().find(|step| step.name == *name).map(|step| step.seconds);
            let (floor, value) = (of(&runc), of(&ours));
            let ratio = floor.zip(value).map(|(floor, value)| value / floor);
            let shown =
                |number: Option<f64>, digits: usize| number.map_or_else(String::new, |n| format!("{n:.digits$}"));
            let (case, verdict) = if number == 0 { (outcome.case, verdict) } else { ("", "") };
            let (floor, value, ratio) = (shown(floor, 2), shown(value, 2), shown(ratio, 1));
            let _ = writeln!(text, "| {case} | {name} | {floor} | {value} | {ratio} | {verdict} |");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(name: &str, seconds: f64) -> Step {
        Step {
            name: name.to_owned(),
            seconds,
        }
    }

    #[test]
    fn a_step_has_its_ratio_and_a_case_its_verdict_once() {
        let outcome = Outcome {
            case: "redis",
            runc: Ok(vec![step("start", 0.5), step("set", 2.0)]),
            ours: Ok(vec![step("start", 1.0), step("set", 3.0)]),
        };
        assert!(!outcome.is_failure());
        let table = markdown(&[outcome]);
        let lines: Vec<_> = table.lines().skip(2).collect();
        assert_eq!(lines[0], "| redis | start | 0.50 | 1.00 | 2.0 | right |");
        assert_eq!(lines[1], "|  | set | 2.00 | 3.00 | 1.5 |  |");
    }

    #[test]
    fn what_fails_on_runc_too_is_no_failure_of_ours() {
        let failed = || Err(String::from("exit code 1"));
        let outcome = |runc, ours| Outcome { case: "x", runc, ours };
        assert!(outcome(Ok(vec![step("a", 1.0)]), failed()).is_failure());
        let both = outcome(failed(), failed());
        assert!(!both.is_failure());
        assert!(markdown(&[both]).ends_with("| x | | | | | fails on runc too |\n"));
    }
}
