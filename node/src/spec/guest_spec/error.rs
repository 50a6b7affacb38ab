//! Why a specification cannot be carried out in a guest.

use std::path::PathBuf;

use oci_spec::runtime::Mount;

/// Why a specification cannot be carried out in a guest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what they are")]
pub enum GuestSpecError {
    /// There is no `process`, `root` or `linux`.
    #[error("config.json has no {0}")]
    Missing(&'static str),
    /// A field that contradicts another one, or that a guest cannot carry out and a container cannot do without.
    #[error("{field}: {reason}")]
    Field {
        field: &'static str,
        /// The reason, as the message gives it.
        reason: String,
    },
    /// A mount that cannot be made in the guest.
    #[error("mount on {}: {reason}", destination.display())]
    Mount {
        destination: PathBuf,
        /// The reason, as the message gives it.
        reason: String,
    },
    /// A namespace that cannot be joined from inside the guest.
    #[error("namespace {kind} at {}: {reason}", path.display())]
    Namespace {
        /// The type, as the OCI specification names it.
        kind: String,
        path: PathBuf,
        /// The reason, as the message gives it.
        reason: &'static str,
    },
}

impl GuestSpecError {
    pub(super) fn mount(mount: &Mount, reason: impl Into<String>) -> Self {
        Self::Mount {
            destination: mount.destination().clone(),
            reason: reason.into(),
        }
    }
}
