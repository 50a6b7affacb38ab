//! What the report looks at.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// The host as the report looks at it: other places are for tests.
#[derive(Clone)]
pub(crate) struct Host {
    pub(super) search: Option<OsString>,
    /// /etc
    pub(super) etc: PathBuf,
    /// /var
    pub(super) var: PathBuf,
    /// Where sandboxes have their directories.
    pub(super) run: PathBuf,
    /// The configuration that the command line names.
    pub(super) config: Option<PathBuf>,
    /// How far back logs are read, in nanoseconds since the epoch.
    pub(super) since: i128,
    /// Timeout for one section.
    pub(super) limit: Duration,
}
