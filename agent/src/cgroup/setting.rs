//! What is written to one file of a cgroup.

/// A value for one file of a cgroup.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) file: String,
    pub(super) value: String,
    /// The kernel may be built without it, and then there is nothing to limit.
    pub(super) optional: bool,
    /// The same value comes again later: whether it is taken depends on what is written in between.
    pub(super) again: bool,
}

impl Setting {
    pub(super) fn new(file: impl Into<String>, value: impl Into<String>) -> Self {
        Self {
            file: file.into(),
            value: value.into(),
            optional: false,
            again: false,
        }
    }

    pub(super) fn again(mut self) -> Self {
        self.again = true;
        self
    }

    pub(super) fn optional(mut self) -> Self {
        self.optional = true;
        self
    }
}

/// A limit as cgroup v2 writes it; -1 is "none" in the specification.
pub(super) fn limit(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}
