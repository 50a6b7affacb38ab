//! What must hold, whatever happens.

use std::collections::{BTreeMap, BTreeSet};

use lifecycle::id::{ContainerId, ProcessName};
use lifecycle::{Answer, Event, Reply, Request, SIGKILL, Timeouts, Timer, View};
use protocol::phase::Phase;

/// What has been published of one process since it was recorded.
#[derive(Debug, Default)]
pub(crate) struct Notifications {
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

/// What the client, the host and containerd have observed.
#[derive(Debug, Default)]
pub(crate) struct Observed {
    pub(crate) asked: BTreeMap<Reply, Asked>,
    pub(crate) published: BTreeMap<ProcessName, Notifications>,
    pub(crate) attached: BTreeSet<ContainerId>,
    pub(crate) disks: BTreeSet<ContainerId>,
    pub(crate) counted: BTreeSet<ContainerId>,
    /// SIGKILL was asked for.
    pub(crate) killed: BTreeSet<ContainerId>,
}

pub(crate) type Checked = Result<(), String>;

/// For a piece of work on the host, in milliseconds: what [`crate::world`] gives one at most.
const WORK: u64 = 5_000;

/// For a call to the guest: its time-out, and a little for the way.
const CALL: u64 = 36_000;

/// For a deletion in the guest, which may go on as long as it makes progress: what [`crate::world`] gives one at most, the
/// time without progress, and the VM's end.
const GUEST_DELETE: u64 = 727_000;

/// For hooks that follow a start, which have no limit of their own here.
const START_HOOKS: u64 = 300_000;

/// For the boot of the VM, or for it not to come up.
const BOOT: u64 = 3_000;

fn milliseconds(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn timer(timer: Timer) -> u64 {
    milliseconds(Timeouts::default().of(timer))
}

/// From a SIGKILL to the end of what does not die of it: the call, the death, the cgroup's death, the VM's end.
fn kill_escalation() -> u64 {
    timer(Timer::KillAnswer) + CALL + 2 * timer(Timer::Death) + milliseconds(Timeouts::default().heartbeat()) + WORK
}

/// How long a request may take by itself.
fn own(request: &Request) -> u64 {
    let delete = timer(Timer::StopHooks) + GUEST_DELETE + milliseconds(Timeouts::default().patience()) + 2 * WORK;
    match request {
        Request::Kill { name, signal, .. } if name.exec.is_none() && *signal == SIGKILL => CALL,
        // It waits for the start of the process.
        Request::Kill { .. } => 2 * CALL + WORK,
        // What has been made of it when it fails is killed and deleted.
        Request::Create(_) => BOOT + 4 * WORK + CALL + kill_escalation() + delete,
        Request::AddExec(_) => WORK,
        Request::Start(name) if name.exec.is_some() => CALL + 2 * WORK + kill_escalation(),
        Request::Start(_) => CALL + 2 * WORK + START_HOOKS + kill_escalation(),
        // What the guest has not answered is undone.
        Request::Pause(_) | Request::Resume(_) | Request::Update(_) => 2 * CALL + WORK,
        Request::Delete(_) => kill_escalation() + delete,
    }
}

/// The container that a request is about, in whose queue it waits. A kill waits in none.
fn queue(request: &Request) -> Option<&ContainerId> {
    match request {
        Request::Kill { .. } => None,
        Request::Create(id) | Request::Pause(id) | Request::Resume(id) | Request::Update(id) => Some(id),
        Request::AddExec(name) | Request::Start(name) | Request::Delete(name) => Some(&name.container),
    }
}

impl Observed {
    pub(crate) fn answer(&mut self, now: u64, reply: Reply, answer: &Answer<u32>, vm_gone: bool) -> Checked {
        let asked = self.asked.get(&reply).ok_or("an answer to nobody")?;
        if asked.answered.is_some() {
            return Err(format!("{:?} is answered twice", asked.request));
        }
        // Those before it in its container's queue come first.
        let waits = |other: &Asked| other.answered.is_none_or(|answered| answered > asked.at);
        let before = self.asked.range(..reply).filter(|(_, other)| waits(other));
        let before = before.filter(|(_, other)| {
            let queue = queue(&asked.request);
            queue.is_some() && self::queue(&other.request) == queue
        });
        let bound = own(&asked.request) + before.map(|(_, other)| own(&other.request)).sum::<u64>();
        if now - asked.at > bound {
            return Err(format!(
                "{:?} is answered after {} ms, more than {bound}",
                asked.request,
                now - asked.at
            ));
        }
        if vm_gone && matches!((&asked.request, answer), (Request::Create(_), Answer::Done)) {
            return Err("a creation succeeds after the VM's end".to_owned());
        }
        if let Some(asked) = self.asked.get_mut(&reply) {
            asked.answered = Some(now);
        }
        Ok(())
    }

    pub(crate) fn record(&mut self, name: &ProcessName) -> Checked {
        match self.published.insert(name.clone(), Notifications::default()) {
            None => Ok(()),
            Some(_) => Err(format!("{name} is recorded twice")),
        }
    }

    fn of(&mut self, name: &ProcessName) -> Result<&mut Notifications, String> {
        self.published
            .get_mut(name)
            .ok_or_else(|| format!("{name} has no record"))
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
            Event::Created if told.created => return Err(format!("{name} is published twice")),
            Event::Created => told.created = true,
            Event::Started if told.exits > 0 || told.started => return Err(format!("{name} starts late or twice")),
            Event::Started => told.started = true,
            Event::Exited(_) => {
                told.exits += 1;
                if told.exits > 1 || exec && !told.started || !exec && !told.created {
                    return Err(format!(
                        "{name}: the exit is published twice, or of what was never there: {told:?}"
                    ));
                }
            }
            Event::Deleted(_) if told.exits != 1 => {
                return Err(format!("{name} is deleted and {} exits were published", told.exits));
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
            return Err(format!("{name} is forgotten and {} exits were published", told.exits));
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
            self.published.remove(name);
            return Ok(());
        }
        if self.attached.contains(id) || self.disks.contains(id) || self.counted.contains(id) {
            return Err(format!("{name} is forgotten with mounts, disks or a share of the size"));
        }
        self.killed.remove(id);
        self.published.retain(|other, _| other.container != *id);
        Ok(())
    }

    /// Nobody else needs the VM.
    pub(crate) fn may_end_for(
        &self,
        dying: &ProcessName,
        own: &ContainerId,
        lives: impl Fn(&ProcessName) -> bool,
    ) -> Checked {
        for (name, told) in self.published.iter().filter(|(name, _)| name.exec.is_none()) {
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
        match self.published.keys().next() {
            Some(name) => Err(format!("{name} cannot be deleted")),
            None => Ok(()),
        }
    }

    /// Whether a container has a record.
    pub(crate) fn is_known(&self, id: &ContainerId) -> bool {
        self.published.contains_key(&ProcessName::init(id.clone()))
    }

    /// Whether a process's end has been told, or it is not known any longer.
    pub(crate) fn is_stopped(&self, name: &ProcessName) -> bool {
        let told = self.published.get(name);
        told.is_none_or(|told| matches!(told.view, Some(View::Stopped(_))))
    }

    /// Whether what is seen of a container is that it runs.
    pub(crate) fn is_seen_running(&self, id: &ContainerId) -> bool {
        let told = self.published.get(&ProcessName::init(id.clone()));
        told.is_some_and(|told| told.view == Some(View::In(Phase::Running)))
    }
}
