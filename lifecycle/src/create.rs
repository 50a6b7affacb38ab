//! Create: mounts while the guest boots, hooks, disks and memory, the guest, the streams. If it cannot be completed, the
//! finished steps are undone.

use std::time::SystemTime;

use protocol::phase::Phase;

use crate::id::{ContainerId, ProcessName};
use crate::machine::{Core, Purpose};
use crate::message::{Answer, Effect, Event, Fault, Job, Refusal, Reply, View, Work};
use crate::state::{Container, CreateStep, Life, Operation, OvertakenCreate, Vm};
use crate::step::Done;

impl<E: Clone> Core<E> {
    pub(crate) fn create(&mut self, reply: Reply, id: ContainerId) {
        let name = ProcessName::init(id.clone());
        if self.containers.contains_key(&id) {
            return self.refuse(reply, Refusal::Exists(name));
        }
        if matches!(self.vm, Vm::Ending | Vm::Ended) {
            return self.refuse_create(reply, name);
        }
        let job = self.begin(Purpose::Operation(id.clone()), Work::Attach(id.clone()));
        // Before the work begins: it must not be dropped under it.
        self.effects.insert(self.effects.len() - 1, Effect::Record(name, reply));
        let mut container = Container::new();
        container.held.attached = true;
        container.operation = Some(Operation::Create {
            reply,
            step: CreateStep::Attaching(job),
        });
        self.containers.insert(id, container);
    }

    fn refuse_create(&mut self, reply: Reply, name: ProcessName) {
        self.refuse(reply, no_vm(name));
    }

    pub(crate) fn create_finished(
        &mut self,
        now: SystemTime,
        id: &ContainerId,
        reply: Reply,
        step: CreateStep,
        done: Done<E>,
    ) {
        if let Err(failure) = done {
            return self.undo(now, id, reply, Answer::Failed(failure.error));
        }
        match step {
            CreateStep::Attaching(_) if self.vm == Vm::Booting => self.set_step(id, CreateStep::WaitingForVm),
            CreateStep::Attaching(_) | CreateStep::WaitingForVm => self.run_create_hooks(id),
            CreateStep::Hooks(_) => {
                let job = self.begin(Purpose::Operation(id.clone()), Work::Provision(id.clone()));
                self.held(id, |held| held.provisioned = true);
                self.set_step(id, CreateStep::Provisioning(job));
            }
            CreateStep::Provisioning(_) => {
                let job = self.begin(Purpose::Operation(id.clone()), Work::GuestCreate(id.clone()));
                self.held(id, |held| held.guest = true);
                self.set_step(id, CreateStep::InGuest(job));
            }
            CreateStep::InGuest(_) => {
                let job = self.begin(Purpose::Operation(id.clone()), Work::Connect(id.clone()));
                self.set_step(id, CreateStep::Connecting(job));
            }
            CreateStep::Connecting(_) => self.created(id, reply),
        }
    }

    fn set_step(&mut self, id: &ContainerId, new: CreateStep) {
        let container = self.containers.get_mut(id);
        if let Some(Operation::Create { step, .. }) = container.and_then(|container| container.operation.as_mut()) {
            *step = new;
        }
    }

    fn run_create_hooks(&mut self, id: &ContainerId) {
        let job = self.begin(Purpose::Operation(id.clone()), Work::CreateHooks(id.clone()));
        self.set_step(id, CreateStep::Hooks(job));
    }

    /// The VM is up: those that have their mounts go on.
    pub(crate) fn creations_go_on(&mut self) {
        let waits = |container: &Container<E>| {
            matches!(
                container.operation,
                Some(Operation::Create {
                    step: CreateStep::WaitingForVm,
                    ..
                })
            )
        };
        let waiting = self.containers.iter().filter(|(_, container)| waits(container));
        let waiting: Vec<_> = waiting.map(|(id, _)| id.clone()).collect();
        for id in waiting {
            self.run_create_hooks(&id);
        }
    }

    fn created(&mut self, id: &ContainerId, reply: Reply) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let early = match container.life {
            Life::Creating { exit } => exit,
            _ => None,
        };
        container.life = Life::Created;
        container.announced = true;
        let name = ProcessName::init(id.clone());
        let enter = Effect::Enter(name.clone(), View::In(Phase::Created), Some(Event::Created));
        self.effects.push(enter);
        self.end_operation(id);
        self.answer(reply, Answer::Done);
        if let Some((exit, output)) = early {
            self.begin_ending(&name, exit, output);
        }
    }

    /// Whoever asked for a creation is gone.
    pub(crate) fn client_gone(&mut self, now: SystemTime, gone: Reply) {
        let creation = self.containers.iter().find_map(|(id, container)| {
            let asked = matches!(&container.operation, Some(Operation::Create { reply, .. }) if *reply == gone);
            asked.then(|| id.clone())
        });
        if let Some(id) = creation {
            let name = ProcessName::init(id.clone());
            self.interrupt_creation(now, &id, Refusal::Interrupted(name));
        }
    }

    /// Ends a creation, whatever it waits for.
    pub(crate) fn interrupt_creation(&mut self, now: SystemTime, id: &ContainerId, refusal: Refusal) {
        let operation = self
            .containers
            .get(id)
            .and_then(|container| container.operation.as_ref());
        let Some(Operation::Create { reply, step }) = operation else {
            return;
        };
        let (reply, step) = (*reply, *step);
        match step {
            CreateStep::Attaching(job)
            | CreateStep::Hooks(job)
            | CreateStep::Provisioning(job)
            | CreateStep::Connecting(job) => self.abandon(job),
            CreateStep::InGuest(job) => self.overtake_create(id, job),
            CreateStep::WaitingForVm => {}
        }
        self.undo(now, id, reply, Answer::Refused(refusal));
    }
}

impl<E: Clone> Core<E> {
    /// The guest may get the call to delete the container before this one, which makes it: its answer is waited for.
    fn overtake_create(&mut self, id: &ContainerId, job: Job) {
        if !self.has_vm() {
            return self.abandon(job);
        }
        self.jobs.insert(job, Purpose::OvertakenCreate(id.clone()));
        if let Some(container) = self.containers.get_mut(id) {
            container.overtaken = Some(OvertakenCreate::Unanswered(job));
        }
    }

    /// The guest has answered the call to make a container whose creation was interrupted.
    pub(crate) fn overtaken_create_finished(&mut self, now: SystemTime, id: &ContainerId, job: Job, done: &Done<E>) {
        let container = self.containers.get_mut(id);
        let Some(container) =
            container.filter(|container| container.overtaken == Some(OvertakenCreate::Unanswered(job)))
        else {
            return;
        };
        let is_made = match done.as_ref().map_err(|failure| failure.fault) {
            Ok(()) | Err(Fault::Unanswered | Fault::Stalled | Fault::Gone) => true,
            Err(Fault::Refused | Fault::Phase | Fault::Missing) => false,
        };
        container.overtaken = is_made.then_some(OvertakenCreate::Made);
        self.removal_is_sure(now, id);
    }
}

/// The refusal of a creation without a VM.
pub(crate) fn no_vm(name: ProcessName) -> Refusal {
    Refusal::NoVm {
        operation: "create",
        name,
    }
}
