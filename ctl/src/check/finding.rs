//! The result of a check: one line, with the consequence and the remedy only if there is a problem.

use std::fmt::{self, Write as _};

use crate::report::Report;

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) what: &'static str,
    pub(crate) found: String,
    pub(crate) verdict: Verdict,
}

/// Whether it is as it should be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Ok,
    /// It works, but not as it should.
    Warn(Advice),
    Fail(Advice),
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Advice {
    consequence: String,
    remedy: String,
}

impl Finding {
    pub(super) fn ok(what: &'static str, found: impl Into<String>) -> Self {
        Self {
            what,
            found: found.into(),
            verdict: Verdict::Ok,
        }
    }

    pub(super) fn warn(
        what: &'static str,
        found: impl Into<String>,
        consequence: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let advice = Advice {
            consequence: consequence.into(),
            remedy: remedy.into(),
        };
        Self {
            what,
            found: found.into(),
            verdict: Verdict::Warn(advice),
        }
    }

    pub(super) fn fail(what: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        let advice = Advice {
            consequence: "no sandbox can start".to_owned(),
            remedy: remedy.into(),
        };
        Self {
            what,
            found: found.into(),
            verdict: Verdict::Fail(advice),
        }
    }

    /// Whether it keeps sandboxes from starting.
    pub(crate) fn failed(&self) -> bool {
        matches!(self.verdict, Verdict::Fail(_))
    }

    /// The line, its verdict in colour.
    pub(crate) fn coloured(&self) -> String {
        let (colour, word) = match self.verdict {
            Verdict::Ok => (32, "ok  "),
            Verdict::Warn(_) => (33, "warn"),
            Verdict::Fail(_) => (31, "fail"),
        };
        // SGR (ECMA-48): 32 green, 33 yellow, 31 red.
        format!("\x1b[{colour}m{word}\x1b[0m  {}", self.body())
    }

    fn body(&self) -> String {
        match &self.verdict {
            Verdict::Ok => format!("{}: {}", self.what, self.found),
            Verdict::Warn(advice) | Verdict::Fail(advice) => {
                format!(
                    "{}: {}; {}; {}",
                    self.what, self.found, advice.consequence, advice.remedy
                )
            }
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.verdict {
            Verdict::Ok => "ok  ",
            Verdict::Warn(_) => "warn",
            Verdict::Fail(_) => "fail",
        };
        write!(f, "{word}  {}", self.body())
    }
}

/// All of them, one line each, in colour or not.
pub(super) fn render(findings: &[Finding], colours: bool) -> Report {
    let mut text = String::new();
    for finding in findings {
        // Writing to a String cannot fail.
        let _ = match colours {
            true => writeln!(text, "{}", finding.coloured()),
            false => writeln!(text, "{finding}"),
        };
    }
    let good = !findings.iter().any(Finding::failed);
    Report { text, good }
}
