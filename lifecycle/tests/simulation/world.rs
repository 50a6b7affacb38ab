//! The driver of the simulation: it carries effects out, sooner or later, and feeds results back.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::{Duration, SystemTime};

use lifecycle::id::{ContainerId, ProcessName};
use lifecycle::{
    Answer, Core, Effect, Exit, Failure, Fault, Input, Job, KILLED, Output, Reason, Reply, Request, SIGKILL, Timeouts,
    Work,
};

use crate::check::{Asked, Checked, Observed};
use crate::dice::Dice;
use crate::guest::{Exec, Guest, Phase, Says};
use crate::script::{Action, CONTAINERS, Script, container};

/// For the guest to answer a call, in milliseconds.
const CALL: u64 = 30_000;

/// When the script is over and all that it has begun has had its time: an hour.
const REST: u64 = 3_600_000;

/// The life of a process that is to be killed: longer than that takes, and shorter than most containers live.
const UNTIL_KILLED: u64 = 90_000;

/// For a deletion that makes no progress.
const STALL: u64 = 120_000;

/// What happens later.
enum Later {
    Act(usize),
    Step(Input<u32>),
    Report(Job, Result<(), Fault>),
    InGuest(Happening),
    ConnectionLost { out_of_memory: bool },
    VmGone { out_of_memory: bool },
}

/// What happens in the guest by itself.
enum Happening {
    /// The call to make it has reached the agent, which needs so long.
    CreateArrives(ContainerId, Job, u64, Says),
    Made(ContainerId, u64, Job, Says),
    Started(ContainerId, u64, Job, Says),
    /// The call to start it has reached the agent, which needs so long.
    ExecArrives(ProcessName, u64, Job, u64, Says),
    ExecRuns(ProcessName, u64, Job, Says),
    Ends(ProcessName, u64, u32),
    Freezes(ContainerId, u64, bool),
    Forgets(ProcessName, u64, Job, Says),
}

#[derive(PartialEq, Eq)]
enum Vm {
    Booting,
    Up,
    /// The connection is gone.
    Lost,
    Gone,
}

pub(crate) struct World<'a> {
    script: &'a Script,
    core: Core<u32>,
    dice: Dice,
    now: u64,
    order: u64,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    later: BTreeMap<u64, Later>,
    jobs: BTreeMap<Job, Work>,
    guest: Guest,
    vm: Vm,
    /// What the guest had when the connection to it was lost.
    lost: BTreeSet<ContainerId>,
    agent_hangs: bool,
    /// Containers whose calls have not reached the agent.
    creates_on_their_way: BTreeSet<(ContainerId, Job)>,
    /// Execs whose calls have not reached the agent, with their containers' serial numbers.
    on_their_way: BTreeSet<(ProcessName, u64)>,
    /// Execs that came to run after their start was ended, with their containers' serial numbers.
    late: BTreeSet<(ProcessName, u64)>,
    /// Nothing fails any more.
    calm: bool,
    observed: Observed,
    replies: u64,
    creations: Vec<Reply>,
    /// None: nobody reads it.
    log: Option<Vec<String>>,
}

impl<'a> World<'a> {
    pub(crate) fn new(script: &'a Script, logs: bool) -> Self {
        let mut world = Self {
            core: Core::new(Some(container(CONTAINERS[0]))),
            dice: Dice::new(script.seed),
            now: 0,
            order: 0,
            queue: BinaryHeap::new(),
            later: BTreeMap::new(),
            jobs: BTreeMap::new(),
            guest: Guest::default(),
            vm: Vm::Booting,
            lost: BTreeSet::new(),
            agent_hangs: false,
            creates_on_their_way: BTreeSet::new(),
            on_their_way: BTreeSet::new(),
            late: BTreeSet::new(),
            calm: false,
            observed: Observed::default(),
            replies: 0,
            creations: Vec::new(),
            log: logs.then(Vec::new),
            script,
        };
        for (index, (at, _)) in script.actions.iter().enumerate() {
            world.after(*at, Later::Act(index));
        }
        match script.boots {
            Some(at) => world.after(at, Later::Step(Input::VmReady)),
            None => world.after(2000, Later::VmGone { out_of_memory: false }),
        }
        world
    }

    pub(crate) fn history(self) -> Vec<String> {
        self.log.unwrap_or_default()
    }

    /// The script, then the VM's end, then the deletion of what is left.
    pub(crate) fn run(&mut self) -> Checked {
        // What does not die is pinged for ever, as long as others need the VM.
        self.drain(REST)?;
        self.check_frozen()?;
        self.check_strangers()?;
        self.calm = true;
        if self.vm != Vm::Gone {
            self.after(0, Later::ConnectionLost { out_of_memory: false });
            self.drain(u64::MAX)?;
        }
        for _ in 0..2 {
            for id in CONTAINERS {
                let delete = Request::Delete(ProcessName::init(container(id)));
                self.ask(delete)?;
                self.drain(u64::MAX)?;
            }
        }
        if let Some((job, work)) = self.jobs.iter().next() {
            return Err(format!("{work:?} ({job:?}) is never reported"));
        }
        self.observed.at_the_end()
    }

    fn after(&mut self, delay: u64, later: Later) {
        self.order += 1;
        self.queue.push(Reverse((self.now + delay, self.order)));
        self.later.insert(self.order, later);
    }

    fn drain(&mut self, until: u64) -> Checked {
        let mut steps = 0;
        while let Some(Reverse((at, order))) = self.queue.pop() {
            if at > until {
                self.queue.push(Reverse((at, order)));
                return Ok(());
            }
            self.now = at;
            let Some(later) = self.later.remove(&order) else {
                continue;
            };
            self.happens(later)?;
            steps += 1;
            if steps > 20_000 {
                return Err("it does not come to rest".to_owned());
            }
        }
        Ok(())
    }

    fn happens(&mut self, later: Later) -> Checked {
        match later {
            Later::Act(index) => self.act(index),
            Later::Step(Input::VmReady) if self.vm != Vm::Booting => Ok(()),
            Later::Step(input) => {
                if matches!(input, Input::VmReady) {
                    self.vm = Vm::Up;
                }
                self.step(input)
            }
            Later::Report(job, done) => self.report(job, done),
            Later::InGuest(happening) if self.vm == Vm::Up => self.in_guest(happening),
            Later::InGuest(_) => Ok(()),
            Later::ConnectionLost { out_of_memory } => self.lose(out_of_memory),
            Later::VmGone { .. } if self.vm == Vm::Gone => Ok(()),
            Later::VmGone { out_of_memory } => {
                self.vm = Vm::Gone;
                self.step(Input::VmEnded { out_of_memory })
            }
        }
    }

    fn lose(&mut self, out_of_memory: bool) -> Checked {
        if matches!(self.vm, Vm::Lost | Vm::Gone) {
            return Ok(());
        }
        self.vm = Vm::Lost;
        let guest = std::mem::take(&mut self.guest);
        self.lost = guest.containers.into_keys().collect();
        self.creates_on_their_way.clear();
        let calls: Vec<_> = self
            .jobs
            .iter()
            .filter(|(_, work)| work.is_guests())
            .map(|(job, _)| *job)
            .collect();
        for job in calls {
            let delay = self.dice.takes(90, 3000);
            self.after(delay, Later::Report(job, Err(Fault::Gone)));
        }
        let delay = self.dice.takes(91, 2500);
        self.after(delay, Later::VmGone { out_of_memory });
        Ok(())
    }

    fn act(&mut self, index: usize) -> Checked {
        match self.script.actions[index].1.clone() {
            Action::Ask(request) => self.ask(request),
            Action::HangUp(back) => {
                let at = self.creations.len().checked_sub(1 + usize::try_from(back).unwrap_or(0));
                match at.map(|at| self.creations[at]) {
                    Some(reply) => self.step(Input::ClientGone(reply)),
                    None => Ok(()),
                }
            }
            Action::AgentHangs => {
                self.agent_hangs = true;
                Ok(())
            }
            Action::VmDies { out_of_memory } if self.vm == Vm::Booting => self.happens(Later::VmGone { out_of_memory }),
            Action::VmDies { out_of_memory } => self.lose(out_of_memory),
        }
    }

    fn ask(&mut self, request: Request) -> Checked {
        self.replies += 1;
        let reply = Reply(self.replies);
        if matches!(request, Request::Create(_)) {
            self.creations.push(reply);
        }
        let asked = Asked {
            request: request.clone(),
            at: self.now,
            answered: None,
        };
        self.observed.asked.insert(reply, asked);
        self.step(Input::Request(reply, request))
    }

    fn step(&mut self, input: Input<u32>) -> Checked {
        if let Some(log) = &mut self.log {
            log.push(format!("{:>7} {input:?}", self.now));
        }
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(self.now);
        for effect in self.core.step(now, input) {
            if let Some(log) = &mut self.log {
                log.push(format!("            → {effect:?}"));
            }
            self.carry_out(effect)?;
        }
        Ok(())
    }

    fn carry_out(&mut self, effect: Effect<u32>) -> Checked {
        match effect {
            Effect::Do(job, work) => self.begin(job, work),
            Effect::Start(job, timer) => {
                let delay = Timeouts::default().of(timer).as_millis();
                let delay = u64::try_from(delay).map_err(|error| error.to_string())?;
                self.after(delay, Later::Step(Input::Elapsed(job)));
                Ok(())
            }
            Effect::Abandon(job) => {
                self.jobs.remove(&job);
                Ok(())
            }
            Effect::Record(name, _) => self.observed.record(&name),
            Effect::Enter(name, view, event) => self.observed.enter(&name, view, event),
            Effect::Tell(name, event) => self.observed.tell(&name, event),
            Effect::Forget(name, event) => {
                let in_guest = match &name.exec {
                    None => self.has_container(&name.container),
                    Some(_) => self.has_exec(&name),
                };
                self.observed.forget(&name, event, in_guest)
            }
            Effect::Uncount(id) => {
                self.observed.counted.remove(&id);
                Ok(())
            }
            Effect::Answer(reply, answer) => self.answer(reply, &answer),
            Effect::EndVm(reason) => self.end_vm(&reason),
            Effect::CloseStreams(_) | Effect::Lingers(_) | Effect::Unknown(_) => Ok(()),
        }
    }

    /// Whether the guest has a container, or may make it.
    fn has_container(&self, id: &ContainerId) -> bool {
        let mut coming = self.creates_on_their_way.iter();
        self.guest.containers.contains_key(id) || coming.any(|(other, _)| other == id)
    }

    /// Whether the guest has an exec that runs, or may start one.
    fn has_exec(&self, name: &ProcessName) -> bool {
        let container = self.guest.containers.get(&name.container);
        let on_its_way =
            container.is_some_and(|container| self.on_their_way.contains(&(name.clone(), container.serial)));
        on_its_way || self.guest.lives(name)
    }

    fn answer(&mut self, reply: Reply, answer: &Answer<u32>) -> Checked {
        self.observed.answer(self.now, reply, answer, self.vm == Vm::Gone)
    }

    fn end_vm(&mut self, reason: &Reason) -> Checked {
        match reason {
            Reason::NoHeartbeat if !self.agent_hangs && self.vm == Vm::Up => {
                return Err("the VM is ended though its agent answers".to_owned());
            }
            Reason::Undying(name) => {
                let lives = |name: &ProcessName| self.guest.lives(name);
                self.observed.may_end_for(name, &container(CONTAINERS[0]), lives)?;
            }
            Reason::NoHeartbeat | Reason::Undeletable(_) => {}
        }
        let delay = self.dice.takes(92, 2000);
        self.after(delay, Later::ConnectionLost { out_of_memory: false });
        Ok(())
    }

    fn report(&mut self, job: Job, done: Result<(), Fault>) -> Checked {
        // What was abandoned reports now and then all the same; what is reported is sometimes reported twice.
        let work = self.jobs.remove(&job);
        if work.is_none() && !self.dice.happens(93, 200) {
            return Ok(());
        }
        match (&work, &done) {
            (Some(Work::Detach(id)), Ok(())) => drop(self.observed.attached.remove(id)),
            (Some(Work::ReleaseDisks(id)), _) => drop(self.observed.disks.remove(id)),
            _ => {}
        }
        let done = done.map_err(|fault| Failure { fault, error: 7 });
        self.step(Input::Finished(job, done.clone()))?;
        if self.dice.happens(94, 20) {
            self.step(Input::Finished(job, done))?;
        }
        Ok(())
    }

    fn begin(&mut self, job: Job, work: Work) -> Checked {
        if self.jobs.insert(job, work.clone()).is_some() {
            return Err(format!("{job:?} is used twice"));
        }
        if work.is_guests() {
            return self.call(job, work);
        }
        let question = 100 + question(&work);
        let mut fails = !self.calm && self.dice.happens(question, 40);
        let mut longest = 5000;
        match &work {
            Work::Attach(id) => drop(self.observed.attached.insert(id.clone())),
            Work::Provision(id) => {
                self.observed.disks.insert(id.clone());
                self.observed.counted.insert(id.clone());
            }
            Work::ReleaseDisks(id) => {
                fails = false;
                if self.has_container(id) || self.vm == Vm::Lost && self.lost.contains(id) {
                    return Err(format!(
                        "the disks of {id} are unplugged and the guest may write to them"
                    ));
                }
            }
            Work::StopHooks(_) | Work::StartHooks(_) => longest = 300_000,
            Work::FinishStreams(..) => {
                fails = false;
                longest = 10_000;
            }
            _ => {}
        }
        let delay = self.dice.takes(question, longest);
        let done = if fails { Err(Fault::Refused) } else { Ok(()) };
        self.after(delay, Later::Report(job, done));
        Ok(())
    }

    fn call(&mut self, job: Job, work: Work) -> Checked {
        if let Work::Signal {
            name, signal: SIGKILL, ..
        } = &work
            && name.exec.is_none()
        {
            self.observed.killed.insert(name.container.clone());
        }
        if self.vm != Vm::Up {
            let delay = self.dice.takes(95, 1000);
            self.after(delay, Later::Report(job, Err(Fault::Gone)));
            return Ok(());
        }
        if self.agent_hangs {
            let unanswered = match work {
                Work::GuestDelete(_) => (STALL, Fault::Stalled),
                _ => (CALL, Fault::Unanswered),
            };
            self.after(unanswered.0, Later::Report(job, Err(unanswered.1)));
            return Ok(());
        }
        let question = 200 + question(&work);
        let says = match self.dice.throw(question) % 100 {
            0..3 => Says::Nothing,
            3..7 => Says::Refuses,
            _ => Says::Done,
        };
        let delay = self.dice.takes(question, 25_000);
        match work {
            Work::GuestCreate(id) => self.send_create(job, id, delay, says),
            Work::GuestStart(id) => match self.guest.containers.get(&id) {
                Some(made) if made.phase == Phase::Created => {
                    let serial = made.serial;
                    self.after(delay, Later::InGuest(Happening::Started(id, serial, job, says)));
                }
                _ => self.say(job, delay, Says::WrongPhase),
            },
            Work::GuestExec(name) => self.send_exec(job, name, delay, says),
            Work::Signal { name, signal, all } => self.signal(job, &name, signal, all, delay, says),
            Work::GuestPause(id) | Work::GuestResume(id) => {
                let pause = question == 200 + self::question(&Work::GuestPause(id.clone()));
                self.freeze(job, id, pause, delay, says);
            }
            Work::GuestDelete(name) => self.delete(job, name, delay, says),
            _ => self.say(job, delay, Says::Done),
        }
        Ok(())
    }

    fn say(&mut self, job: Job, delay: u64, says: Says) {
        let (delay, done) = match says {
            Says::Done => (delay, Ok(())),
            Says::Refuses => (delay, Err(Fault::Refused)),
            Says::WrongPhase => (delay, Err(Fault::Phase)),
            Says::Nothing => (CALL, Err(Fault::Unanswered)),
        };
        self.after(delay, Later::Report(job, done));
    }

    fn missing(&mut self, job: Job, delay: u64) {
        self.after(delay, Later::Report(job, Err(Fault::Missing)));
    }

    /// Calls may overtake one another: on their way to the agent's threads, and before they are sent.
    fn send_create(&mut self, job: Job, id: ContainerId, delay: u64, says: Says) {
        match self.dice.happens(77, 500) {
            true => {
                let way = self.dice.throw(77) % 5000;
                self.creates_on_their_way.insert((id.clone(), job));
                self.after(way, Later::InGuest(Happening::CreateArrives(id, job, delay, says)));
            }
            false => self.make(job, id, delay, says),
        }
    }

    fn make(&mut self, job: Job, id: ContainerId, delay: u64, says: Says) {
        let undying = self.dice.happens(78, 50);
        match self.guest.make(&id, undying) {
            Some(serial) => self.after(delay, Later::InGuest(Happening::Made(id, serial, job, says))),
            None => self.say(job, delay, Says::Refuses),
        }
    }

    /// Calls may overtake one another on their way to the agent's threads.
    fn send_exec(&mut self, job: Job, name: ProcessName, delay: u64, says: Says) {
        let Some(container) = self.guest.containers.get(&name.container) else {
            return self.missing(job, delay);
        };
        let serial = container.serial;
        match self.dice.happens(79, 500) {
            true => {
                let way = self.dice.throw(79) % 5000;
                self.on_their_way.insert((name.clone(), serial));
                let arrives = Happening::ExecArrives(name, serial, job, delay, says);
                self.after(way, Later::InGuest(arrives));
            }
            false => self.launch(job, name, serial, delay, says),
        }
    }

    fn launch(&mut self, job: Job, name: ProcessName, serial: u64, delay: u64, says: Says) {
        let Some(exec) = name.exec.clone() else { return };
        let Some(container) = self.guest.of(&name.container, serial) else {
            return self.missing(job, delay);
        };
        let runs = matches!(container.phase, Phase::Created | Phase::Running);
        if !runs || container.execs.contains_key(&exec) || says == Says::Refuses {
            return self.say(job, delay, Says::Refuses);
        }
        container.execs.insert(exec, Exec::Launching(job));
        self.after(delay, Later::InGuest(Happening::ExecRuns(name, serial, job, says)));
    }

    fn signal(&mut self, job: Job, name: &ProcessName, signal: u32, all: bool, delay: u64, says: Says) {
        if !self.guest.lives(name) {
            let container = self.guest.containers.get_mut(&name.container);
            if let (Some(container), Some(exec), SIGKILL) = (container, &name.exec, signal)
                && matches!(container.execs.get(exec), Some(Exec::Launching(_)))
            {
                container.execs.remove(exec);
            }
            return self.missing(job, delay);
        }
        let container = &self.guest.containers[&name.container];
        let (serial, undying) = (container.serial, container.undying && container.phase == Phase::Running);
        let dies = match (signal, &name.exec) {
            // What waits in the kernel dies of nothing, though sometimes of its cgroup's end.
            (SIGKILL, None) => !undying || all && self.dice.happens(96, 500),
            (SIGKILL, Some(_)) => true,
            _ => self.dice.happens(96, 500),
        };
        if dies {
            let after = self.dice.takes(97, 20_000);
            self.after(
                after,
                Later::InGuest(Happening::Ends(name.clone(), serial, 128 + signal)),
            );
        }
        let says = if says == Says::Refuses { Says::Done } else { says };
        self.say(job, delay, says);
    }

    fn freeze(&mut self, job: Job, id: ContainerId, pause: bool, delay: u64, says: Says) {
        let Some(container) = self.guest.containers.get(&id) else {
            return self.missing(job, delay);
        };
        if container.phase != Phase::Running || container.frozen == pause {
            return self.say(job, delay, Says::WrongPhase);
        }
        let serial = container.serial;
        // The agent undoes a pause whose call is given up.
        let happens = says == Says::Done || says == Says::Nothing && (!pause || self.dice.happens(98, 500));
        if happens {
            self.after(0, Later::InGuest(Happening::Freezes(id, serial, pause)));
        }
        self.say(job, delay, says);
    }

    fn delete(&mut self, job: Job, name: ProcessName, delay: u64, says: Says) {
        let Some(container) = self.guest.containers.get_mut(&name.container) else {
            return self.missing(job, delay);
        };
        let serial = container.serial;
        if let Some(exec) = &name.exec {
            match container.execs.get(exec) {
                None => return self.missing(job, delay),
                Some(Exec::Running | Exec::Launching(_)) => return self.say(job, delay, Says::WrongPhase),
                Some(Exec::Ended) => {}
            }
        } else if container.phase == Phase::Running {
            return self.say(job, delay, Says::WrongPhase);
        }
        if says == Says::Refuses {
            return self.say(job, delay, says);
        }
        // One that makes no progress may come to its end later.
        let long = match says {
            Says::Nothing => STALL + self.dice.throw(99) % 600_000,
            _ => self.dice.takes(99, 600_000),
        };
        if says == Says::Nothing {
            self.after(STALL, Later::Report(job, Err(Fault::Stalled)));
        }
        self.after(long, Later::InGuest(Happening::Forgets(name, serial, job, says)));
    }

    /// Reports exits, in order, soon.
    fn ends(&mut self, name: &ProcessName, status: u32) {
        for name in self.guest.end(name) {
            let at = SystemTime::UNIX_EPOCH + Duration::from_millis(self.now);
            let exit = Exit { status, at };
            self.after(0, Later::Step(Input::Exited(name.clone(), exit, Output::default())));
            if self.dice.happens(80, 20) {
                self.after(5, Later::Step(Input::Exited(name, exit, Output::default())));
            }
        }
    }

    fn in_guest(&mut self, happening: Happening) -> Checked {
        match happening {
            Happening::CreateArrives(id, job, delay, says) => {
                self.creates_on_their_way.remove(&(id.clone(), job));
                self.make(job, id, delay, says);
            }
            Happening::Made(id, serial, job, says) => {
                let Some(container) = self.guest.of(&id, serial) else {
                    self.say(job, 0, Says::Refuses);
                    return Ok(());
                };
                if says == Says::Refuses {
                    self.guest.containers.remove(&id);
                } else {
                    container.phase = Phase::Created;
                    if self.dice.happens(81, 20) {
                        self.ends(&ProcessName::init(id), KILLED);
                    }
                }
                self.say(job, 0, says);
            }
            Happening::Started(id, serial, job, says) => self.started(&id, serial, job, says),
            Happening::ExecArrives(name, serial, job, delay, says) => {
                self.on_their_way.remove(&(name.clone(), serial));
                self.launch(job, name, serial, delay, says);
            }
            Happening::ExecRuns(name, serial, job, says) => {
                // Its start was ended: it has to be killed.
                let is_late = self.observed.is_stopped(&name);
                let container = self.guest.of(&name.container, serial);
                let exec = container.and_then(|container| container.execs.get_mut(name.exec.as_ref()?));
                match exec {
                    Some(exec) if *exec == Exec::Launching(job) => *exec = Exec::Running,
                    _ => {
                        self.say(job, 0, Says::Refuses);
                        return Ok(());
                    }
                }
                let lifetime = if is_late {
                    self.late.insert((name.clone(), serial));
                    UNTIL_KILLED
                } else {
                    self.dice.takes(82, 200_000)
                };
                self.after(lifetime, Later::InGuest(Happening::Ends(name, serial, 0)));
                self.say(job, 0, says);
            }
            Happening::Ends(name, serial, status) => {
                let frozen = self.guest.of(&name.container, serial).map(|container| container.frozen);
                match frozen {
                    // It goes on when it is thawed.
                    Some(true) if status != KILLED => {
                        let ends = Happening::Ends(name, serial, status);
                        if !self.calm && self.dice.happens(83, 900) {
                            self.after(10_000, Later::InGuest(ends));
                        }
                    }
                    Some(_) if self.guest.lives(&name) => {
                        if status == 0 && self.late.contains(&(name.clone(), serial)) && !self.agent_hangs {
                            return Err(format!("{name} was ended at its start, and runs to its end"));
                        }
                        self.ends(&name, status);
                    }
                    _ => {}
                }
            }
            Happening::Freezes(id, serial, pause) => {
                if let Some(container) = self.guest.of(&id, serial)
                    && container.phase == Phase::Running
                {
                    container.frozen = pause;
                }
            }
            Happening::Forgets(name, serial, job, says) => self.forgets(&name, serial, job, says),
        }
        Ok(())
    }

    fn started(&mut self, id: &ContainerId, serial: u64, job: Job, says: Says) {
        let Some(container) = self.guest.of(id, serial) else {
            return self.say(job, 0, Says::Refuses);
        };
        let init = ProcessName::init(id.clone());
        if container.phase != Phase::Created {
            return self.say(job, 0, Says::Refuses);
        }
        if says == Says::Refuses {
            // Its program cannot be executed: that ends it.
            self.ends(&init, 127);
            return self.say(job, 0, says);
        }
        container.phase = Phase::Running;
        let undying = container.undying;
        if !undying {
            let lifetime = self.dice.takes(84, 300_000);
            self.after(lifetime, Later::InGuest(Happening::Ends(init, serial, 0)));
        }
        self.say(job, 0, says);
    }

    fn forgets(&mut self, name: &ProcessName, serial: u64, job: Job, says: Says) {
        let Some(container) = self.guest.of(&name.container, serial) else {
            return self.missing(job, 0);
        };
        match &name.exec {
            Some(exec) => drop(container.execs.remove(exec)),
            None => {
                // One that waits to be started is killed, and its exit comes first.
                self.ends(name, KILLED);
                self.guest.containers.remove(&name.container);
            }
        }
        if says != Says::Nothing {
            self.say(job, 1, Says::Done);
        }
    }

    /// Nothing is under way: the guest has no container that the shim does not know.
    fn check_strangers(&self) -> Checked {
        let mut containers = self.guest.containers.keys();
        match containers.find(|id| !self.observed.is_known(id)) {
            Some(id) if !self.agent_hangs => {
                Err(format!("the guest has container {id}, and the shim does not know it"))
            }
            _ => Ok(()),
        }
    }

    /// Nothing is under way: no container is frozen that is seen to run.
    fn check_frozen(&self) -> Checked {
        for (id, container) in &self.guest.containers {
            let frozen = container.frozen && container.phase == Phase::Running && !self.agent_hangs;
            if frozen && self.observed.is_seen_running(id) {
                return Err(format!("container {id} is frozen, and seen to run"));
            }
        }
        Ok(())
    }
}

fn question(work: &Work) -> u64 {
    match work {
        Work::Attach(_) => 0,
        Work::CreateHooks(_) => 1,
        Work::Provision(_) => 2,
        Work::GuestCreate(_) => 3,
        Work::Connect(_) => 4,
        Work::Network(_) => 5,
        Work::GuestStart(_) => 6,
        Work::StartHooks(_) => 7,
        Work::OpenStreams(_) => 8,
        Work::GuestExec(_) => 9,
        Work::ConnectExec(_) => 10,
        Work::Signal { .. } => 11,
        Work::Ping => 12,
        Work::GuestPause(_) => 13,
        Work::GuestResume(_) => 14,
        Work::Update(..) => 15,
        Work::GuestDelete(_) => 16,
        Work::ReleaseDisks(_) => 17,
        Work::Detach(_) => 18,
        Work::StopHooks(_) => 19,
        Work::FinishStreams(..) => 20,
    }
}
