//! What must hold, whatever happens.

use std::collections::{BTreeMap, BTreeSet};

use lifecycle::id::{ContainerId, ProcessName};
use lifecycle::{Answer, Event, Reply, Request, SIGKILL, View};
use protocol::phase::Phase;

/// What has been told of one process since it was recorded.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) created: bool,
    pub(crate) started: bool,
    pub(crate) exits: u32,
    pub(crate) view: Option<View>,
}

/// A request.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) request: Request,
    pub(crate) at: u64,
    pub(crate) answered: Option<u64>,
}

/// What the client, the host and containerd have seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) asked: BTreeMap<Reply, Asked>,
    pub(crate) told: BTreeMap<ProcessName, Told>,
    pub(crate) attached: BTreeSet<ContainerId>,
    pub(crate) disks: BTreeSet<ContainerId>,
    pub(crate) counted: BTreeSet<ContainerId>,
    /// SIGKILL was asked for.
    pub(crate) killed: BTreeSet<ContainerId>,
}

pub(crate) type Checked = Result<(), String>;

/// How long a kill may take to be answered, in milliseconds: the agent's call, and a little.
const KILL: u64 = 31_000;

/// How long a start may take, which a signal waits for unless it is SIGKILL to a first process: the work before the agent's call, that call,
/// and the work after it.
const START: u64 = 41_000;

/// How long others may take: those before them in the queue come first.
const OTHERS: u64 = 3_000_000;

impl Seen {
    pub(crate) fn answer(&mut self, now: u64, reply: Reply, answer: &Answer<u32>, vm_gone: bool) -> Checked {
        let asked = self.asked.get_mut(&reply).ok_or("an answer to nobody")?;
        if asked.answered.replace(now).is_some() {
            return Err(format!("{:?} is answered twice", asked.request));
        }
        let bound = match asked.request {
            Request::Kill { ref name, signal, .. } if name.exec.is_some() || signal != SIGKILL => START + KILL,
            Request::Kill { .. } => KILL,
            _ => OTHERS,
        };
        if now - asked.at > bound {
            return Err(format!("{:?} is answered after {} ms", asked.request, now - asked.at));
        }
        if vm_gone && matches!((&asked.request, answer), (Request::Create(_), Answer::Done)) {
            return Err("a creation succeeds after the VM's end".to_owned());
        }
        Ok(())
    }

    pub(crate) fn record(&mut self, name: &ProcessName) -> Checked {
        match self.told.insert(name.clone(), Told::default()) {
            None => Ok(()),
            Some(_) => Err(format!("{name} is recorded twice")),
        }
    }

    fn of(&mut self, name: &ProcessName) -> Result<&mut Told, String> {
        self.told.get_mut(name).ok_or_else(|| format!("{name} has no record"))
    }

    pub(crate) fn enter(&mut self, name: &ProcessName, view: View, event: Option<Event>) -> Checked {
        let told = self.of(name)?;
        if matches!(told.view, Some(View::Stopped(_))) {
            return Err(format!("{name} is stopped and enters {view:?}"));
        }
        told.view = Some(view);
        match (event, view) {
            (None, _) => Ok(()),
            (Some(event), _) => self.tell(name, event),
        }
    }

    pub(crate) fn tell(&mut self, name: &ProcessName, event: Event) -> Checked {
        let told = self.of(name)?;
        let exec = name.exec.is_some();
        match event {
            Event::Created if told.created => return Err(format!("{name} is told twice")),
            Event::Created => told.created = true,
            Event::Started if told.exits > 0 || told.started => return Err(format!("{name} starts late or twice")),
            Event::Started => told.started = true,
            Event::Exited(_) => {
                told.exits += 1;
                if told.exits > 1 || exec && !told.started || !exec && !told.created {
                    return Err(format!(
                        "{name}: the exit is told twice, or of what was never there: {told:?}"
                    ));
                }
            }
            Event::Deleted(_) if told.exits != 1 => {
                return Err(format!("{name} is deleted and {} exits were told", told.exits));
            }
            Event::Added | Event::Paused | Event::Resumed | Event::OutOfMemory | Event::Deleted(_) => {}
        }
        Ok(())
    }

    pub(crate) fn forget(&mut self, name: &ProcessName, event: Option<Event>, in_guest: bool) -> Checked {
        if let Some(event) = event {
            self.tell(name, event)?;
        }
        let told = self.of(name)?;
        if told.created && told.exits != 1 {
            return Err(format!("{name} is forgotten and {} exits were told", told.exits));
        }
        if name.exec.is_some() && told.started && told.exits != 1 {
            return Err(format!(
                "{name} was started and is forgotten, and its exit was not told"
            ));
        }
        if in_guest {
            return Err(format!("{name} is forgotten and the guest has it"));
        }
        let id = &name.container;
        if name.exec.is_some() {
            self.told.remove(name);
            return Ok(());
        }
        if self.attached.contains(id) || self.disks.contains(id) || self.counted.contains(id) {
            return Err(format!("{name} is forgotten with mounts, disks or a share of the size"));
        }
        self.killed.remove(id);
        self.told.retain(|other, _| other.container != *id);
        Ok(())
    }

    /// Nobody else needs the VM.
    pub(crate) fn may_end_for(
        &self,
        dying: &ProcessName,
        own: &ContainerId,
        lives: impl Fn(&ProcessName) -> bool,
    ) -> Checked {
        for (name, told) in self.told.iter().filter(|(name, _)| name.exec.is_none()) {
            let needs = told.created && !self.killed.contains(&name.container) && lives(name);
            if name != dying && name.container != *own && needs {
                return Err(format!("the VM is ended for {dying}, and {name} lives: {told:?}"));
            }
        }
        Ok(())
    }

    /// At the end, when everything has been deleted.
    pub(crate) fn at_the_end(&self) -> Checked {
        if let Some((_, asked)) = self.asked.iter().find(|(_, asked)| asked.answered.is_none()) {
            return Err(format!("{:?} of {} ms is never answered", asked.request, asked.at));
        }
        if !self.attached.is_empty() || !self.disks.is_empty() || !self.counted.is_empty() {
            return Err(format!("left: {:?} {:?} {:?}", self.attached, self.disks, self.counted));
        }
        match self.told.keys().next() {
            Some(name) => Err(format!("{name} cannot be deleted")),
            None => Ok(()),
        }
    }

    /// Whether a container has a record.
    pub(crate) fn is_known(&self, id: &ContainerId) -> bool {
        self.told.contains_key(&ProcessName::init(id.clone()))
    }

    /// Whether a process's end has been told, or it is not known any longer.
    pub(crate) fn is_stopped(&self, name: &ProcessName) -> bool {
        let told = self.told.get(name);
        told.is_none_or(|told| matches!(told.view, Some(View::Stopped(_))))
    }

    /// Whether what is seen of a container is that it runs.
    pub(crate) fn is_seen_running(&self, id: &ContainerId) -> bool {
        let told = self.told.get(&ProcessName::init(id.clone()));
        told.is_some_and(|told| told.view == Some(View::In(Phase::Running)))
    }
}
