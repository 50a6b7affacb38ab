//! The state of a sandbox's containers and execs: the phase of each, its running operation, its resources.
//!
//! A container has a life, which follows the events in the guest, and at most one operation that changes it. Requests
//! that need the operation to be complete wait in the container's queue.

use std::collections::{BTreeMap, VecDeque};

use protocol::phase::Phase;

use crate::id::ExecId;
use crate::message::{Answer, Exit, Job, Output, Reply, Request};

/// SIGKILL on Linux (signal(7)).
pub const SIGKILL: u32 = 9;

/// The status of what was killed: 128 + SIGKILL.
pub const KILLED: u32 = 128 + SIGKILL;

/// Status of an exec whose program could not be started: as a shell has it.
pub const NOT_STARTED: u32 = 127;

/// The VM's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vm {
    Booting,
    Ready,
    /// It has been given up and is about to end.
    Ending,
    Ended,
}

/// An exit that was reported before it could be published: the process is still being created or started.
pub(crate) type Early = Option<(Exit, Output)>;

/// A process's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    Creating {
        exit: Early,
    },
    Created,
    Starting {
        exit: Early,
    },
    Running,
    Paused,
    /// It has ended, and its output or the exits of its execs are waited for.
    Ending {
        exit: Exit,
        /// Its phase before, which is what is seen of it.
        was: Phase,
        waits: Waits,
    },
    Stopped(Exit),
}

/// What a process that has ended waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waits {
    Streams,
    /// The exits of its execs, until this timer.
    Execs(Job),
}

impl Life {
    /// For the table of verbs.
    pub(crate) fn phase(&self) -> Phase {
        match self {
            Life::Creating { .. } => Phase::Creating,
            Life::Created => Phase::Created,
            Life::Starting { .. } => Phase::Starting,
            Life::Running => Phase::Running,
            Life::Paused => Phase::Paused,
            Life::Ending { .. } | Life::Stopped(_) => Phase::Stopped,
        }
    }

    /// The phase that is published: while an exit waits to be, the one before.
    pub(crate) fn published(&self) -> Phase {
        match self {
            Life::Ending { was, .. } => *was,
            other => other.phase(),
        }
    }

    /// Whether it has ended, its exit published or not.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self, Life::Ending { .. } | Life::Stopped(_))
    }
}

/// What a container has that has to be given back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) attached: bool,
    /// Disks, and a share of the VM's size.
    pub(crate) provisioned: bool,
    /// The guest has it, or may have it.
    pub(crate) guest: bool,
}

#[derive(Debug)]
pub(crate) enum Operation<E> {
    Create {
        reply: Reply,
        step: CreateStep,
    },
    Start {
        reply: Reply,
        job: Job,
    },
    Freeze {
        reply: Reply,
        job: Job,
        pause: bool,
        /// The guest did not answer a pause: it is thawed again, and this is the answer.
        undo: Option<E>,
    },
    Update {
        reply: Reply,
        job: Job,
    },
    Remove(Remove<E>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CreateStep {
    Attaching(Job),
    /// Attached; the VM is not up yet.
    WaitingForVm,
    Hooks(Job),
    Provisioning(Job),
    InGuest(Job),
    Connecting(Job),
}

/// Giving back what a container has.
#[derive(Debug)]
pub(crate) struct Remove<E> {
    pub(crate) step: RemoveStep,
    pub(crate) cause: Cause<E>,
}

#[derive(Debug)]
pub(crate) enum Cause<E> {
    /// Its creation has failed: whoever asked for it gets this answer.
    Undo {
        reply: Reply,
        answer: Answer<E>,
        /// These asked for its deletion meanwhile.
        joined: Vec<Reply>,
    },
    /// These asked for its deletion.
    Delete(Vec<Reply>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RemoveStep {
    InGuest(Job),
    /// The guest does not have it, and has not answered the call to make it, which was interrupted: it may have it yet.
    OvertakenCreate,
    /// The VM has been given up: nothing is unplugged before it is gone.
    VmsEnd,
    /// Its exit is about to be published.
    Stopping,
    Disks(Job),
    Detaching(Job),
    Hooks {
        job: Job,
        timer: Job,
    },
}

/// SIGKILL was sent to a container, which has to come to its end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ladder {
    pub(crate) rung: Rung,
    pub(crate) timer: Job,
}

/// How hard it has been tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rung {
    Signal,
    Cgroup,
    /// All but the VM's end, which others need.
    Lingering,
}

#[derive(Debug)]
pub(crate) struct Container<E> {
    pub(crate) life: Life,
    pub(crate) held: Held,
    pub(crate) operation: Option<Operation<E>>,
    pub(crate) waiting: VecDeque<(Reply, Request)>,
    pub(crate) execs: BTreeMap<ExecId, Exec>,
    pub(crate) ladder: Option<Ladder>,
    /// SIGKILL has been sent to it: nobody needs the VM for it.
    pub(crate) killed: bool,
    /// TaskCreate was published.
    pub(crate) announced: bool,
    /// The hooks that follow its start, and who waits for them.
    pub(crate) start_hooks: Option<(Job, Reply)>,
    /// How often the guest has refused to forget it.
    pub(crate) refused: u32,
    /// Signals that wait for the end of its start.
    pub(crate) signals: Vec<Signal>,
    /// The call to make it, if its creation was interrupted meanwhile.
    pub(crate) overtaken: Option<OvertakenCreate>,
}

/// A call to make a container that its deletion in the guest may overtake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OvertakenCreate {
    Unanswered(Job),
    /// It was made, or may have been, perhaps after a deletion that has not found it.
    Made,
}

/// A signal that came while its process was being started: before execve(2) it would be lost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Signal {
    pub(crate) reply: Reply,
    pub(crate) number: u32,
    pub(crate) all: bool,
}

impl<E> Container<E> {
    pub(crate) fn new() -> Self {
        Self {
            life: Life::Creating { exit: None },
            held: Held::default(),
            operation: None,
            waiting: VecDeque::new(),
            execs: BTreeMap::new(),
            ladder: None,
            killed: false,
            announced: false,
            start_hooks: None,
            refused: 0,
            signals: Vec::new(),
            overtaken: None,
        }
    }

    /// Whether requests find it: it was created, or could not be undone.
    pub(crate) fn is_known(&self) -> bool {
        !matches!(self.life, Life::Creating { .. })
    }
}

impl<E> Remove<E> {
    /// Somebody else asks for the deletion, and gets the same answer.
    pub(crate) fn join(&mut self, reply: Reply) {
        match &mut self.cause {
            Cause::Delete(replies) | Cause::Undo { joined: replies, .. } => replies.push(reply),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Exec {
    pub(crate) life: Life,
    pub(crate) start: Option<ExecStart>,
    pub(crate) guest: InGuest,
    /// The call to start it, which SIGKILL has overtaken and the guest has not answered: it may start it yet.
    pub(crate) overtaken: Option<Job>,
    pub(crate) delete: Option<ExecDelete>,
    /// Signals that wait for the end of its start.
    pub(crate) signals: Vec<Signal>,
}

/// Whether the guest has an exec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InGuest {
    No,
    Yes,
    /// Its start has failed half-way: it was sent SIGKILL, and its exit has not been seen.
    Lingers,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct ExecStart {
    pub(crate) reply: Reply,
    pub(crate) job: Job,
    pub(crate) step: ExecStep,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExecStep {
    Opening,
    InGuest,
    Connecting,
}

#[derive(Debug)]
pub(crate) struct ExecDelete {
    pub(crate) replies: Vec<Reply>,
    pub(crate) job: Job,
    /// The job is the timer for the exit of one that lingers.
    pub(crate) awaits_exit: bool,
    /// The guest has refused it once: it was killed again.
    pub(crate) tried: bool,
}
