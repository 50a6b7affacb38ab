//! The end of a process: first its output, then the exits of a container's execs, then the record and the event. The
//! first report counts.

use std::time::SystemTime;

use crate::id::{ContainerId, ProcessName};
use crate::machine::{Core, Purpose};
use crate::message::{Answer, Effect, Event, Exit, Output, Refusal, Timer, View, Work};
use crate::state::{InGuest, KILLED, Life, Waits};

impl<E: Clone> Core<E> {
    pub(crate) fn exited(&mut self, name: &ProcessName, reported: Exit, output: Output) {
        let Some(life) = self.life_mut(name) else {
            return self.effects.push(Effect::Unknown(name.clone()));
        };
        match life {
            Life::Creating { exit } | Life::Starting { exit } => {
                exit.get_or_insert((reported, output));
            }
            Life::Created | Life::Running | Life::Paused => self.begin_ending(name, reported, output),
            Life::Ending { .. } | Life::Stopped(_) => self.exec_has_ended(reported.at, name),
        }
    }

    pub(crate) fn begin_ending(&mut self, name: &ProcessName, exit: Exit, output: Output) {
        let Some(life) = self.life_mut(name) else { return };
        if life.has_ended() {
            return;
        }
        let was = life.phase();
        *life = Life::Ending {
            exit,
            was,
            waits: Waits::Streams,
        };
        if name.exec.is_none() {
            self.leave_ladder(&name.container);
        }
        self.begin(
            Purpose::Streams(name.clone()),
            Work::FinishStreams(name.clone(), output),
        );
    }

    pub(crate) fn streams_finished(&mut self, now: SystemTime, name: &ProcessName) {
        if name.exec.is_some() || !self.has_live_exec(&name.container) {
            return self.stopped(now, name);
        }
        let timer = self.timer(Purpose::ExecExits(name.container.clone()), Timer::ExecExits);
        if let Some(Life::Ending { waits, .. }) = self.life_mut(name) {
            *waits = Waits::Execs(timer);
        }
    }

    /// Whether an exec has been started and its exit is not published.
    fn has_live_exec(&self, id: &ContainerId) -> bool {
        let execs = self.containers.get(id).map(|container| container.execs.values());
        execs
            .into_iter()
            .flatten()
            .any(|exec| !matches!(exec.life, Life::Created | Life::Stopped(_)))
    }

    /// The exits of execs are not reported, and their container has ended.
    pub(crate) fn exec_exits_missing(&mut self, now: SystemTime, id: &ContainerId) {
        let Some(container) = self.containers.get(id) else {
            return;
        };
        let execs = container.execs.iter();
        let execs: Vec<_> = execs.map(|(exec, state)| (exec.clone(), state.life)).collect();
        for (exec, life) in execs {
            let name = ProcessName {
                container: id.clone(),
                exec: Some(exec),
            };
            match life {
                Life::Starting { .. } => {
                    let job = self.exec_mut(&name).and_then(|exec| exec.start).map(|start| start.job);
                    job.into_iter().for_each(|job| self.abandon(job));
                    let refusal = Refusal::Interrupted(name.clone());
                    self.exec_failed(now, &name, KILLED, InGuest::Yes, Answer::Refused(refusal));
                }
                Life::Running => {
                    let at = now;
                    self.tell_exit(&name, Exit { status: KILLED, at });
                }
                Life::Ending { exit, .. } => self.tell_exit(&name, exit),
                Life::Creating { .. } | Life::Created | Life::Paused | Life::Stopped(_) => {}
            }
        }
        self.stopped(now, &ProcessName::init(id.clone()));
    }

    fn tell_exit(&mut self, name: &ProcessName, exit: Exit) {
        if let Some(life) = self.life_mut(name) {
            *life = Life::Stopped(exit);
        }
        let enter = Effect::Enter(name.clone(), View::Stopped(exit), Some(Event::Exited(exit)));
        self.effects.push(enter);
    }

    fn stopped(&mut self, now: SystemTime, name: &ProcessName) {
        let Some(Life::Ending { exit, .. }) = self.life_mut(name) else {
            return;
        };
        let exit = *exit;
        self.tell_exit(name, exit);
        if name.exec.is_some() {
            return self.exec_is_over(now, name);
        }
        self.effects.push(Effect::Uncount(name.container.clone()));
        self.removal_goes_on(now, &name.container);
    }

    /// A container that waits for its execs goes on with the last of them.
    pub(crate) fn exec_is_over(&mut self, now: SystemTime, name: &ProcessName) {
        let init = ProcessName::init(name.container.clone());
        let Some(Life::Ending {
            waits: Waits::Execs(timer),
            ..
        }) = self.life_mut(&init)
        else {
            return;
        };
        let timer = *timer;
        if !self.has_live_exec(&name.container) {
            self.abandon(timer);
            self.stopped(now, &init);
        }
    }
}
