//! A row of the table of keys: the effect of one of Kata's keys.

/// What becomes of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// What it says holds, as in Kata.
    Done,
    /// What it is for is there, in another way; the note says which.
    Otherwise,
    /// It is about what is done in another way or not at all, and asks for nothing by itself.
    Unneeded,
    /// It has no effect. A value that asks for something is a warning.
    Warned,
    /// A value that asks for something is an error.
    Refused,
    /// Kata has no such key.
    Own,
}

impl Status {
    /// As in the manual.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Done => "done",
            Status::Otherwise => "done otherwise",
            Status::Unneeded => "not needed",
            Status::Warned => "warned",
            Status::Refused => "refused",
            Status::Own => "ours",
        }
    }
}

/// One key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The key, with its table.
    pub key: String,
    /// What becomes of it.
    pub status: Status,
    /// Whether an annotation of a pod can set it.
    pub annotated: bool,
    /// What is to be known about it; may be empty.
    pub note: &'static str,
}
