//! Execs: added, started, deleted. An exec whose start fails half-way is killed, and can be deleted like any other.

use std::time::SystemTime;

use protocol::phase::{Phase, Verb};

use crate::id::ProcessName;
use crate::machine::{Core, Purpose};
use crate::message::{Answer, Effect, Event, Exit, Fault, Job, Refusal, Reply, Timer, View, Work};
use crate::state::{Exec, ExecDelete, ExecStart, ExecStep, InGuest, KILLED, Life, NOT_STARTED, SIGKILL};
use crate::step::Done;

impl<E: Clone> Core<E> {
    pub(crate) fn add_exec(&mut self, reply: Reply, name: ProcessName) {
        let init = ProcessName::init(name.container.clone());
        let known = self.containers.get_mut(&name.container);
        let Some(container) = known.filter(|container| container.is_known()) else {
            return self.refuse(reply, Refusal::NotFound(init));
        };
        if container.life.has_ended() {
            return self.refuse_phase(reply, Verb::Exec, init, Phase::Stopped);
        }
        let exec = name.exec.clone().filter(|exec| !container.execs.contains_key(exec));
        let Some(exec) = exec else {
            return self.refuse(reply, Refusal::Exists(name));
        };
        let added = Exec {
            life: Life::Created,
            start: None,
            guest: InGuest::No,
            overtaken: None,
            delete: None,
            signals: Vec::new(),
        };
        container.execs.insert(exec, added);
        self.effects.push(Effect::Record(name.clone(), reply));
        self.effects.push(Effect::Tell(name, Event::Added));
        self.answer(reply, Answer::Done);
    }

    pub(crate) fn start_exec(&mut self, reply: Reply, name: ProcessName) {
        let Some(exec) = self.exec_mut(&name) else {
            return self.refuse(reply, Refusal::NotFound(name));
        };
        let (life, deleting) = (exec.life, exec.delete.is_some());
        let init = self.containers.get(&name.container).map(|container| container.life);
        let phase = init.map_or(Phase::Stopped, |life| life.phase());
        if life != Life::Created || deleting {
            return self.refuse_phase(reply, Verb::Start, name, life.published());
        }
        if !phase.allows(Verb::Exec) {
            return self.refuse_phase(reply, Verb::Exec, ProcessName::init(name.container), phase);
        }
        if !self.has_vm() {
            let operation = "start";
            return self.refuse(reply, Refusal::NoVm { operation, name });
        }
        let job = self.begin(Purpose::Exec(name.clone()), Work::OpenStreams(name.clone()));
        if let Some(exec) = self.exec_mut(&name) {
            exec.life = Life::Starting { exit: None };
            exec.start = Some(ExecStart {
                reply,
                job,
                step: ExecStep::Opening,
            });
        }
        self.enter(name, Phase::Starting);
    }

    pub(crate) fn exec_finished(&mut self, now: SystemTime, name: &ProcessName, done: Done<E>) {
        let Some(start) = self.exec_mut(name).and_then(|exec| exec.start) else {
            return;
        };
        let next = match (start.step, done) {
            (ExecStep::Opening, Ok(())) => (ExecStep::InGuest, Work::GuestExec(name.clone())),
            (ExecStep::InGuest, Ok(())) => (ExecStep::Connecting, Work::ConnectExec(name.clone())),
            (ExecStep::Connecting, Ok(())) => return self.exec_started(now, name, start.reply),
            (step, Err(failure)) => {
                let guest = match (step, failure.fault) {
                    (ExecStep::Opening, _) | (ExecStep::InGuest, Fault::Refused | Fault::Phase | Fault::Missing) => {
                        InGuest::No
                    }
                    (ExecStep::InGuest | ExecStep::Connecting, _) => InGuest::Lingers,
                };
                return self.exec_failed(now, name, NOT_STARTED, guest, Answer::Failed(failure.error));
            }
        };
        let (step, work) = next;
        let job = self.begin(Purpose::Exec(name.clone()), work);
        if let Some(exec) = self.exec_mut(name) {
            exec.start = Some(ExecStart { job, step, ..start });
        }
    }

    fn exec_started(&mut self, now: SystemTime, name: &ProcessName, reply: Reply) {
        let Some(exec) = self.exec_mut(name) else { return };
        let early = match exec.life {
            Life::Starting { exit } => exit,
            _ => None,
        };
        exec.life = Life::Running;
        exec.guest = InGuest::Yes;
        exec.start = None;
        let signals = std::mem::take(&mut exec.signals);
        let enter = Effect::Enter(name.clone(), View::In(Phase::Running), Some(Event::Started));
        self.effects.push(enter);
        self.answer(reply, Answer::Done);
        if let Some((exit, output)) = early {
            self.begin_ending(name, exit, output);
        }
        self.send(now, name, signals);
    }

    /// Ends the start of an exec, whatever it waits for: it was sent SIGKILL. False where it is not being started.
    pub(crate) fn end_exec_start(&mut self, now: SystemTime, name: &ProcessName) -> bool {
        let Some(start) = self.exec_mut(name).and_then(|exec| exec.start) else {
            return false;
        };
        let guest = match start.step {
            ExecStep::Opening => InGuest::No,
            ExecStep::InGuest | ExecStep::Connecting => InGuest::Lingers,
        };
        if start.step == ExecStep::InGuest {
            // The guest may get the signal before this call, and then start the process: its answer is waited for.
            self.jobs.insert(start.job, Purpose::OvertakenExec(name.clone()));
            if let Some(exec) = self.exec_mut(name) {
                exec.overtaken = Some(start.job);
            }
        } else {
            self.abandon(start.job);
        }
        let refusal = Refusal::Interrupted(name.clone());
        self.exec_failed(now, name, KILLED, guest, Answer::Refused(refusal));
        true
    }

    /// The guest has answered the call to start an exec whose start was ended by SIGKILL.
    pub(crate) fn overtaken_exec_finished(&mut self, now: SystemTime, name: &ProcessName, job: Job, done: &Done<E>) {
        let Some(exec) = self.exec_mut(name).filter(|exec| exec.overtaken == Some(job)) else {
            return;
        };
        exec.overtaken = None;
        if exec.guest != InGuest::Lingers {
            return;
        }
        match done.as_ref().map_err(|failure| failure.fault) {
            // The signal may have come before the process.
            Ok(()) | Err(Fault::Unanswered | Fault::Stalled) => self.kill_exec(name),
            Err(Fault::Refused | Fault::Phase | Fault::Missing) => self.exec_has_ended(now, name),
            // The VM's end is on its way.
            Err(Fault::Gone) => {}
        }
    }

    /// A start that has failed, or was ended, and whose job is over or abandoned. Of an exec whose start was never
    /// published no exit is published.
    pub(crate) fn exec_failed(
        &mut self,
        now: SystemTime,
        name: &ProcessName,
        status: u32,
        guest: InGuest,
        answer: Answer<E>,
    ) {
        let Some(exec) = self.exec_mut(name) else { return };
        let Some(start) = exec.start.take() else { return };
        let ended = matches!(exec.life, Life::Starting { exit: Some(_) });
        let exit = Exit { status, at: now };
        exec.life = Life::Stopped(exit);
        exec.guest = match guest {
            InGuest::Lingers if ended => InGuest::Yes,
            guest => guest,
        };
        let lingers = exec.guest == InGuest::Lingers;
        let signals = std::mem::take(&mut exec.signals);
        self.effects.push(Effect::CloseStreams(name.clone()));
        self.effects
            .push(Effect::Enter(name.clone(), View::Stopped(exit), None));
        self.answer(start.reply, answer);
        if lingers {
            self.kill_exec(name);
        }
        self.send(now, name, signals);
        self.exec_is_over(now, name);
    }

    fn kill_exec(&mut self, name: &ProcessName) {
        let kill = Work::Signal {
            name: name.clone(),
            signal: SIGKILL,
            all: false,
        };
        self.begin(Purpose::ExecKill(name.clone()), kill);
    }

    pub(crate) fn exec_killed(&mut self, now: SystemTime, name: &ProcessName, done: &Done<E>) {
        let missing = matches!(done, Err(failure) if failure.fault == Fault::Missing);
        let overtaken = self.exec_mut(name).is_some_and(|exec| exec.overtaken.is_some());
        if missing && !overtaken {
            // It has ended, or never came to be: its deletion in the guest tells.
            self.exec_has_ended(now, name);
        }
    }

    /// An exec that was killed because its start failed has no process any more.
    pub(crate) fn exec_has_ended(&mut self, _: SystemTime, name: &ProcessName) {
        let Some(exec) = self.exec_mut(name) else { return };
        if exec.guest != InGuest::Lingers {
            return;
        }
        exec.guest = InGuest::Yes;
        let awaited = exec.delete.as_ref().filter(|delete| delete.awaits_exit);
        if let Some(job) = awaited.map(|delete| delete.job) {
            self.abandon(job);
            self.delete_exec_in_guest(name);
        }
    }

    pub(crate) fn delete_exec(&mut self, now: SystemTime, reply: Reply, name: ProcessName) {
        let has_vm = self.has_vm();
        let Some(exec) = self.exec_mut(&name) else {
            return self.refuse(reply, Refusal::NotFound(name));
        };
        if let Some(delete) = &mut exec.delete {
            return delete.replies.push(reply);
        }
        if !matches!(exec.life, Life::Created | Life::Stopped(_)) {
            let phase = exec.life.published();
            return self.refuse_phase(reply, Verb::Delete, name, phase);
        }
        let guest = exec.guest;
        exec.delete = Some(ExecDelete {
            replies: vec![reply],
            job: Job(0),
            awaits_exit: false,
            tried: false,
        });
        match guest {
            InGuest::Yes if has_vm => self.delete_exec_in_guest(&name),
            InGuest::Lingers if has_vm => self.await_exec_exit(&name),
            InGuest::No | InGuest::Yes | InGuest::Lingers => self.exec_removed(now, &name),
        }
    }

    fn delete_exec_in_guest(&mut self, name: &ProcessName) {
        let job = self.begin(Purpose::ExecDelete(name.clone()), Work::GuestDelete(name.clone()));
        if let Some(delete) = self.exec_mut(name).and_then(|exec| exec.delete.as_mut()) {
            delete.job = job;
            delete.awaits_exit = false;
        }
    }

    fn await_exec_exit(&mut self, name: &ProcessName) {
        let job = self.timer(Purpose::ExecDelete(name.clone()), Timer::Death);
        if let Some(delete) = self.exec_mut(name).and_then(|exec| exec.delete.as_mut()) {
            delete.job = job;
            delete.awaits_exit = true;
        }
    }

    /// Its exit is not reported: the guest says what there is to say, once it cannot start the process any more.
    pub(crate) fn exec_exit_missing(&mut self, name: &ProcessName) {
        match self.exec_mut(name).and_then(|exec| exec.overtaken) {
            Some(_) => self.await_exec_exit(name),
            None => self.delete_exec_in_guest(name),
        }
    }

    pub(crate) fn exec_deleted(&mut self, now: SystemTime, name: &ProcessName, done: Done<E>) {
        let Err(failure) = done else {
            return self.exec_removed(now, name);
        };
        if matches!(failure.fault, Fault::Missing | Fault::Gone) {
            return self.exec_removed(now, name);
        }
        let Some(exec) = self.exec_mut(name) else { return };
        let Some(delete) = &mut exec.delete else { return };
        let refused = matches!(failure.fault, Fault::Refused | Fault::Phase);
        if refused && !std::mem::replace(&mut delete.tried, true) {
            // It runs, though its start was never published, or though its exit was published at the container's end.
            exec.guest = InGuest::Lingers;
            self.kill_exec(name);
            return self.await_exec_exit(name);
        }
        if let Some(delete) = exec.delete.take() {
            for reply in delete.replies {
                self.answer(reply, Answer::Failed(failure.error.clone()));
            }
        }
    }

    /// Nothing of it is left.
    pub(crate) fn exec_removed(&mut self, now: SystemTime, name: &ProcessName) {
        let (Some(container), Some(exec)) = (self.containers.get_mut(&name.container), &name.exec) else {
            return;
        };
        let Some(exec) = container.execs.remove(exec) else {
            return;
        };
        let exit = match exec.life {
            Life::Stopped(exit) => exit,
            // Never started: the guest does not know it.
            _ => Exit { status: 0, at: now },
        };
        if !exec.life.has_ended() {
            // Wakes who waits.
            self.effects
                .push(Effect::Enter(name.clone(), View::Stopped(exit), None));
        }
        self.effects.push(Effect::Forget(name.clone(), None));
        for reply in exec.delete.into_iter().flat_map(|delete| delete.replies) {
            self.answer(reply, Answer::Deleted(exit));
        }
    }
}
