//! One step: passes an input to the object that it concerns, and then starts queued requests.

use std::time::SystemTime;

use crate::id::{ContainerId, ProcessName};
use crate::machine::{Core, Purpose};
use crate::message::{Effect, Failure, Fault, Input, Job, Refusal, Reply, Request};
use crate::state::Operation;

pub(crate) type Done<E> = Result<(), Failure<E>>;

impl<E: Clone> Core<E> {
    /// Takes one input. `now` is the time of what has no time of its own.
    #[must_use]
    pub fn step(&mut self, now: SystemTime, input: Input<E>) -> Vec<Effect<E>> {
        match input {
            Input::Request(reply, request) => self.request(now, reply, request),
            Input::ClientGone(reply) => self.client_gone(now, reply),
            Input::Finished(job, done) => self.finished(now, job, done),
            Input::Elapsed(job) => self.elapsed(now, job),
            Input::Exited(name, exit, output) => {
                self.answers += 1;
                self.exited(&name, exit, output);
            }
            Input::VmReady => self.vm_ready(),
            Input::VmEnded { out_of_memory } => self.vm_ended(now, out_of_memory),
        }
        while let Some(id) = self.idle.pop() {
            let Some(container) = self.containers.get_mut(&id) else {
                continue;
            };
            if container.operation.is_none() && !container.signals.is_empty() {
                let signals = std::mem::take(&mut container.signals);
                self.send(now, &ProcessName::init(id.clone()), signals);
            }
            let Some(container) = self.containers.get_mut(&id) else {
                continue;
            };
            if container.operation.is_none()
                && let Some((reply, request)) = container.waiting.pop_front()
            {
                self.request(now, reply, request);
                // The next one, if that has been answered at once.
                self.idle.push(id);
            }
        }
        std::mem::take(&mut self.effects)
    }

    fn request(&mut self, now: SystemTime, reply: Reply, request: Request) {
        match request {
            Request::Create(id) => self.create(reply, id),
            Request::AddExec(name) => self.add_exec(reply, name),
            Request::Kill { name, signal, all } => self.kill(now, reply, name, signal, all),
            Request::Start(name) if name.exec.is_some() => self.start_exec(reply, name),
            Request::Delete(name) if name.exec.is_some() => self.delete_exec(now, reply, name),
            Request::Start(ref name) | Request::Delete(ref name) => {
                let id = name.container.clone();
                self.take_turn(now, reply, id, request);
            }
            Request::Pause(ref id) | Request::Resume(ref id) | Request::Update(ref id) => {
                let id = id.clone();
                self.take_turn(now, reply, id, request);
            }
        }
    }

    /// What changes a container happens one after the other.
    fn take_turn(&mut self, now: SystemTime, reply: Reply, id: ContainerId, request: Request) {
        let known = self.containers.get_mut(&id);
        let Some(container) = known.filter(|container| container.is_known()) else {
            return self.refuse(reply, Refusal::NotFound(ProcessName::init(id)));
        };
        match (&mut container.operation, &request) {
            (Some(Operation::Remove(remove)), Request::Delete(_)) => return remove.join(reply),
            (Some(_), _) => return container.waiting.push_back((reply, request)),
            (None, _) => {}
        }
        match request {
            Request::Start(_) => self.start(reply, &id),
            Request::Pause(_) => self.freeze(reply, &id, true),
            Request::Resume(_) => self.freeze(reply, &id, false),
            Request::Update(_) => self.update(reply, &id),
            Request::Delete(_) => self.delete(now, reply, id),
            // They take no turn.
            Request::Create(_) | Request::AddExec(_) | Request::Kill { .. } => {}
        }
    }

    fn finished(&mut self, now: SystemTime, job: Job, done: Done<E>) {
        // None: it was reported twice, or nobody waits any more.
        let Some(purpose) = self.jobs.remove(&job) else { return };
        let answered = !matches!(
            &done,
            Err(Failure {
                fault: Fault::Unanswered | Fault::Gone | Fault::Stalled,
                ..
            })
        );
        if self.guests.remove(&job) && answered {
            self.answers += 1;
        }
        match purpose {
            Purpose::Operation(id) => self.operation_finished(now, &id, done),
            Purpose::Exec(name) => self.exec_finished(now, &name, done),
            Purpose::ExecDelete(name) => self.exec_deleted(now, &name, done),
            Purpose::OvertakenCreate(id) => self.overtaken_create_finished(now, &id, job, &done),
            Purpose::OvertakenExec(name) => self.overtaken_exec_finished(now, &name, job, &done),
            Purpose::ExecKill(name) => self.exec_killed(now, &name, &done),
            Purpose::Streams(name) => self.streams_finished(now, &name),
            Purpose::Signal { name, reply, timer } => self.signalled(&name, reply, timer, done),
            Purpose::Ping { answers } => self.pinged(answers, answered),
            Purpose::StartHooks(id) => self.start_hooks_finished(&id, done),
            // What they are for goes on by a timer.
            Purpose::CgroupKill | Purpose::ExecExits(_) | Purpose::KillAnswer(_) | Purpose::Ladder(_) => {}
        }
    }

    fn operation_finished(&mut self, now: SystemTime, id: &ContainerId, done: Done<E>) {
        let operation = self
            .containers
            .get(id)
            .and_then(|container| container.operation.as_ref());
        match operation {
            Some(Operation::Create { reply, step }) => {
                let (reply, step) = (*reply, *step);
                self.create_finished(now, id, reply, step, done);
            }
            Some(Operation::Start { reply, .. }) => {
                let reply = *reply;
                self.start_finished(id, reply, done);
            }
            Some(Operation::Freeze { .. }) => self.freeze_finished(id, done),
            Some(Operation::Update { reply, .. }) => {
                let reply = *reply;
                self.update_finished(id, reply, done);
            }
            Some(Operation::Remove(remove)) => {
                let step = remove.step;
                self.remove_finished(now, id, step, done);
            }
            None => {}
        }
    }

    fn elapsed(&mut self, now: SystemTime, job: Job) {
        let Some(purpose) = self.jobs.remove(&job) else { return };
        match purpose {
            Purpose::KillAnswer(name) => self.kill_unanswered(&name),
            Purpose::Ladder(id) => self.climb(&id),
            Purpose::ExecExits(id) => self.exec_exits_missing(now, &id),
            Purpose::ExecDelete(name) => self.exec_exit_missing(&name),
            Purpose::Operation(id) => self.stop_hooks_overdue(now, &id),
            // No timers.
            Purpose::Exec(_)
            | Purpose::OvertakenCreate(_)
            | Purpose::OvertakenExec(_)
            | Purpose::ExecKill(_)
            | Purpose::Streams(_)
            | Purpose::Signal { .. }
            | Purpose::CgroupKill
            | Purpose::Ping { .. }
            | Purpose::StartHooks(_) => {}
        }
    }

    /// The container's operation is over, and others get their turn.
    pub(crate) fn end_operation(&mut self, id: &ContainerId) {
        if let Some(container) = self.containers.get_mut(id) {
            container.operation = None;
            self.idle.push(id.clone());
        }
    }
}
