//! The phases of a container and the requests that are allowed in each: one table, for the host and for the guest.
//!
//! ```text
//!  Creating ──► Created ──► Starting ──► Running ◄──► Paused
//!                  │           │            │           │
//!                  └───────────┴────────────┴───────────┴──► Stopped
//! ```

use std::fmt;

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Its first process is being set up.
    Creating,
    /// Its first process waits for Start.
    Created,
    /// Start is under way.
    Starting,
    /// The user's program runs.
    Running,
    /// Frozen by the cgroup freezer.
    Paused,
    /// Its first process has ended.
    Stopped,
}

/// What can be asked of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Run the user's program.
    Start,
    /// Run another process in it.
    Exec,
    /// Send a signal.
    Signal,
    /// Freeze.
    Pause,
    /// Thaw.
    Resume,
    /// Change limits.
    Update,
    /// Remove. A container that was never started is killed first, as runc does.
    Delete,
    /// Join a namespace of its first process.
    Join,
}

impl Phase {
    /// All phases.
    pub const ALL: [Phase; 6] = [
        Phase::Creating,
        Phase::Created,
        Phase::Starting,
        Phase::Running,
        Phase::Paused,
        Phase::Stopped,
    ];

    /// Whether the verb is allowed. Where it is not, the container is as it was.
    #[must_use]
    pub fn allows(self, verb: Verb) -> bool {
        match self {
            Phase::Creating => false,
            Phase::Created => matches!(
                verb,
                Verb::Start | Verb::Exec | Verb::Signal | Verb::Update | Verb::Join | Verb::Delete
            ),
            Phase::Starting => matches!(verb, Verb::Signal | Verb::Update | Verb::Join),
            Phase::Running => matches!(
                verb,
                Verb::Exec | Verb::Signal | Verb::Pause | Verb::Update | Verb::Join
            ),
            // A signal waits until the container is thawed, but SIGKILL ends it all the same (cgroup v2).
            Phase::Paused => matches!(verb, Verb::Signal | Verb::Resume | Verb::Update | Verb::Join),
            Phase::Stopped => matches!(verb, Verb::Delete),
        }
    }

    /// For messages: "it is …".
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Phase::Creating => "being created",
            Phase::Created => "created and not started",
            Phase::Starting => "being started",
            Phase::Running => "running",
            Phase::Paused => "paused",
            Phase::Stopped => "stopped",
        }
    }
}

impl Verb {
    /// For messages: "cannot …".
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Verb::Start => "start",
            Verb::Exec => "start an exec in",
            Verb::Signal => "signal",
            Verb::Pause => "pause",
            Verb::Resume => "resume",
            Verb::Update => "update",
            Verb::Delete => "delete",
            Verb::Join => "join a namespace of",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn where_allowed(verb: Verb) -> Vec<Phase> {
        Phase::ALL.into_iter().filter(|phase| phase.allows(verb)).collect()
    }

    #[test]
    fn each_verb_has_its_phases() {
        use Phase::{Created, Paused, Running, Starting, Stopped};
        assert_eq!(where_allowed(Verb::Start), [Created]);
        assert_eq!(where_allowed(Verb::Exec), [Created, Running]);
        assert_eq!(where_allowed(Verb::Signal), [Created, Starting, Running, Paused]);
        assert_eq!(where_allowed(Verb::Pause), [Running]);
        assert_eq!(where_allowed(Verb::Resume), [Paused]);
        assert_eq!(where_allowed(Verb::Delete), [Created, Stopped]);
        assert_eq!(where_allowed(Verb::Update), [Created, Starting, Running, Paused]);
        assert_eq!(where_allowed(Verb::Join), [Created, Starting, Running, Paused]);
    }
}
