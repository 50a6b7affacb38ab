//! What clients ask for and when, and what befalls the VM.

use std::fmt;

use lifecycle::Request;
use lifecycle::id::{ContainerId, ExecId, ProcessName};

use crate::dice::mix;

#[derive(Debug, Clone)]
pub(crate) enum Action {
    Ask(Request),
    /// Whoever asked the last creation but so many is gone.
    HangUp(u64),
    /// The agent answers nothing from now on.
    AgentHangs,
    VmDies {
        out_of_memory: bool,
    },
}

#[derive(Debug, Clone)]
pub(crate) struct Script {
    pub(crate) seed: u64,
    /// When the VM is up, in milliseconds; none if it does not come up.
    pub(crate) boots: Option<u64>,
    pub(crate) actions: Vec<(u64, Action)>,
}

/// The sandbox's own container, and two others.
pub(crate) const CONTAINERS: [&str; 3] = ["pod", "a", "b"];
const EXECS: [&str; 2] = ["x", "y"];

pub(crate) fn container(name: &str) -> ContainerId {
    ContainerId::new(name).expect("a plain name")
}

impl Script {
    pub(crate) fn of(seed: u64) -> Self {
        let mut state = mix(seed ^ 0x5eed);
        let mut next = move |below: u64| {
            state = mix(state);
            state % below
        };
        let boots = (next(30) > 0).then(|| next(3000));
        let count = 4 + next(22);
        let mut at = next(100);
        let mut actions = Vec::new();
        for _ in 0..count {
            at += match next(8) {
                0..5 => next(30),
                5..7 => next(3000),
                _ => next(40_000),
            };
            let id = container(CONTAINERS[usize::try_from(next(3)).expect("small")]);
            let exec = ExecId::new(EXECS[usize::try_from(next(2)).expect("small")]).expect("a plain name");
            let init = ProcessName::init(id.clone());
            let exec = ProcessName {
                exec: Some(exec),
                ..init.clone()
            };
            let name = if next(3) == 0 { exec.clone() } else { init.clone() };
            let kill = |name, signal, all| Request::Kill { name, signal, all };
            let action = match next(100) {
                0..22 => Action::Ask(Request::Create(id)),
                22..40 => Action::Ask(Request::Start(init)),
                40..50 => Action::Ask(Request::AddExec(exec)),
                50..60 => Action::Ask(Request::Start(exec)),
                60..66 => Action::Ask(kill(name, 9, next(2) == 0)),
                66..70 => Action::Ask(kill(name, 15, false)),
                70..74 => Action::Ask(Request::Pause(id)),
                74..78 => Action::Ask(Request::Resume(id)),
                78..81 => Action::Ask(Request::Update(id)),
                81..95 => Action::Ask(Request::Delete(name)),
                95..98 => Action::HangUp(next(2)),
                98 => Action::AgentHangs,
                _ => Action::VmDies {
                    out_of_memory: next(2) == 0,
                },
            };
            actions.push((at, action));
        }
        Self { seed, boots, actions }
    }

    pub(crate) fn len(&self) -> usize {
        self.actions.len()
    }

    pub(crate) fn without(&self, at: usize) -> Self {
        let mut shorter = self.clone();
        shorter.actions.remove(at);
        shorter
    }
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  the VM is up after {:?} ms", self.boots)?;
        for (at, action) in &self.actions {
            writeln!(f, "  {at:>7} {action:?}")?;
        }
        Ok(())
    }
}
