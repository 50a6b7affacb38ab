//! Signals, and the kill escalation: if SIGKILL does not end a container, its whole cgroup is killed, and then the VM is
//! ended.
//!
//! ```text
//!  SIGKILL ──► the container's cgroup.kill ──► the end of the VM, if no other container is still meant to run
//!     └─────────────────┴──► a ping that the agent does not answer ──► the end of the VM
//! ```
//! containerd waits without a limit for the exit of a process that it has killed. A process that is blocked in the
//! kernel, for example by a file server that does not answer, does not die of SIGKILL.

use std::time::SystemTime;

use protocol::phase::{Phase, Verb};

use crate::id::{ContainerId, ProcessName};
use crate::machine::{Core, Purpose};
use crate::message::{Answer, Effect, Fault, Reason, Refusal, Reply, Timer, Work};
use crate::state::{Ladder, Life, Operation, Rung, SIGKILL, Signal};
use crate::step::Done;

impl<E: Clone> Core<E> {
    pub(crate) fn kill(&mut self, now: SystemTime, reply: Reply, name: ProcessName, signal: u32, all: bool) {
        let has_vm = self.has_vm();
        let life = match self.life_mut(&name) {
            None | Some(Life::Creating { .. }) => return self.refuse(reply, Refusal::NotFound(name)),
            Some(life) => *life,
        };
        if life.has_ended() || !has_vm {
            return self.refuse(reply, Refusal::Finished(name));
        }
        if name.exec.is_some() && life == Life::Created {
            return self.refuse_phase(reply, Verb::Signal, name, Phase::Created);
        }
        if signal == SIGKILL && self.end_exec_start(now, &name) {
            return self.answer(reply, Answer::Done);
        }
        if self.is_starting(&name, signal) {
            let waits = Signal {
                reply,
                number: signal,
                all,
            };
            return self.wait_for_start(&name, waits);
        }
        let timer = (signal == SIGKILL).then(|| self.timer(Purpose::KillAnswer(name.clone()), Timer::KillAnswer));
        if signal == SIGKILL
            && name.exec.is_none()
            && let Some(container) = self.containers.get_mut(&name.container)
        {
            container.killed = true;
        }
        let purpose = Purpose::Signal {
            name: name.clone(),
            reply,
            timer,
        };
        self.begin(purpose, Work::Signal { name, signal, all });
    }

    /// Whether the signal would come too early: an exec is not there before it is started, and the first process of a PID namespace
    /// takes nothing but SIGKILL before its program has a handler (pid_namespaces(7)).
    fn is_starting(&self, name: &ProcessName, signal: u32) -> bool {
        let Some(container) = self.containers.get(&name.container) else {
            return false;
        };
        match &name.exec {
            Some(exec) => container.execs.get(exec).is_some_and(|exec| exec.start.is_some()),
            None => signal != SIGKILL && matches!(container.operation, Some(Operation::Start { .. })),
        }
    }

    fn wait_for_start(&mut self, name: &ProcessName, signal: Signal) {
        if name.exec.is_none() {
            if let Some(container) = self.containers.get_mut(&name.container) {
                container.signals.push(signal);
            }
        } else if let Some(exec) = self.exec_mut(name) {
            exec.signals.push(signal);
        }
    }

    /// The start is over: sends what has waited for that, in its order, or refuses it where the start has failed.
    pub(crate) fn send(&mut self, now: SystemTime, name: &ProcessName, signals: Vec<Signal>) {
        for Signal { reply, number, all } in signals {
            self.kill(now, reply, name.clone(), number, all);
        }
    }

    pub(crate) fn signalled(&mut self, name: &ProcessName, reply: Reply, timer: Option<crate::Job>, done: Done<E>) {
        if let Some(timer) = timer {
            self.abandon(timer);
        }
        let kills = timer.is_some();
        match done {
            Ok(()) => self.answer(reply, Answer::Done),
            // Its exit is on the way here.
            Err(failure) if failure.fault == Fault::Missing => self.refuse(reply, Refusal::Finished(name.clone())),
            // So are those of all execs of a container whose first process has ended.
            Err(failure) if failure.fault == Fault::Phase && name.exec.is_some() => {
                self.refuse(reply, Refusal::Finished(name.clone()));
            }
            // It goes with the VM.
            Err(failure) if failure.fault == Fault::Gone && kills => self.answer(reply, Answer::Done),
            Err(failure) => self.answer(reply, Answer::Failed(failure.error)),
        }
        if kills && name.exec.is_none() {
            self.see_to_end(&name.container);
        }
    }

    /// The guest has not taken a SIGKILL.
    pub(crate) fn kill_unanswered(&mut self, name: &ProcessName) {
        if name.exec.is_some() {
            return self.ping();
        }
        self.see_to_end(&name.container);
        self.climb(&name.container);
    }

    /// Sees to it that a container to which SIGKILL was sent comes to its end.
    pub(crate) fn see_to_end(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get(id) else {
            return;
        };
        if container.life.has_ended() || container.ladder.is_some() {
            return;
        }
        self.wait_on_rung(id, Rung::Signal);
    }

    fn wait_on_rung(&mut self, id: &ContainerId, rung: Rung) {
        let timer = self.timer(Purpose::Ladder(id.clone()), Timer::Death);
        if let Some(container) = self.containers.get_mut(id) {
            container.killed = true;
            container.ladder = Some(Ladder { rung, timer });
        }
    }

    /// Ends the kill escalation of a container that has ended.
    pub(crate) fn leave_ladder(&mut self, id: &ContainerId) {
        let ladder = self
            .containers
            .get_mut(id)
            .and_then(|container| container.ladder.take());
        if let Some(ladder) = ladder {
            self.abandon(ladder.timer);
        }
    }

    /// The next step of the kill escalation.
    pub(crate) fn climb(&mut self, id: &ContainerId) {
        let ladder = self
            .containers
            .get_mut(id)
            .and_then(|container| container.ladder.take());
        let Some(Ladder { rung, timer }) = ladder else {
            return;
        };
        // It has run out, unless the guest did not even take the signal.
        self.abandon(timer);
        if !self.has_vm() {
            return;
        }
        let name = ProcessName::init(id.clone());
        let next = match rung {
            Rung::Signal => {
                self.kill_cgroup(id);
                Rung::Cgroup
            }
            Rung::Cgroup | Rung::Lingering if self.nobody_goes_on() => {
                return self.end_vm(Reason::Undying(name));
            }
            Rung::Cgroup => {
                self.effects.push(Effect::Lingers(name));
                Rung::Lingering
            }
            Rung::Lingering => Rung::Lingering,
        };
        self.ping();
        self.wait_on_rung(id, next);
    }

    pub(crate) fn kill_cgroup(&mut self, id: &ContainerId) {
        let kill = Work::Signal {
            name: ProcessName::init(id.clone()),
            signal: SIGKILL,
            all: true,
        };
        self.begin(Purpose::CgroupKill, kill);
    }

    /// Whether every container has ended or has been sent SIGKILL. A pod's own, if there are others, does nothing by
    /// itself and does not count.
    fn nobody_goes_on(&self) -> bool {
        let others = self.containers.keys().any(|id| Some(id) != self.own.as_ref());
        let counts = |id: &ContainerId| !others || Some(id) != self.own.as_ref();
        let counted = self.containers.iter().filter(|(id, _)| counts(id));
        counted
            .map(|(_, container)| container)
            .all(|container| container.killed || container.life.has_ended())
    }

    /// Asks whether the agent answers, unless that is being asked.
    pub(crate) fn ping(&mut self) {
        let asked = self
            .jobs
            .values()
            .any(|purpose| matches!(purpose, Purpose::Ping { .. }));
        if !asked && self.has_vm() {
            let answers = self.answers;
            self.begin(Purpose::Ping { answers }, Work::Ping);
        }
    }

    /// An agent that has answered anything since is slow, and not dead.
    pub(crate) fn pinged(&mut self, answers: u64, answered: bool) {
        if !answered && answers == self.answers {
            self.end_vm(Reason::NoHeartbeat);
        }
    }
}
