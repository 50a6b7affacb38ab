//! The state of the state machine, and functions that every transition uses: starting work, timers, answers.

use std::collections::{BTreeMap, BTreeSet};

use protocol::phase::{Phase, Verb};

use crate::id::{ContainerId, ProcessName};
use crate::message::{Answer, Effect, Job, Reason, Refusal, Reply, Timer, View, Work};
use crate::state::{Container, Exec, Life, Vm};

/// What a piece of work or a timer is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Purpose {
    Operation(ContainerId),
    /// A container's creation in the guest that was interrupted.
    OvertakenCreate(ContainerId),
    Exec(ProcessName),
    /// An exec's start in the guest that was ended by SIGKILL.
    OvertakenExec(ProcessName),
    ExecDelete(ProcessName),
    /// The kill of an exec whose start has failed half-way.
    ExecKill(ProcessName),
    /// The rest of an ended process's output.
    Streams(ProcessName),
    ExecExits(ContainerId),
    /// A signal that somebody waits for.
    Signal {
        name: ProcessName,
        reply: Reply,
        /// For a SIGKILL: the timer for the guest to take it.
        timer: Option<Job>,
    },
    /// The timer for the guest to take a SIGKILL.
    KillAnswer(ProcessName),
    /// The next step of the kill escalation.
    Ladder(ContainerId),
    /// SIGKILL to a container's whole cgroup, for which nobody waits.
    CgroupKill,
    Ping {
        /// How many answers had come from the guest when it was sent.
        answers: u64,
    },
    StartHooks(ContainerId),
}

/// The state machine. `E` is the driver's error, which it passes on.
#[derive(Debug)]
pub struct Core<E> {
    /// The pod's own container, which keeps the namespaces and does nothing by itself; none if the sandbox is no pod.
    pub(crate) own: Option<ContainerId>,
    pub(crate) vm: Vm,
    pub(crate) containers: BTreeMap<ContainerId, Container<E>>,
    pub(crate) jobs: BTreeMap<Job, Purpose>,
    /// Those of the jobs that the guest's agent answers.
    pub(crate) guests: BTreeSet<Job>,
    /// Containers whose operation is over.
    pub(crate) idle: Vec<ContainerId>,
    /// Answers of the guest so far.
    pub(crate) answers: u64,
    next: u64,
    pub(crate) effects: Vec<Effect<E>>,
}

impl<E> Core<E> {
    /// A sandbox whose VM boots. `own` is the container that does nothing but keep a pod's namespaces.
    #[must_use]
    pub fn new(own: Option<ContainerId>) -> Self {
        Self {
            own,
            vm: Vm::Booting,
            containers: BTreeMap::new(),
            jobs: BTreeMap::new(),
            guests: BTreeSet::new(),
            idle: Vec::new(),
            answers: 0,
            next: 0,
            effects: Vec::new(),
        }
    }

    fn job(&mut self, purpose: Purpose) -> Job {
        self.next += 1;
        let job = Job(self.next);
        self.jobs.insert(job, purpose);
        job
    }

    pub(crate) fn begin(&mut self, purpose: Purpose, work: Work) -> Job {
        let job = self.job(purpose);
        if work.is_guests() {
            self.guests.insert(job);
        }
        self.effects.push(Effect::Do(job, work));
        job
    }

    /// Begins to measure time.
    pub(crate) fn timer(&mut self, purpose: Purpose, timer: Timer) -> Job {
        let job = self.job(purpose);
        self.effects.push(Effect::Start(job, timer));
        job
    }

    /// Nobody waits for it any more.
    pub(crate) fn abandon(&mut self, job: Job) {
        if self.jobs.remove(&job).is_some() {
            self.guests.remove(&job);
            self.effects.push(Effect::Abandon(job));
        }
    }

    pub(crate) fn answer(&mut self, reply: Reply, answer: Answer<E>) {
        self.effects.push(Effect::Answer(reply, answer));
    }

    pub(crate) fn refuse(&mut self, reply: Reply, refusal: Refusal) {
        self.answer(reply, Answer::Refused(refusal));
    }

    /// Refuses what a phase does not allow.
    pub(crate) fn refuse_phase(&mut self, reply: Reply, verb: Verb, name: ProcessName, phase: Phase) {
        self.refuse(reply, Refusal::Phase { verb, name, phase });
    }

    /// A process is in another phase, of which nothing is published.
    pub(crate) fn enter(&mut self, name: ProcessName, phase: Phase) {
        self.effects.push(Effect::Enter(name, View::In(phase), None));
    }

    /// Gives the VM up, once.
    pub(crate) fn end_vm(&mut self, reason: Reason) {
        if self.vm == Vm::Ready {
            self.vm = Vm::Ending;
            self.effects.push(Effect::EndVm(reason));
        }
    }

    /// Whether the guest can be called.
    pub(crate) fn has_vm(&self) -> bool {
        matches!(self.vm, Vm::Ready | Vm::Ending)
    }

    pub(crate) fn life_mut(&mut self, name: &ProcessName) -> Option<&mut Life> {
        let container = self.containers.get_mut(&name.container)?;
        match &name.exec {
            None => Some(&mut container.life),
            Some(exec) => container.execs.get_mut(exec).map(|exec| &mut exec.life),
        }
    }

    pub(crate) fn exec_mut(&mut self, name: &ProcessName) -> Option<&mut Exec> {
        self.containers
            .get_mut(&name.container)?
            .execs
            .get_mut(name.exec.as_ref()?)
    }
}
