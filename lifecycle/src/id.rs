//! Names that come from outside, checked once: containerd's namespaces, containers, sandboxes, execs, processes.
//!
//! They become parts of paths on the host and in the guest, so these types can only be made from checked names.

use std::fmt;

/// Longest id that containerd accepts (its `identifiers` package).
pub const MAX_LENGTH: usize = 76;

/// Why a string cannot be an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what they are")]
pub enum IdError {
    #[error("the {kind} is empty")]
    Empty { kind: &'static str },
    /// More than [`MAX_LENGTH`] bytes.
    #[error("the {kind} is {length} bytes long, more than {MAX_LENGTH}")]
    TooLong {
        kind: &'static str,
        /// Its length in bytes.
        length: usize,
    },
    #[error("the {kind} {id:?} must be letters and digits, with '.', '_' or '-' between them")]
    Characters {
        kind: &'static str,
        /// The string that was to be an id.
        id: String,
    },
}

/// containerd's rule: runs of ASCII letters and digits, joined by one of `.`, `_` and `-`, which may be repeated
/// (Kubernetes and Docker both make such names). Neither `.` nor `..` nor a slash can pass.
fn check(kind: &'static str, id: &str) -> Result<(), IdError> {
    if id.is_empty() {
        return Err(IdError::Empty { kind });
    }
    if id.len() > MAX_LENGTH {
        return Err(IdError::TooLong { kind, length: id.len() });
    }
    let bytes = id.as_bytes();
    let ends = [bytes[0], bytes[bytes.len() - 1]];
    let inner = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
    if !ends.iter().all(u8::is_ascii_alphanumeric) || !bytes.iter().all(inner) {
        return Err(IdError::Characters {
            kind,
            id: id.to_owned(),
        });
    }
    Ok(())
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            /// Checks and takes the string.
            ///
            /// # Errors
            /// It is not what containerd's identifiers may be.
            pub fn new(id: &str) -> Result<Self, IdError> {
                check($kind, id)?;
                Ok(Self(id.to_owned()))
            }

            /// The string.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }
    };
}

id!(
    /// A namespace of containerd ("default", "moby", "k8s.io").
    Namespace,
    "namespace"
);
id!(
    /// A container.
    ContainerId,
    "container id"
);
id!(
    /// A sandbox: the id of the pod's first container, or the container's own where there is no pod.
    SandboxId,
    "sandbox id"
);
id!(
    /// A process added to a container.
    ExecId,
    "exec id"
);

/// A container that is not part of a pod is its own sandbox.
impl From<&ContainerId> for SandboxId {
    fn from(container: &ContainerId) -> Self {
        Self(container.0.clone())
    }
}

/// The container of the sandbox's own: in a pod, the one that keeps its namespaces.
impl From<&SandboxId> for ContainerId {
    fn from(sandbox: &SandboxId) -> Self {
        Self(sandbox.0.clone())
    }
}

/// Names a process in requests, calls and events.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcessName {
    /// The container of the process.
    pub container: ContainerId,
    /// None for the container's first process.
    pub exec: Option<ExecId>,
}

impl ProcessName {
    /// A container's first process.
    #[must_use]
    pub fn init(container: ContainerId) -> Self {
        Self { container, exec: None }
    }

    /// The exec's id; empty for the first process, as the protocols have it.
    #[must_use]
    pub fn exec_id(&self) -> &str {
        self.exec.as_ref().map_or("", ExecId::as_str)
    }

    /// The agent's form.
    #[must_use]
    pub fn to_agent(&self) -> protocol::agent::ProcessId {
        protocol::agent::ProcessId {
            container_id: self.container.to_string(),
            exec_id: self.exec_id().to_owned(),
            ..Default::default()
        }
    }
}

impl fmt::Display for ProcessName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.exec {
            Some(exec) => write!(formatter, "exec {exec} of container {}", self.container),
            None => write!(formatter, "container {}", self.container),
        }
    }
}

impl Namespace {
    /// Whether it is the one that dockerd uses.
    #[must_use]
    pub fn is_docker(&self) -> bool {
        self.as_str() == "moby"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_that_containerd_makes_pass() {
        for id in ["a", "k8s.io", "my_container-1", "0123456789abcdef", "a--b", "moby"] {
            assert!(ContainerId::new(id).is_ok(), "{id}");
        }
        assert!(ContainerId::new(&"a".repeat(MAX_LENGTH)).is_ok());
    }

    #[test]
    fn names_that_would_be_paths_or_options_are_refused() {
        for id in ["", ".", "..", "a/b", "-a", "a-", ".a", "a b", "a\0b", "ä", "a\n"] {
            assert!(ContainerId::new(id).is_err(), "{id:?}");
        }
        assert!(ContainerId::new(&"a".repeat(MAX_LENGTH + 1)).is_err());
    }

    proptest! {
        #[test]
        fn what_passes_is_one_plain_path_component(id in "\\PC{0,90}") {
            if let Ok(id) = SandboxId::new(&id) {
                let path = std::path::Path::new(id.as_str());
                prop_assert_eq!(path.components().count(), 1);
                prop_assert_eq!(path.file_name().and_then(|name| name.to_str()), Some(id.as_str()));
            }
        }
    }
}
