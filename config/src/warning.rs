//! Settings that were read but have no effect, and the reasons.

use std::fmt;
use std::path::PathBuf;

use crate::installation::Replacement;

/// Where a setting was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a file.
    File {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// Somewhere in the files.
    Files {
        /// The first of them.
        first: PathBuf,
    },
    /// In an annotation of the container.
    Annotation,
}

/// A setting without effect, or with another than it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// Where it was written.
    pub place: Place,
    /// Table and key, or the annotation.
    pub key: String,
    /// Why it has no effect.
    pub reason: Reason,
}

/// Why a setting has no effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// Kata has it, we do not.
    Unsupported(&'static str),
    /// It has another effect than in Kata, or none without another key.
    Differs(&'static str),
    /// Something else is used.
    Replaced(Vec<Replacement>),
    /// It has its effect: less stands between the guest and the host than by default. Key and value, and what is missing.
    Weakens(Vec<(&'static str, &'static str)>),
    /// Neither Kata nor this runtime has the key.
    Unknown {
        /// The name that is most like it.
        nearest: Option<&'static str>,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::File { path, line } => write!(f, "{}:{line}: ", path.display())?,
            Place::Files { first } => write!(f, "{}: ", first.display())?,
            Place::Annotation => f.write_str("annotation ")?,
        }
        match &self.reason {
            Reason::Unsupported(why) => write!(f, "{} is not supported and has no effect: {why}", self.key),
            Reason::Differs(how) => write!(f, "{}: {how}", self.key),
            Reason::Replaced(replaced) => {
                let one = |one: &Replacement| {
                    let (written, used) = (one.written.display(), one.used.display());
                    format!("{used} is used in the place of {} {written}, {}", one.key, one.why)
                };
                let all: Vec<_> = replaced.iter().map(one).collect();
                write!(f, "{}: {}", self.key, all.join("; "))
            }
            Reason::Weakens(keys) => {
                let all: Vec<_> = keys.iter().map(|(key, what)| format!("{key}: {what}")).collect();
                write!(
                    f,
                    "{}: less confined than by default ({}); Kata's files say that because it is Kata's default: without these \
                     keys the default holds",
                    self.key,
                    all.join("; ")
                )
            }
            Reason::Unknown { nearest: Some(nearest) } => {
                write!(f, "{} is unknown and has no effect; did you mean {nearest}?", self.key)
            }
            Reason::Unknown { nearest: None } => write!(f, "{} is unknown and has no effect", self.key),
        }
    }
}
