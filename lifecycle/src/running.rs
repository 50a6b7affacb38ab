//! Start, pause, resume and update of a container: one after the other. Each is completed even if its caller has
//! disconnected.

use protocol::phase::{Phase, Verb};

use crate::id::{ContainerId, ProcessName};
use crate::machine::{Core, Purpose};
use crate::message::{Answer, Effect, Event, Failure, Fault, Refusal, Reply, View, Work};
use crate::state::{Life, Operation};
use crate::step::Done;

impl<E: Clone> Core<E> {
    /// Whether the VM and the phase allow it; whoever asks is told if not.
    fn allows(&mut self, reply: Reply, id: &ContainerId, verb: Verb) -> bool {
        let Some(container) = self.containers.get(id) else {
            return false;
        };
        let (life, name) = (container.life, ProcessName::init(id.clone()));
        if !life.phase().allows(verb) {
            match verb {
                Verb::Update => self.refuse(reply, Refusal::Finished(name)),
                _ => self.refuse_phase(reply, verb, name, life.published()),
            }
            return false;
        }
        if !self.has_vm() {
            let operation = verb.name();
            self.refuse(reply, Refusal::NoVm { operation, name });
            return false;
        }
        true
    }

    fn set_operation(&mut self, id: &ContainerId, operation: Operation<E>) {
        if let Some(container) = self.containers.get_mut(id) {
            container.operation = Some(operation);
        }
    }

    pub(crate) fn start(&mut self, reply: Reply, id: &ContainerId) {
        if self.allows(reply, id, Verb::Start) {
            // Whoever asked for the container may have put a network into its namespace since the creation.
            let job = self.begin(Purpose::Operation(id.clone()), Work::Network(id.clone()));
            self.set_operation(id, Operation::Start { reply, job });
        }
    }

    pub(crate) fn start_finished(&mut self, id: &ContainerId, reply: Reply, done: Done<E>) {
        let name = ProcessName::init(id.clone());
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let life = container.life;
        match (life, done) {
            (Life::Created, Ok(())) => {
                container.life = Life::Starting { exit: None };
                let job = self.begin(Purpose::Operation(id.clone()), Work::GuestStart(id.clone()));
                self.set_operation(id, Operation::Start { reply, job });
                self.enter(name, Phase::Starting);
            }
            (Life::Starting { exit }, Ok(())) => {
                container.life = Life::Running;
                let enter = Effect::Enter(name.clone(), View::In(Phase::Running), Some(Event::Started));
                self.effects.push(enter);
                // They may take as long as they like: nothing else waits for them.
                let job = self.begin(Purpose::StartHooks(id.clone()), Work::StartHooks(id.clone()));
                if let Some(container) = self.containers.get_mut(id) {
                    container.start_hooks = Some((job, reply));
                }
                self.end_operation(id);
                if let Some((exit, output)) = exit {
                    self.begin_ending(&name, exit, output);
                }
            }
            (Life::Starting { .. }, Err(failure)) => {
                self.start_failed(id, reply, Answer::Failed(failure.error), failure.fault);
            }
            (_, Err(failure)) => {
                self.end_operation(id);
                self.answer(reply, Answer::Failed(failure.error));
            }
            // It has ended while the network was looked at.
            (life, Ok(())) => {
                self.end_operation(id);
                self.refuse_phase(reply, Verb::Start, name, life.phase());
            }
        }
    }

    /// It is as before, unless the guest has started it all the same: then it is killed.
    pub(crate) fn start_failed(&mut self, id: &ContainerId, reply: Reply, answer: Answer<E>, fault: Fault) {
        let name = ProcessName::init(id.clone());
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let Life::Starting { exit: early } = container.life else {
            // The guest has not been asked yet.
            self.end_operation(id);
            return self.answer(reply, answer);
        };
        container.life = Life::Created;
        self.effects.push(Effect::CloseStreams(name.clone()));
        self.enter(name.clone(), Phase::Created);
        self.end_operation(id);
        self.answer(reply, answer);
        match early {
            Some((exit, output)) => self.begin_ending(&name, exit, output),
            None if matches!(fault, Fault::Unanswered | Fault::Stalled) => {
                self.kill_cgroup(id);
                self.see_to_end(id);
            }
            None => {}
        }
    }

    /// OCI runtime spec 1.3, lifecycle: where they fail the container is stopped, and that is the start's error.
    pub(crate) fn start_hooks_finished(&mut self, id: &ContainerId, done: Done<E>) {
        let container = self.containers.get_mut(id);
        let Some((_, reply)) = container.and_then(|container| container.start_hooks.take()) else {
            return;
        };
        let Err(failure) = done else {
            return self.answer(reply, Answer::Done);
        };
        self.answer(reply, Answer::Failed(failure.error));
        if self.has_vm() {
            self.kill_cgroup(id);
            self.see_to_end(id);
        }
    }

    pub(crate) fn freeze(&mut self, reply: Reply, id: &ContainerId, pause: bool) {
        let verb = if pause { Verb::Pause } else { Verb::Resume };
        if self.allows(reply, id, verb) {
            self.begin_freeze(reply, id, pause, None);
        }
    }

    fn begin_freeze(&mut self, reply: Reply, id: &ContainerId, pause: bool, undo: Option<E>) {
        let work = match pause && undo.is_none() {
            true => Work::GuestPause(id.clone()),
            false => Work::GuestResume(id.clone()),
        };
        let job = self.begin(Purpose::Operation(id.clone()), work);
        let freeze = Operation::Freeze {
            reply,
            job,
            pause,
            undo,
        };
        self.set_operation(id, freeze);
    }

    pub(crate) fn freeze_finished(&mut self, id: &ContainerId, done: Done<E>) {
        let name = ProcessName::init(id.clone());
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let Some(Operation::Freeze { reply, pause, undo, .. }) = container.operation.take() else {
            return;
        };
        if let Some(error) = undo {
            // Unless it goes on, or was never frozen, it is one that is paused, and can be resumed.
            let goes_on = match &done {
                Ok(()) => true,
                Err(failure) => failure.fault == Fault::Phase,
            };
            if !goes_on && !container.life.has_ended() {
                container.life = Life::Paused;
                let view = View::In(Phase::Paused);
                self.effects.push(Effect::Enter(name, view, Some(Event::Paused)));
            }
            self.end_operation(id);
            return self.answer(reply, Answer::Failed(error));
        }
        let (phase, event, life) = match pause {
            true => (Phase::Paused, Event::Paused, Life::Paused),
            false => (Phase::Running, Event::Resumed, Life::Running),
        };
        match done {
            // It has ended meanwhile.
            _ if container.life.has_ended() => {
                self.end_operation(id);
                self.refuse(reply, Refusal::Finished(name));
            }
            // The guest may say that it is not paused: an answer to an earlier resume was lost.
            Err(failure) if failure.fault != Fault::Phase || pause => {
                if pause && failure.fault == Fault::Unanswered {
                    return self.begin_freeze(reply, id, pause, Some(failure.error));
                }
                self.end_operation(id);
                self.answer(reply, Answer::Failed(failure.error));
            }
            Ok(()) | Err(Failure { .. }) => {
                container.life = life;
                self.effects.push(Effect::Enter(name, View::In(phase), Some(event)));
                self.end_operation(id);
                self.answer(reply, Answer::Done);
            }
        }
    }

    pub(crate) fn update(&mut self, reply: Reply, id: &ContainerId) {
        if self.allows(reply, id, Verb::Update) {
            let job = self.begin(Purpose::Operation(id.clone()), Work::Update(id.clone(), reply));
            self.set_operation(id, Operation::Update { reply, job });
        }
    }

    pub(crate) fn update_finished(&mut self, id: &ContainerId, reply: Reply, done: Done<E>) {
        let stopped = self
            .containers
            .get(id)
            .is_some_and(|container| matches!(container.life, Life::Stopped(_)));
        if stopped {
            // What it had must not be counted again.
            self.effects.push(Effect::Uncount(id.clone()));
        }
        self.end_operation(id);
        match done {
            Ok(()) => self.answer(reply, Answer::Done),
            Err(failure) => self.answer(reply, Answer::Failed(failure.error)),
        }
    }
}
