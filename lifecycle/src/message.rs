//! The inputs and the effects of the state machine.

use std::time::SystemTime;

use protocol::phase::{Phase, Verb};

use crate::id::{ContainerId, ProcessName};

/// Names the caller of one request, who waits for an answer. Given by the driver, never twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reply(pub u64);

/// Names one piece of work or one timer. Given by the core, never twice, so that a late report cannot be taken for another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Job(pub u64);

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// The exit code, or 128 + the signal's number.
    pub status: u32,
    /// The time of the exit.
    pub at: SystemTime,
}

/// How many bytes an ended process has written, where the guest said so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Output {
    /// Bytes on stdout.
    pub stdout: Option<u64>,
    /// Bytes on stderr.
    pub stderr: Option<u64>,
}

/// What containerd asks for. What comes with it, a specification for example, stays with the driver under the [`Reply`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Make a container up to the point where its program can be started.
    Create(ContainerId),
    /// Note an exec, to be started later.
    AddExec(ProcessName),
    /// Start a container's first process or an exec.
    Start(ProcessName),
    /// Send a signal.
    Kill {
        /// The process that gets the signal.
        name: ProcessName,
        /// The signal's number (signal(7)).
        signal: u32,
        /// To all processes of the container.
        all: bool,
    },
    /// Freeze.
    Pause(ContainerId),
    /// Thaw.
    Resume(ContainerId),
    /// Change limits.
    Update(ContainerId),
    /// Remove what does not run.
    Delete(ProcessName),
}

/// Why something was not done, as far as it matters what may have happened all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It was refused: nothing has happened.
    Refused,
    /// It was refused because the phase is another one in the guest.
    Phase,
    /// There is no such process or container.
    Missing,
    /// There was no answer in time: it may have happened, and may happen yet.
    Unanswered,
    /// It went on for long and then made no progress.
    Stalled,
    /// The connection is gone, and with it the VM.
    Gone,
}

/// Work that was not done, with the driver's error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure<E> {
    /// What is known about the effect.
    pub fault: Fault,
    /// The error for the answer to the request.
    pub error: E,
}

/// An input of the state machine.
#[derive(Debug, Clone)]
pub enum Input<E> {
    /// A client makes a request.
    Request(Reply, Request),
    /// The client has disconnected. Only a creation is undone for that.
    ClientGone(Reply),
    /// Work is done, or has failed.
    Finished(Job, Result<(), Failure<E>>),
    /// A timer has run out.
    Elapsed(Job),
    /// The guest reports an exit.
    Exited(ProcessName, Exit, Output),
    /// The VM is up.
    VmReady,
    /// The VM is gone, or has not come up.
    VmEnded {
        /// The host had no memory left.
        out_of_memory: bool,
    },
}

/// What the driver carries out in a task of its own. It reports with [`Input::Finished`], once; what calls the guest reports in
/// bounded time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    /// Mount a container's files below the shared directory.
    Attach(ContainerId),
    /// Run the hooks of the container's creation, and have the guest's network follow.
    CreateHooks(ContainerId),
    /// Open the streams, plug the disks in, and give the VM the memory and vCPUs.
    Provision(ContainerId),
    /// Have the guest create the container and its first process, which waits.
    GuestCreate(ContainerId),
    /// Connect the streams of the first process, and make the pid that stands for it.
    Connect(ContainerId),
    /// Have the guest's network follow the host's.
    Network(ContainerId),
    /// Have the guest start the first process.
    GuestStart(ContainerId),
    /// Run the hooks that follow a start.
    StartHooks(ContainerId),
    /// Open the streams of an exec.
    OpenStreams(ProcessName),
    /// Have the guest start an exec.
    GuestExec(ProcessName),
    /// Connect the streams of an exec.
    ConnectExec(ProcessName),
    /// Send a signal in the guest.
    Signal {
        /// The process that gets the signal.
        name: ProcessName,
        /// The signal's number (signal(7)).
        signal: u32,
        /// To all processes of the container.
        all: bool,
    },
    /// Ask whether the agent answers at all.
    Ping,
    /// Freeze a container.
    GuestPause(ContainerId),
    /// Thaw a container.
    GuestResume(ContainerId),
    /// Change a container's limits to those that came with the request.
    Update(ContainerId, Reply),
    /// Have the guest forget a container or an exec, with all that is to be written to disks. Bounded by lack of progress.
    GuestDelete(ProcessName),
    /// Unplug the disks that only this container has used. The guest has unmounted them, or is gone.
    ReleaseDisks(ContainerId),
    /// Unmount a container's files on the host.
    Detach(ContainerId),
    /// Run the hooks that follow a deletion.
    StopHooks(ContainerId),
    /// Pass on the rest of an ended process's output.
    FinishStreams(ProcessName, Output),
}

impl Work {
    /// The process or container that it is done for; none for a ping.
    #[must_use]
    pub fn subject(&self) -> Option<ProcessName> {
        match self {
            Work::Attach(id)
            | Work::CreateHooks(id)
            | Work::Provision(id)
            | Work::GuestCreate(id)
            | Work::Connect(id)
            | Work::Network(id)
            | Work::GuestStart(id)
            | Work::StartHooks(id)
            | Work::GuestPause(id)
            | Work::GuestResume(id)
            | Work::Update(id, _)
            | Work::ReleaseDisks(id)
            | Work::Detach(id)
            | Work::StopHooks(id) => Some(ProcessName::init(id.clone())),
            Work::OpenStreams(name)
            | Work::GuestExec(name)
            | Work::ConnectExec(name)
            | Work::GuestDelete(name)
            | Work::Signal { name, .. }
            | Work::FinishStreams(name, _) => Some(name.clone()),
            Work::Ping => None,
        }
    }

    /// Whether the guest's agent answers it.
    #[must_use]
    pub fn is_guests(&self) -> bool {
        match self {
            Work::GuestCreate(_)
            | Work::GuestStart(_)
            | Work::GuestExec(_)
            | Work::Signal { .. }
            | Work::Ping
            | Work::GuestPause(_)
            | Work::GuestResume(_)
            | Work::GuestDelete(_) => true,
            Work::Attach(_)
            | Work::CreateHooks(_)
            | Work::Provision(_)
            | Work::Connect(_)
            | Work::Network(_)
            | Work::StartHooks(_)
            | Work::OpenStreams(_)
            | Work::ConnectExec(_)
            | Work::Update(..)
            | Work::ReleaseDisks(_)
            | Work::Detach(_)
            | Work::StopHooks(_)
            | Work::FinishStreams(..) => false,
        }
    }
}

/// The time-outs that the core itself asks for; [`crate::Timeouts`] says how long they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timer {
    /// Until the guest has answered a SIGKILL.
    KillAnswer,
    /// Until a process has died of SIGKILL.
    Death,
    /// Until the exits of a container's execs are reported, once its own is.
    ExecExits,
    /// Until the hooks that follow a deletion have ended.
    StopHooks,
}

/// An event that is published to containerd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// TaskCreate.
    Created,
    /// TaskStart or TaskExecStarted.
    Started,
    /// TaskExecAdded.
    Added,
    /// TaskPaused.
    Paused,
    /// TaskResumed.
    Resumed,
    /// TaskOOM.
    OutOfMemory,
    /// TaskExit.
    Exited(Exit),
    /// TaskDelete.
    Deleted(Exit),
}

/// What others see of a process: the record that answers State and Wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// The phase of a process that has not ended.
    In(Phase),
    /// Ended, its output passed on.
    Stopped(Exit),
}

/// Why the VM is given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// Its agent has not answered a ping.
    NoHeartbeat,
    /// A process does not die, and nobody else needs the VM.
    Undying(ProcessName),
    /// The guest does not forget a container, and there is no other.
    Undeletable(ContainerId),
}

/// Why a request was refused by its state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such process.
    NotFound(ProcessName),
    /// The id is taken.
    Exists(ProcessName),
    /// The process has ended.
    Finished(ProcessName),
    /// Its phase does not allow it.
    Phase {
        /// The request that is not allowed.
        verb: Verb,
        /// The process that the request names.
        name: ProcessName,
        /// The phase of the process, or of its container.
        phase: Phase,
    },
    /// The VM is not up.
    NoVm {
        /// The request, as messages name it.
        operation: &'static str,
        /// The process that the request names.
        name: ProcessName,
    },
    /// Whoever asked is gone, or it was overtaken by the container's end.
    Interrupted(ProcessName),
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer<E> {
    /// The request was carried out.
    Done,
    /// A process is forgotten.
    Deleted(Exit),
    /// The state does not allow the request.
    Refused(Refusal),
    /// The request failed, with the error of the work.
    Failed(E),
}

/// What the driver does at once and in this order; only [`Effect::Do`] takes time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect<E> {
    /// Begin work.
    Do(Job, Work),
    /// Begin to measure time.
    Start(Job, Timer),
    /// Nobody waits for this work or this timer any more: end it, without a report.
    Abandon(Job),
    /// A process has come to be known; what came with the request is its record.
    Record(ProcessName, Reply),
    /// A process is in another phase, and this is published.
    Enter(ProcessName, View, Option<Event>),
    /// An event of a process that stays in its phase.
    Tell(ProcessName, Event),
    /// A process is forgotten, and this is published first.
    Forget(ProcessName, Option<Event>),
    /// A container needs memory and vCPUs no more.
    Uncount(ContainerId),
    /// Close the streams of a process that will not be started.
    CloseStreams(ProcessName),
    /// Answer a request.
    Answer(Reply, Answer<E>),
    /// End the VM.
    EndVm(Reason),
    /// A process does not die, and the VM goes on for others: for the log.
    Lingers(ProcessName),
    /// The guest reports the exit of what does not exist.
    Unknown(ProcessName),
}
