//! The one task that owns the state of the containers. It gives requests, reports and exits to the state machine
//! (`lifecycle`), one after the other, and carries out the effects: records, events and answers at once, work in separate
//! tasks that report back.
//!
//! It decides nothing: the state machine decides what is allowed at which time.

pub(super) mod fault;
pub(super) mod message;
mod publish;
mod traced;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use guest::warn_rate_limited;
use lifecycle::{Answer, Core, Effect, Input, Job, Reason, Reply, Request, View, Work};
use oci_spec::runtime::LinuxResources;
use protocol::phase::Phase;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

use crate::id::ContainerId;
use crate::sandbox::Sandbox;
use crate::sandbox::driver::fault::{Done, failure, interrupted};
use crate::sandbox::driver::message::{Message, Payload};
use crate::sandbox::driver::traced::OpenRequests;
use crate::sandbox::error::Shared;
use crate::sandbox::records::container::Container;
use crate::sandbox::records::process::{Process, ProcessName};

/// Says that whoever asked is gone, unless there was an answer.
struct Asking<'a> {
    sandbox: &'a Sandbox,
    reply: Option<Reply>,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if let Some(reply) = self.reply {
            self.sandbox.report(Input::ClientGone(reply));
        }
    }
}

impl Sandbox {
    /// Queues a request and waits for its answer. Dropping the future drops nothing but the wait.
    pub(super) async fn ask(&self, request: Request, payload: Payload) -> Answer<Shared> {
        let reply = Reply(self.next_reply.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        let name = subject(&request);
        let (answer, answered) = oneshot::channel();
        // The driver ends with the process: both errors mean that the process ends.
        let _ = self.inputs.send(Message::Request {
            reply,
            request,
            payload,
            place: trace::current(),
            answer,
        });
        let mut asking = Asking {
            sandbox: self,
            reply: Some(reply),
        };
        let answer = answered.await;
        asking.reply = None;
        answer.unwrap_or(Answer::Refused(lifecycle::Refusal::Interrupted(name)))
    }

    /// Whether anybody has asked for anything yet.
    #[must_use]
    pub fn was_asked(&self) -> bool {
        self.next_reply.load(std::sync::atomic::Ordering::Relaxed) > 0
    }

    /// Tells of something and does not wait.
    pub(super) fn report(&self, input: Input<Shared>) {
        let _ = self.inputs.send(Message::Input(input, None));
    }

    /// Tells of something, and waits until it has been taken note of: a guest can report no faster than that.
    pub(super) async fn tell(&self, input: Input<Shared>) {
        let (noted, waits) = oneshot::channel();
        let _ = self.inputs.send(Message::Input(input, Some(noted)));
        let _ = waits.await;
    }
}

fn subject(request: &Request) -> ProcessName {
    match request {
        Request::Create(id) | Request::Pause(id) | Request::Resume(id) | Request::Update(id) => {
            ProcessName::init(id.clone())
        }
        Request::AddExec(name) | Request::Start(name) | Request::Delete(name) | Request::Kill { name, .. } => {
            name.clone()
        }
    }
}

/// Work or a timer that is under way.
struct Running {
    task: AbortHandle,
    /// A call to the guest is not cut off: it may be half written. Its report comes to nothing.
    is_call: bool,
}

pub(super) struct Driver {
    sandbox: Arc<Sandbox>,
    core: Core<Shared>,
    answers: HashMap<Reply, oneshot::Sender<Answer<Shared>>>,
    payloads: HashMap<Reply, Payload>,
    running: HashMap<Job, Running>,
    traced: OpenRequests,
}

impl Driver {
    /// `own` is the container that does nothing but keep a pod's namespaces.
    pub(super) fn new(sandbox: Arc<Sandbox>, own: Option<ContainerId>) -> Self {
        Self {
            sandbox,
            core: Core::new(own),
            answers: HashMap::new(),
            payloads: HashMap::new(),
            running: HashMap::new(),
            traced: OpenRequests::default(),
        }
    }

    /// For as long as there is a sandbox.
    pub(super) async fn run(mut self, mut messages: mpsc::UnboundedReceiver<Message>) {
        while let Some(message) = messages.recv().await {
            let (input, noted) = match message {
                Message::Request {
                    reply,
                    request,
                    payload,
                    place,
                    answer,
                } => {
                    if let Some(place) = place {
                        self.traced.begin(reply, &request, subject(&request), place);
                    }
                    self.answers.insert(reply, answer);
                    self.payloads.insert(reply, payload);
                    (Input::Request(reply, request), None)
                }
                Message::Input(input, noted) => (input, noted),
            };
            if let Input::Finished(job, _) | Input::Elapsed(job) = &input {
                self.running.remove(job);
            }
            for effect in self.core.step(SystemTime::now(), input) {
                self.carry_out(effect);
            }
            if let Some(noted) = noted {
                // Whoever said it may have gone.
                let _ = noted.send(());
            }
        }
    }

    fn carry_out(&mut self, effect: Effect<Shared>) {
        let sandbox = Arc::clone(&self.sandbox);
        match effect {
            Effect::Do(job, work) => self.begin(job, work),
            Effect::Start(job, timer) => {
                let time = sandbox.timeouts.of(timer);
                let task = tokio::spawn(async move {
                    tokio::time::sleep(time).await;
                    sandbox.report(Input::Elapsed(job));
                });
                let task = task.abort_handle();
                self.running.insert(job, Running { task, is_call: false });
            }
            Effect::Abandon(job) => {
                if let Some(running) = self.running.remove(&job)
                    && !running.is_call
                {
                    running.task.abort();
                }
            }
            Effect::Record(name, reply) => self.record(&name, reply),
            Effect::Enter(name, view, event) => {
                if let Some((container, process)) = self.find(&name) {
                    process.enter(view, || {
                        if let Some(event) = event {
                            sandbox.publish(&container, &process, event);
                        }
                    });
                    if view == View::In(Phase::Running) && process.stdio.terminal {
                        // One that was asked for since the start looked for it.
                        tokio::spawn(async move { sandbox.start_with_size(&process).await });
                    }
                }
            }
            Effect::Tell(name, event) => {
                if let Some((container, process)) = self.find(&name) {
                    sandbox.publish(&container, &process, event);
                }
            }
            Effect::Forget(name, event) => {
                if let (Some((container, process)), Some(event)) = (self.find(&name), event) {
                    sandbox.publish(&container, &process, event);
                }
                self.forget(&name);
            }
            Effect::Uncount(id) => {
                sandbox.sizes.forget(&id);
                sandbox.shrink_to_target();
            }
            Effect::CloseStreams(name) => {
                if let Some((_, process)) = self.find(&name) {
                    process.drop_streams();
                }
            }
            Effect::Answer(reply, answer) => {
                self.payloads.remove(&reply);
                self.traced.end(reply);
                if let Some(waits) = self.answers.remove(&reply) {
                    // Whoever asked may have gone.
                    let _ = waits.send(answer);
                }
            }
            Effect::EndVm(reason) => sandbox.give_up(describe(&reason)),
            Effect::Lingers(name) => {
                tracing::error!(process = %name, "it does not die of SIGKILL; the VM goes on for the other containers");
            }
            Effect::Unknown(name) => {
                warn_rate_limited!(process = %name, "the guest reports the exit of what does not exist")
            }
        }
    }

    fn find(&self, name: &ProcessName) -> Option<(Arc<Container>, Arc<Process>)> {
        let container = self.sandbox.records().get(&name.container).cloned()?;
        let process = container.find(name.exec.as_ref())?;
        Some((container, process))
    }

    fn record(&mut self, name: &ProcessName, reply: Reply) {
        match self.payloads.remove(&reply) {
            Some(Payload::Create(request)) => {
                let container = Arc::new(Container::new(request));
                self.sandbox.records().insert(name.container.clone(), container);
            }
            Some(Payload::Exec(process)) => {
                let container = self.sandbox.records().get(&name.container).cloned();
                if let (Some(container), Some(exec)) = (container, &name.exec) {
                    container.execs().insert(exec.clone(), process);
                }
            }
            Some(Payload::Nothing | Payload::Update(_)) | None => {}
        }
    }

    fn forget(&self, name: &ProcessName) {
        match &name.exec {
            None => drop(self.sandbox.records().remove(&name.container)),
            Some(exec) => {
                let container = self.sandbox.records().get(&name.container).cloned();
                if let Some(container) = container {
                    container.execs().remove(exec);
                }
            }
        }
    }

    fn begin(&mut self, job: Job, work: Work) {
        let is_call = work.is_guests();
        let name = work.subject();
        let found = name.as_ref().and_then(|name| self.find(name));
        let resources = match &work {
            Work::Update(_, reply) => match self.payloads.remove(reply) {
                Some(Payload::Update(resources)) => Some(*resources),
                _ => None,
            },
            _ => None,
        };
        let sandbox = Arc::clone(&self.sandbox);
        let span = self.traced.span(&work);
        let order = Order { work, found, resources };
        let work = Arc::clone(&sandbox).work(order);
        let task = match span {
            None => tokio::spawn(work),
            Some(span) => tokio::spawn(span.run(work, |failure| failure.error.message())),
        };
        let abort = task.abort_handle();
        tokio::spawn(async move {
            match task.await {
                Ok(done) => sandbox.report(Input::Finished(job, done)),
                Err(error) if error.is_cancelled() => {}
                Err(error) => {
                    tracing::error!(%error, "a task of the sandbox has failed");
                    let subject = name.map_or_else(|| "the sandbox".to_owned(), |name| name.to_string());
                    sandbox.report(Input::Finished(job, interrupted(subject)));
                }
            }
        });
        self.running.insert(job, Running { task: abort, is_call });
    }
}

/// Work, with the records of what it is about.
struct Order {
    work: Work,
    found: Option<(Arc<Container>, Arc<Process>)>,
    resources: Option<LinuxResources>,
}

impl Sandbox {
    /// Carries out one piece of work, and returns what to report.
    async fn work(self: Arc<Self>, order: Order) -> Done {
        if order.work == Work::Ping {
            return self.ping().await.map_err(failure);
        }
        let Some((container, process)) = order.found else {
            return interrupted(format!("{:?}", order.work));
        };
        let done = match order.work {
            Work::Attach(_) => self.attach(&container).await,
            Work::CreateHooks(_) => self.run_create_hooks(&container).await,
            Work::Provision(_) => self.provision(&container).await,
            Work::GuestCreate(_) => self.create_in_guest(&container).await,
            Work::Connect(_) => self.connect(&container).await,
            Work::Network(_) => self.follow_network_for(&process).await,
            Work::GuestStart(_) => self.start_in_guest(&process).await,
            Work::StartHooks(_) => self.run_start_hooks(&container).await,
            Work::OpenStreams(_) => self.open_streams(&process).await,
            Work::GuestExec(_) => self.exec_in_guest(&process).await,
            Work::ConnectExec(_) => self.connect_exec(&process).await,
            Work::Signal { name, signal, all } => self.signal_in_guest(&name, signal, all).await,
            Work::GuestPause(_) => self.freeze_in_guest(&process.name, true).await,
            Work::GuestResume(_) => self.freeze_in_guest(&process.name, false).await,
            Work::Update(..) => {
                self.update_in_guest(&container, order.resources.unwrap_or_default())
                    .await
            }
            Work::GuestDelete(name) => return self.delete_in_guest(&name).await,
            Work::ReleaseDisks(_) => {
                self.release_disks(&container.id).await;
                Ok(())
            }
            Work::Detach(_) => self.detach(&container.id).await,
            Work::StopHooks(_) => {
                self.run_stop_hooks(&container).await;
                Ok(())
            }
            Work::FinishStreams(_, output) => {
                self.finish_streams(&process, output).await;
                Ok(())
            }
            Work::Ping => Ok(()),
        };
        done.map_err(failure)
    }
}

fn describe(reason: &Reason) -> String {
    match reason {
        Reason::NoHeartbeat => "the guest's agent does not answer".to_owned(),
        Reason::Undying(name) => {
            format!("{name} did not die of SIGKILL: it waits for what does not answer, and nobody else needs the VM")
        }
        Reason::Undeletable(id) => format!("the guest does not let go of container {id}, the last one in it"),
    }
}
