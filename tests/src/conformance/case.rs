//! Cases, their groups, and what was seen of them.

use std::fmt::{Debug, Display};

use super::bench::Bench;
use crate::Result;

#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub name: &'static str,
    /// The suites' names of the like: files of runc's `tests/integration`, of runtime-tools' `validation`, of youki's `contest`.
    pub like: &'static str,
}

/// Cases that are looked at together.
pub struct Group {
    /// For choosing it on the command line.
    pub name: &'static str,
    /// What it answers for.
    pub cases: &'static [Case],
    pub run: fn(&Bench, &mut Seen) -> Result<()>,
}

pub(super) const fn case(name: &'static str, like: &'static str) -> Case {
    Case { name, like }
}

/// What came of a group's cases: for each what was seen instead, if it was not right.
#[derive(Debug, Default)]
pub struct Seen(Vec<(String, std::result::Result<(), String>)>);

impl Seen {
    /// A case is right if both are the same.
    // Values, as assert_eq has them: callers compare what they have just read.
    #[allow(clippy::needless_pass_by_value)]
    pub fn same<T: PartialEq<U> + Debug, U: Debug>(&mut self, case: &str, got: T, wanted: U) {
        let right = got == wanted;
        self.note(case, right, || format!("{got:?} instead of {wanted:?}"));
    }

    /// A case is right if this holds; what was seen is shown otherwise.
    pub fn holds(&mut self, case: &str, right: bool, seen: impl Display) {
        self.note(case, right, || seen.to_string());
    }

    /// A case is right if the text has this part.
    pub fn has(&mut self, case: &str, text: &str, part: &str) {
        self.note(case, text.contains(part), || format!("no {part:?} in {text:?}"));
    }

    fn note(&mut self, case: &str, right: bool, seen: impl FnOnce() -> String) {
        let outcome = if right { Ok(()) } else { Err(seen()) };
        self.0.push((case.to_owned(), outcome));
    }

    /// The outcome of a case: wrong if any look at it was, or if there was none.
    pub(super) fn of(&self, case: &str) -> std::result::Result<(), String> {
        let mut looks = self.0.iter().filter(|(name, _)| name == case).peekable();
        if looks.peek().is_none() {
            return Err("it was not looked at".to_owned());
        }
        looks.try_for_each(|(_, outcome)| outcome.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_that_nobody_looked_at_or_that_was_once_wrong_is_wrong() {
        let mut seen = Seen::default();
        seen.same("a", 1, 1);
        seen.holds("b", true, "");
        seen.has("b", "text", "other");
        assert!(seen.of("a").is_ok() && seen.of("b").is_err() && seen.of("c").is_err());
    }
}
