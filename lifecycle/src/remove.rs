//! Releases a container's resources in this order: in the guest, its disks, its mounts. For a deletion, and for a failed
//! creation.
//!
//! A disk is unplugged only after the guest has removed the container, and with it unmounted the disk's file system, or
//! after the VM has ended. Resources that cannot be released stay with the container, which can be deleted again.

use std::time::SystemTime;

use protocol::phase::Verb;

use crate::id::{ContainerId, ProcessName};
use crate::machine::{Core, Purpose};
use crate::message::{Answer, Effect, Event, Exit, Failure, Fault, Output, Reason, Refusal, Reply, Timer, View, Work};
use crate::state::{Cause, Held, KILLED, Life, Operation, OvertakenCreate, Remove, RemoveStep, Vm};
use crate::step::Done;

/// Status of a container whose creation has failed.
const NOT_CREATED: u32 = 255;

impl<E: Clone> Core<E> {
    pub(crate) fn held(&mut self, id: &ContainerId, change: impl FnOnce(&mut Held)) {
        if let Some(container) = self.containers.get_mut(id) {
            change(&mut container.held);
        }
    }

    /// Undoes a creation.
    pub(crate) fn undo(&mut self, now: SystemTime, id: &ContainerId, reply: Reply, answer: Answer<E>) {
        self.effects.push(Effect::CloseStreams(ProcessName::init(id.clone())));
        let cause = Cause::Undo {
            reply,
            answer,
            joined: Vec::new(),
        };
        self.begin_removal(now, id, cause);
    }

    /// The deletion of a container, whose turn it is.
    pub(crate) fn delete(&mut self, now: SystemTime, reply: Reply, id: ContainerId) {
        let Some(container) = self.containers.get(&id) else {
            return;
        };
        match container.life {
            Life::Created | Life::Stopped(_) => self.begin_removal(now, &id, Cause::Delete(vec![reply])),
            life => self.refuse_phase(reply, Verb::Delete, ProcessName::init(id), life.published()),
        }
    }

    fn begin_removal(&mut self, now: SystemTime, id: &ContainerId, cause: Cause<E>) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let step = RemoveStep::Stopping;
        container.operation = Some(Operation::Remove(Remove { step, cause }));
        match container.held.guest {
            true => self.remove_in_guest(now, id),
            false => self.gone_from_guest(now, id),
        }
    }

    fn remove_in_guest(&mut self, now: SystemTime, id: &ContainerId) {
        match self.vm {
            Vm::Ready => {
                let name = ProcessName::init(id.clone());
                let job = self.begin(Purpose::Operation(id.clone()), Work::GuestDelete(name));
                self.removal_at(id, RemoveStep::InGuest(job));
            }
            Vm::Ending => self.removal_at(id, RemoveStep::VmsEnd),
            Vm::Booting | Vm::Ended => self.gone_from_guest(now, id),
        }
    }

    /// The guest does not have the container. It may have it yet if the call to make it was interrupted.
    fn missing_in_guest(&mut self, now: SystemTime, id: &ContainerId) {
        self.removal_at(id, RemoveStep::OvertakenCreate);
        self.removal_is_sure(now, id);
    }

    /// Goes on with a removal that waits for the answer to an interrupted creation, if that has come.
    pub(crate) fn removal_is_sure(&mut self, now: SystemTime, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let Some(Operation::Remove(Remove {
            step: RemoveStep::OvertakenCreate,
            ..
        })) = container.operation
        else {
            return;
        };
        match container.overtaken {
            None => self.gone_from_guest(now, id),
            Some(OvertakenCreate::Unanswered(_)) => {}
            Some(OvertakenCreate::Made) => {
                container.overtaken = None;
                self.remove_in_guest(now, id);
            }
        }
    }

    fn removal_at(&mut self, id: &ContainerId, at: RemoveStep) {
        let container = self.containers.get_mut(id);
        if let Some(Operation::Remove(remove)) = container.and_then(|container| container.operation.as_mut()) {
            remove.step = at;
        }
    }

    pub(crate) fn remove_finished(&mut self, now: SystemTime, id: &ContainerId, step: RemoveStep, done: Done<E>) {
        match (step, done) {
            (RemoveStep::InGuest(_), Ok(())) => self.gone_from_guest(now, id),
            (
                RemoveStep::InGuest(_),
                Err(Failure {
                    fault: Fault::Missing, ..
                }),
            ) => self.missing_in_guest(now, id),
            (RemoveStep::InGuest(_), Err(Failure { fault: Fault::Gone, .. })) => {
                // The VM is about to end: nothing is unplugged before.
                self.removal_at(id, RemoveStep::VmsEnd);
            }
            (RemoveStep::InGuest(_), Err(failure)) => self.guest_holds_on(now, id, failure),
            // A disk that the guest holds on to is freed by the VM's end.
            (RemoveStep::Disks(_), _) => {
                self.held(id, |held| held.provisioned = false);
                self.detach(now, id);
            }
            (RemoveStep::Detaching(_), Ok(())) => {
                self.held(id, |held| held.attached = false);
                self.run_stop_hooks(id);
            }
            (RemoveStep::Detaching(_), Err(failure)) => self.removal_failed(now, id, failure.error),
            (RemoveStep::Hooks { timer, .. }, _) => {
                self.abandon(timer);
                self.removed(now, id);
            }
            (RemoveStep::OvertakenCreate | RemoveStep::VmsEnd | RemoveStep::Stopping, _) => {}
        }
    }

    /// A container that has stopped must be deletable, but a neighbour that may be well is not worth the VM: whoever asks is told to try
    /// again. So is whoever deletes the last one that lives, once: what is on its disks may be saved yet. A pod's own container does
    /// nothing by itself and does not count.
    fn guest_holds_on(&mut self, now: SystemTime, id: &ContainerId, failure: Failure<E>) {
        let counts = |other: &ContainerId| other != id && Some(other) != self.own.as_ref();
        let mut others = self.containers.iter().filter(|(other, _)| counts(other));
        let alone = others.all(|(_, container)| container.life.has_ended());
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let again = container.refused > 0;
        container.refused += 1;
        let hangs = matches!(failure.fault, Fault::Stalled | Fault::Unanswered);
        if alone && (hangs || again) {
            self.end_vm(Reason::Undeletable(id.clone()));
            return self.removal_at(id, RemoveStep::VmsEnd);
        }
        if failure.fault == Fault::Unanswered {
            // The neighbour may not be well either.
            self.ping();
        }
        self.removal_failed(now, id, failure.error);
    }

    /// The guest has it no more, or there is no guest.
    pub(crate) fn gone_from_guest(&mut self, now: SystemTime, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        container.held.guest = false;
        let life = container.life;
        if let Some(OvertakenCreate::Unanswered(job)) = container.overtaken.take() {
            self.abandon(job);
        }
        let exit = Exit {
            status: KILLED,
            at: now,
        };
        match life {
            Life::Stopped(_) => self.release_disks(now, id),
            Life::Creating { .. } => {
                if let Some(container) = self.containers.get_mut(id) {
                    container.life = Life::Stopped(Exit {
                        status: NOT_CREATED,
                        at: now,
                    });
                }
                self.release_disks(now, id);
            }
            // Its exit is published before its deletion.
            Life::Ending { .. } => self.removal_at(id, RemoveStep::Stopping),
            Life::Created | Life::Starting { .. } | Life::Running | Life::Paused => {
                self.removal_at(id, RemoveStep::Stopping);
                self.begin_ending(&ProcessName::init(id.clone()), exit, Output::default());
            }
        }
    }

    /// Its exit has been published; a removal that waits for that goes on.
    pub(crate) fn removal_goes_on(&mut self, now: SystemTime, id: &ContainerId) {
        let operation = self
            .containers
            .get(id)
            .and_then(|container| container.operation.as_ref());
        if let Some(Operation::Remove(Remove {
            step: RemoveStep::Stopping,
            ..
        })) = operation
        {
            self.release_disks(now, id);
        }
    }

    fn release_disks(&mut self, now: SystemTime, id: &ContainerId) {
        let provisioned = self
            .containers
            .get(id)
            .is_some_and(|container| container.held.provisioned);
        if !provisioned {
            return self.detach(now, id);
        }
        self.effects.push(Effect::Uncount(id.clone()));
        let job = self.begin(Purpose::Operation(id.clone()), Work::ReleaseDisks(id.clone()));
        self.removal_at(id, RemoveStep::Disks(job));
    }

    fn detach(&mut self, _: SystemTime, id: &ContainerId) {
        let attached = self.containers.get(id).is_some_and(|container| container.held.attached);
        if !attached {
            return self.run_stop_hooks(id);
        }
        let job = self.begin(Purpose::Operation(id.clone()), Work::Detach(id.clone()));
        self.removal_at(id, RemoveStep::Detaching(job));
    }

    /// Also of a creation that has failed, as runc does: what the hooks of the creation have done is undone by them.
    fn run_stop_hooks(&mut self, id: &ContainerId) {
        let purpose = || Purpose::Operation(id.clone());
        let job = self.begin(purpose(), Work::StopHooks(id.clone()));
        let timer = self.timer(purpose(), Timer::StopHooks);
        self.removal_at(id, RemoveStep::Hooks { job, timer });
    }

    /// The hooks that follow a deletion take too long: it is not held up by them.
    pub(crate) fn stop_hooks_overdue(&mut self, now: SystemTime, id: &ContainerId) {
        let operation = self
            .containers
            .get(id)
            .and_then(|container| container.operation.as_ref());
        if let Some(Operation::Remove(Remove {
            step: RemoveStep::Hooks { job, .. },
            ..
        })) = operation
        {
            let job = *job;
            self.abandon(job);
            self.removed(now, id);
        }
    }

    /// Something is left. The container stays, stopped, and can be deleted again.
    fn removal_failed(&mut self, now: SystemTime, id: &ContainerId, error: E) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let operation = container.operation.take();
        let name = ProcessName::init(id.clone());
        if matches!(container.life, Life::Creating { .. }) {
            let exit = Exit {
                status: NOT_CREATED,
                at: now,
            };
            container.life = Life::Stopped(exit);
        }
        let life = container.life;
        self.end_operation(id);
        let Some(Operation::Remove(remove)) = operation else {
            return;
        };
        let replies = match remove.cause {
            Cause::Undo { reply, answer, joined } => {
                // From now on others see it.
                if let Life::Stopped(exit) = life {
                    self.effects.push(Effect::Enter(name, View::Stopped(exit), None));
                }
                self.answer(reply, answer);
                joined
            }
            Cause::Delete(replies) => replies,
        };
        for reply in replies {
            self.answer(reply, Answer::Failed(error.clone()));
        }
    }

    /// Nothing of it is left: its id is free.
    fn removed(&mut self, now: SystemTime, id: &ContainerId) {
        let Some(container) = self.containers.remove(id) else {
            return;
        };
        let name = ProcessName::init(id.clone());
        if let Some((job, reply)) = container.start_hooks {
            self.abandon(job);
            self.answer(reply, Answer::Done);
        }
        for (exec, state) in container.execs {
            let name = ProcessName {
                container: id.clone(),
                exec: Some(exec),
            };
            if let Some(delete) = state.delete {
                self.abandon(delete.job);
                for reply in delete.replies {
                    self.refuse(reply, Refusal::NotFound(name.clone()));
                }
            }
            if !state.life.has_ended() {
                // Wakes who waits.
                let exit = Exit { status: 0, at: now };
                self.effects.push(Effect::Enter(name, View::Stopped(exit), None));
            }
        }
        let exit = match container.life {
            Life::Stopped(exit) => Some(exit),
            _ => None,
        };
        // Published first: what happens to whoever takes the id again is published later.
        let event = exit.filter(|_| container.announced).map(Event::Deleted);
        self.effects.push(Effect::Forget(name.clone(), event));
        for (reply, _) in container.waiting {
            self.refuse(reply, Refusal::NotFound(name.clone()));
        }
        if let Some(Operation::Remove(remove)) = container.operation {
            match (remove.cause, exit) {
                (Cause::Undo { reply, answer, joined }, _) => {
                    self.answer(reply, answer);
                    for reply in joined {
                        self.refuse(reply, Refusal::NotFound(name.clone()));
                    }
                }
                (Cause::Delete(replies), Some(exit)) => {
                    for reply in replies {
                        self.answer(reply, Answer::Deleted(exit));
                    }
                }
                (Cause::Delete(replies), None) => {
                    for reply in replies {
                        self.refuse(reply, Refusal::NotFound(name.clone()));
                    }
                }
            }
        }
    }
}
