//! The guest: containers and execs as the agent has them, which does what it is asked sooner or later, or not at all.

use std::collections::BTreeMap;

use lifecycle::Job;
use lifecycle::id::{ContainerId, ExecId, ProcessName};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Making,
    Created,
    Running,
    Stopped,
}

#[derive(Debug)]
pub(crate) struct Container {
    /// No other has it: what happens later is meant for this one.
    pub(crate) serial: u64,
    pub(crate) phase: Phase,
    pub(crate) frozen: bool,
    /// SIGKILL does not end it.
    pub(crate) undying: bool,
    pub(crate) execs: BTreeMap<ExecId, Exec>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exec {
    /// By this call.
    Launching(Job),
    Running,
    Ended,
}

#[derive(Debug, Default)]
pub(crate) struct Guest {
    pub(crate) containers: BTreeMap<ContainerId, Container>,
    serials: u64,
}

/// What the agent says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Says {
    Done,
    Refuses,
    WrongPhase,
    Nothing,
}

impl Guest {
    pub(crate) fn make(&mut self, id: &ContainerId, undying: bool) -> Option<u64> {
        if self.containers.contains_key(id) {
            return None;
        }
        self.serials += 1;
        let container = Container {
            serial: self.serials,
            phase: Phase::Making,
            frozen: false,
            undying,
            execs: BTreeMap::new(),
        };
        self.containers.insert(id.clone(), container);
        Some(self.serials)
    }

    pub(crate) fn of(&mut self, id: &ContainerId, serial: u64) -> Option<&mut Container> {
        self.containers
            .get_mut(id)
            .filter(|container| container.serial == serial)
    }

    /// Whether a process that the host could hear of is alive.
    pub(crate) fn lives(&self, name: &ProcessName) -> bool {
        let container = self.containers.get(&name.container);
        container.is_some_and(|container| match &name.exec {
            None => matches!(container.phase, Phase::Created | Phase::Running),
            Some(exec) => container.execs.get(exec) == Some(&Exec::Running),
        })
    }

    /// Ends a process. The answer is the exits to report, in their order.
    pub(crate) fn end(&mut self, name: &ProcessName) -> Vec<ProcessName> {
        let Some(container) = self.containers.get_mut(&name.container) else {
            return Vec::new();
        };
        let mut ended = Vec::new();
        let all = name.exec.is_none();
        for (exec, state) in &mut container.execs {
            if (all || name.exec.as_ref() == Some(exec)) && *state == Exec::Running {
                *state = Exec::Ended;
                ended.push(ProcessName {
                    container: name.container.clone(),
                    exec: Some(exec.clone()),
                });
            }
        }
        if all && matches!(container.phase, Phase::Created | Phase::Running) {
            container.phase = Phase::Stopped;
            container.frozen = false;
            container.execs.retain(|_, state| !matches!(state, Exec::Launching(_)));
            ended.push(name.clone());
        }
        ended
    }
}
