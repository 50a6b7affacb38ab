//! What may be done to a container when: one table.

use std::fmt;

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
    /// The user's program runs.
    Running,
    /// Frozen.
    Paused,
    /// Its first process has ended.
    Stopped,
}

/// [`Life`] without what it carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// See [`Life::Creating`].
    Creating,
    /// See [`Life::Created`].
    Created,
    /// See [`Life::Starting`].
    Starting,
    /// See [`Life::Running`].
    Running,
    /// See [`Life::Paused`].
    Paused,
    /// See [`Life::Stopped`].
    Stopped,
}

impl Life {
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

/// What can be asked of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    /// Open the gate.
    Start,
    /// Add a process.
    Exec,
    /// Send a signal.
    Signal,
    /// Freeze.
    Pause,
    /// Thaw.
    Resume,
    /// Change limits.
    Update,
    /// Forget.
    Delete,
    /// Join a namespace of its first process.
    Join,
}

impl Phase {
    /// The table. Where it says no, the container is as it was.
    pub(crate) fn allows(self, verb: Verb) -> bool {
        match self {
            Phase::Creating => false,
            Phase::Created => matches!(
                verb,
                Verb::Start | Verb::Exec | Verb::Signal | Verb::Update | Verb::Join
            ),
            Phase::Starting => matches!(verb, Verb::Signal | Verb::Update | Verb::Join),
            Phase::Running => {
                matches!(
                    verb,
                    Verb::Exec | Verb::Signal | Verb::Pause | Verb::Update | Verb::Join
                )
            }
            // A signal waits until the container is thawed, but SIGKILL ends it all the same (cgroup v2).
            Phase::Paused => matches!(verb, Verb::Signal | Verb::Resume | Verb::Update | Verb::Join),
            Phase::Stopped => matches!(verb, Verb::Delete),
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Creating => "being created",
            Phase::Created => "created",
            Phase::Starting => "being started",
            Phase::Running => "running",
            Phase::Paused => "paused",
            Phase::Stopped => "stopped",
        })
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verb::Start => "start",
            Verb::Exec => "exec",
            Verb::Signal => "signal",
            Verb::Pause => "pause",
            Verb::Resume => "resume",
            Verb::Update => "update",
            Verb::Delete => "delete",
            Verb::Join => "join a namespace of it",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PHASES: [Phase; 6] = [
        Phase::Creating,
        Phase::Created,
        Phase::Starting,
        Phase::Running,
        Phase::Paused,
        Phase::Stopped,
    ];

    fn where_allowed(verb: Verb) -> Vec<Phase> {
        PHASES.into_iter().filter(|phase| phase.allows(verb)).collect()
    }

    #[test]
    fn each_verb_has_its_phases() {
        use Phase::{Created, Paused, Running, Starting, Stopped};
        assert_eq!(where_allowed(Verb::Start), [Created]);
        assert_eq!(where_allowed(Verb::Exec), [Created, Running]);
        assert_eq!(where_allowed(Verb::Signal), [Created, Starting, Running, Paused]);
        assert_eq!(where_allowed(Verb::Pause), [Running]);
        assert_eq!(where_allowed(Verb::Resume), [Paused]);
        assert_eq!(where_allowed(Verb::Delete), [Stopped]);
        assert_eq!(where_allowed(Verb::Update), [Created, Starting, Running, Paused]);
        assert_eq!(where_allowed(Verb::Join), [Created, Starting, Running, Paused]);
    }
}
