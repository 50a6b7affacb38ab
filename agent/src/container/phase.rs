//! The phase of a container. The table of allowed requests is shared with the host: [`protocol::phase`].

use protocol::phase::Phase;
use tatami_agent::launch::Gate;

/// Where a container is in its life, with what only that part of it has.
#[derive(Debug)]
pub(crate) enum Life {
    /// Its first process is being set up.
    Creating,
    /// Its first process waits.
    Created(Gate),
    /// The gate is being opened.
    Starting,
    Running,
    Paused,
    /// Its first process has ended.
    Stopped,
}

impl Life {
    /// It without what it carries.
    pub(crate) fn phase(&self) -> Phase {
        match self {
            Life::Creating => Phase::Creating,
            Life::Created(_) => Phase::Created,
            Life::Starting => Phase::Starting,
            Life::Running => Phase::Running,
            Life::Paused => Phase::Paused,
            Life::Stopped => Phase::Stopped,
        }
    }
}
