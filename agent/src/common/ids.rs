//! Names of containers and execs. They are checked once, when they arrive, because they become names of directories.

use std::fmt;

/// containerd allows 76 (its identifiers package); other callers are allowed some more.
const MAX_LENGTH: usize = 128;

#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no id: 1 to {MAX_LENGTH} of A-Z, a-z, 0-9, '.', '_', '-', the first a letter or digit")]
pub(crate) struct InvalidId(String);

fn check(id: &str) -> Result<(), InvalidId> {
    let first = id.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let rest = id
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if first && rest && id.len() <= MAX_LENGTH {
        return Ok(());
    }
    Err(InvalidId(id.chars().take(MAX_LENGTH).collect()))
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ContainerId(String);

impl ContainerId {
    /// # Errors
    /// The name holds what a directory's name must not.
    pub(crate) fn new(id: &str) -> Result<Self, InvalidId> {
        check(id).map(|()| Self(id.to_owned()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Names a process of a container: its first one, or an exec.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum ExecId {
    /// The container's first process; empty in the protocol.
    Init,
    Exec(String),
}

impl ExecId {
    /// # Errors
    /// The name holds what an id must not.
    pub(crate) fn new(id: &str) -> Result<Self, InvalidId> {
        if id.is_empty() {
            return Ok(Self::Init);
        }
        check(id).map(|()| Self::Exec(id.to_owned()))
    }

    /// As the protocol has it.
    pub(crate) fn as_str(&self) -> &str {
        match self {
            ExecId::Init => "",
            ExecId::Exec(id) => id,
        }
    }
}

impl fmt::Display for ExecId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExecId::Init => f.write_str("init"),
            ExecId::Exec(id) => write!(f, "exec {id}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_that_containerd_gives_are_taken() {
        for id in ["a", "redis-1", "0123456789abcdef", "A.b_c-d"] {
            assert!(ContainerId::new(id).is_ok(), "{id}");
        }
    }

    #[test]
    fn an_empty_exec_id_is_the_first_process() {
        assert_eq!(ExecId::new("").unwrap(), ExecId::Init);
        assert!(ContainerId::new("").is_err());
    }

    proptest! {
        #[test]
        fn what_is_taken_is_one_component_of_a_path(id in ".*") {
            if ContainerId::new(&id).is_ok() {
                let path = std::path::Path::new(&id);
                prop_assert_eq!(path.components().count(), 1);
                prop_assert!(matches!(path.components().next(), Some(std::path::Component::Normal(_))));
            }
        }
    }
}
