//! The VM's beginning and end. Its end is the end of everything that runs in it and of every call to it.

use std::time::SystemTime;

use crate::create::no_vm;
use crate::id::{ContainerId, ExecId, ProcessName};
use crate::machine::{Core, Purpose};
use crate::message::{Answer, Effect, Event, Exit, Fault, Output, Refusal};
use crate::state::{InGuest, KILLED, Life, Operation, Remove, RemoveStep, Vm};

impl<E: Clone> Core<E> {
    pub(crate) fn vm_ready(&mut self) {
        if self.vm == Vm::Booting {
            self.vm = Vm::Ready;
            self.creations_go_on();
        }
    }

    pub(crate) fn vm_ended(&mut self, now: SystemTime, out_of_memory: bool) {
        if self.vm == Vm::Ended {
            return;
        }
        self.vm = Vm::Ended;
        self.end_calls();
        let ids: Vec<_> = self.containers.keys().cloned().collect();
        for id in ids {
            self.end_container(now, &id, out_of_memory);
        }
    }

    /// What was asked of the guest beside the containers' operations.
    fn end_calls(&mut self) {
        let ends = |purpose: &Purpose| {
            matches!(
                purpose,
                Purpose::Signal { .. }
                    | Purpose::CgroupKill
                    | Purpose::Ping { .. }
                    | Purpose::ExecKill(_)
                    | Purpose::OvertakenCreate(_)
                    | Purpose::OvertakenExec(_)
            )
        };
        let jobs = self.jobs.iter().filter(|(_, purpose)| ends(purpose));
        let jobs: Vec<_> = jobs.map(|(job, purpose)| (*job, purpose.clone())).collect();
        for (job, purpose) in jobs {
            self.abandon(job);
            if let Purpose::Signal { name, reply, timer } = purpose {
                match timer {
                    // It is dead now.
                    Some(timer) => {
                        self.abandon(timer);
                        self.answer(reply, Answer::Done);
                    }
                    None => self.refuse(reply, Refusal::Finished(name)),
                }
            }
        }
    }

    fn end_container(&mut self, now: SystemTime, id: &ContainerId, out_of_memory: bool) {
        let name = ProcessName::init(id.clone());
        self.leave_ladder(id);
        self.end_operation_in_guest(now, id);
        let Some(container) = self.containers.get(id) else {
            return;
        };
        if out_of_memory && container.announced && !matches!(container.life, Life::Stopped(_)) {
            self.effects.push(Effect::Tell(name.clone(), Event::OutOfMemory));
        }
        let execs: Vec<_> = container.execs.keys().cloned().collect();
        for exec in execs {
            self.end_exec(now, id, exec);
        }
        if let Some(Life::Created | Life::Running | Life::Paused) = self.life_mut(&name) {
            self.begin_ending(&name, killed(now), Output::default());
        }
    }

    fn end_operation_in_guest(&mut self, now: SystemTime, id: &ContainerId) {
        let name = ProcessName::init(id.clone());
        let operation = self
            .containers
            .get(id)
            .and_then(|container| container.operation.as_ref());
        let refusal = |operation| Refusal::NoVm {
            operation,
            name: name.clone(),
        };
        match operation {
            Some(Operation::Create { .. }) => self.interrupt_creation(now, id, no_vm(name)),
            Some(Operation::Start { reply, job }) => {
                let (reply, job) = (*reply, *job);
                self.abandon(job);
                self.start_failed(id, reply, Answer::Refused(refusal("start")), Fault::Gone);
            }
            Some(Operation::Freeze { reply, job, pause, .. }) => {
                let (reply, job) = (*reply, *job);
                let operation = if *pause { "pause" } else { "resume" };
                self.abandon(job);
                self.end_operation(id);
                self.refuse(reply, refusal(operation));
            }
            Some(Operation::Update { reply, job }) => {
                let (reply, job) = (*reply, *job);
                self.abandon(job);
                self.effects.push(Effect::Uncount(id.clone()));
                self.end_operation(id);
                self.refuse(reply, refusal("update"));
            }
            Some(Operation::Remove(Remove { step, .. })) => match *step {
                RemoveStep::InGuest(job) => {
                    self.abandon(job);
                    self.gone_from_guest(now, id);
                }
                RemoveStep::OvertakenCreate | RemoveStep::VmsEnd => self.gone_from_guest(now, id),
                // They need no guest.
                RemoveStep::Stopping | RemoveStep::Disks(_) | RemoveStep::Detaching(_) | RemoveStep::Hooks { .. } => {}
            },
            None => {}
        }
        self.held(id, |held| held.guest = false);
    }

    fn end_exec(&mut self, now: SystemTime, id: &ContainerId, exec: ExecId) {
        let name = ProcessName {
            container: id.clone(),
            exec: Some(exec),
        };
        let Some(exec) = self.exec_mut(&name) else { return };
        exec.guest = InGuest::No;
        if let Some(delete) = &exec.delete {
            let job = delete.job;
            self.abandon(job);
            return self.exec_removed(now, &name);
        }
        match exec.life {
            Life::Starting { .. } => {
                let job = exec.start.map(|start| start.job);
                job.into_iter().for_each(|job| self.abandon(job));
                let operation = "start";
                let refusal = Refusal::NoVm {
                    operation,
                    name: name.clone(),
                };
                self.exec_failed(now, &name, KILLED, InGuest::No, Answer::Refused(refusal));
            }
            Life::Running => self.begin_ending(&name, killed(now), Output::default()),
            Life::Creating { .. } | Life::Created | Life::Paused | Life::Ending { .. } | Life::Stopped(_) => {}
        }
    }
}

fn killed(at: SystemTime) -> Exit {
    Exit { status: KILLED, at }
}
