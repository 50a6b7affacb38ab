//! The request to create a container, and those to existing containers and processes that change neither their number nor their
//! streams.

mod create;
mod delete;
mod start;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use guest::agent_client::{AgentClient, AgentError, printable};
use lifecycle::{Answer, Refusal, Request};
use node::guest_spec::guest_resources;
use node::sizing::Limits;
use oci_spec::runtime::LinuxResources;
use protocol::agent::{
    ContainerId as AgentContainerId, MemlockReport, MemlockRequest, ResizeTerminalRequest, SignalRequest,
    StatsResponse, UpdateRequest,
};
use protocol::diagnostics::MemlockPolicy;
use protocol::phase::Phase;

use crate::id::ContainerId;
use crate::sandbox::Sandbox;
use crate::sandbox::driver::message::Payload;
use crate::sandbox::error::{Error, Shared};
use crate::sandbox::records::container::{Container, CreateRequest};
use crate::sandbox::records::process::{Process, ProcessName};

/// Bytes of a process's name that are passed on: the kernel's have 15, and some are escaped (proc_pid_comm(5)).
const LONGEST_NAME: usize = 64;

pub(super) fn agent_container(id: &ContainerId) -> AgentContainerId {
    AgentContainerId {
        container_id: id.to_string(),
        ..Default::default()
    }
}

pub(super) fn failed(operation: &'static str, subject: &ProcessName) -> impl FnOnce(AgentError) -> Error {
    let subject = subject.to_string();
    move |source| Error::Agent {
        operation,
        subject,
        source,
    }
}

impl Sandbox {
    /// Creates a container. Dropping the future interrupts it: what was done is undone all the same. The answer is
    /// the pid that stands for it.
    ///
    /// # Errors
    /// It cannot be created. Nothing of it is left then, and the id is free; or, where the guest or the host holds on to
    /// something of it, it is there as a container that has stopped, and can be deleted.
    pub async fn create(&self, request: CreateRequest) -> Result<u32, Shared> {
        let id = request.id.clone();
        let answer = self.ask(Request::Create(id.clone()), Payload::Create(request)).await;
        if !matches!(answer, Answer::Done) {
            let error = self.refused(answer);
            tracing::warn!(container = %id, error = error.message(), "a container could not be created");
            return Err(error);
        }
        Ok(self
            .container(&id)
            .map_or_else(|_| self.pid(), |container| self.pid_of(&container)))
    }

    /// The error for an answer that is a refusal.
    pub(super) fn refused(&self, answer: Answer<Shared>) -> Shared {
        let refusal = match answer {
            Answer::Failed(error) => return error,
            Answer::Refused(refusal) => refusal,
            Answer::Done | Answer::Deleted(_) => {
                return Error::Interrupted {
                    subject: format!("sandbox {}", self.id),
                }
                .into();
            }
        };
        let error = match refusal {
            Refusal::NotFound(name) => Error::NotFound {
                subject: name.to_string(),
            },
            Refusal::Exists(name) => Error::Exists {
                subject: name.to_string(),
            },
            Refusal::Finished(name) => Error::Finished {
                subject: name.to_string(),
            },
            Refusal::Phase { verb, name, phase } => Error::State {
                operation: verb.name(),
                subject: name.to_string(),
                state: phase.name(),
            },
            Refusal::Interrupted(name) => Error::Interrupted {
                subject: name.to_string(),
            },
            Refusal::NoVm { operation, name } => {
                let subject = name.to_string();
                self.agent(operation, &subject).err().unwrap_or_else(|| Error::VmEnded {
                    operation,
                    subject,
                    reason: self.given_up.borrow().clone().unwrap_or_default(),
                })
            }
        };
        error.into()
    }

    async fn done(&self, request: Request, payload: Payload) -> Result<(), Shared> {
        match self.ask(request, payload).await {
            Answer::Done => Ok(()),
            refused => Err(self.refused(refused)),
        }
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// There is no such process, it was never started, or it has ended.
    pub async fn kill(&self, name: &ProcessName, signal: u32, all: bool) -> Result<(), Shared> {
        let name = name.clone();
        self.done(Request::Kill { name, signal, all }, Payload::Nothing).await
    }

    pub(super) async fn signal_in_guest(&self, name: &ProcessName, signal: u32, all: bool) -> Result<(), Error> {
        let agent = self.agent("signal", &name.to_string())?;
        let sent = agent.signal(&signal_request(name, signal, all)).await;
        sent.map(drop).map_err(failed("signal", name))
    }

    /// Whether the agent answers: anything will do.
    pub(super) async fn ping(&self) -> Result<(), Error> {
        let subject = format!("sandbox {}", self.id);
        let agent = self.agent("ask the agent of", &subject)?;
        let limit = self.timeouts.heartbeat();
        let asked = async {
            loop {
                match agent.guest_metrics().await {
                    Err(AgentError::TimedOut(_)) => {}
                    Err(broken @ AgentError::Broken(_)) => return Err(broken),
                    Ok(_) | Err(AgentError::Refused { .. }) => return Ok(()),
                }
            }
        };
        let answered = tokio::time::timeout(limit, asked).await;
        let answered = answered.unwrap_or(Err(AgentError::TimedOut(limit)));
        answered.map_err(|source| Error::Agent {
            operation: "ask the agent of",
            subject,
            source,
        })
    }

    /// Freezes (`true`) or thaws a container.
    ///
    /// # Errors
    /// It does not run, or is frozen or not already.
    pub async fn set_paused(&self, id: &ContainerId, pause: bool) -> Result<(), Shared> {
        let request = match pause {
            true => Request::Pause(id.clone()),
            false => Request::Resume(id.clone()),
        };
        self.done(request, Payload::Nothing).await
    }

    /// Freezes or thaws it in the guest.
    pub(super) async fn freeze_in_guest(&self, name: &ProcessName, pause: bool) -> Result<(), Error> {
        let operation = if pause { "pause" } else { "resume" };
        let agent = self.agent(operation, &name.to_string())?;
        let request = agent_container(&name.container);
        let done = match pause {
            true => agent.pause(&request).await,
            false => agent.resume(&request).await,
        };
        done.map(drop).map_err(failed(operation, name))
    }

    /// Sets a terminal's size. Before the end of a start it is kept for then.
    ///
    /// # Errors
    /// There is no such process or it has ended.
    pub async fn resize(&self, name: &ProcessName, columns: u32, rows: u32) -> Result<(), Error> {
        let (_, process) = self.process(name)?;
        process.remember_size((columns, rows));
        // Looked at afterwards: whoever enters the next phase tells the guest of a size that it finds.
        match process.phase() {
            Phase::Created | Phase::Starting if name.exec.is_some() => Ok(()),
            phase @ Phase::Stopped => Err(Error::State {
                operation: "resize the terminal of",
                subject: name.to_string(),
                state: phase.name(),
            }),
            Phase::Creating | Phase::Created | Phase::Starting | Phase::Running | Phase::Paused => {
                self.apply_size(&process).await
            }
        }
    }

    /// Tells the guest of a terminal's size that it has not been told of.
    pub(super) async fn apply_size(&self, process: &Process) -> Result<(), Error> {
        let operation = "resize the terminal of";
        let Some((_one, (columns, rows))) = process.size_to_tell().await else {
            return Ok(());
        };
        let name = &process.name;
        let request = ResizeTerminalRequest {
            process: Some(name.to_agent()).into(),
            columns,
            rows,
            ..Default::default()
        };
        let agent = self.agent(operation, &name.to_string())?;
        let resized = agent.resize_terminal(&request).await;
        resized.map(drop).map_err(failed(operation, name))
    }

    /// CloseIO.
    ///
    /// # Errors
    /// There is no such process.
    pub fn close_stdin(&self, name: &ProcessName) -> Result<(), Error> {
        let (_, process) = self.process(name)?;
        process.close_stdin();
        Ok(())
    }

    /// The agent and the name of a container that has not ended.
    pub(super) fn living(
        &self,
        id: &ContainerId,
        operation: &'static str,
    ) -> Result<(AgentClient, ProcessName), Error> {
        let container = self.container(id)?;
        let name = container.init.name.clone();
        if container.init.phase() == Phase::Stopped {
            return Err(Error::Finished {
                subject: name.to_string(),
            });
        }
        Ok((self.agent(operation, &name.to_string())?, name))
    }

    /// A container's figures. While the guest owes an earlier answer it is not asked again: containerd asks for all containers of the
    /// node one after the other, and those of one hung guest must not cost it the others' figures.
    ///
    /// # Errors
    /// It does not exist or has ended, or the guest does not answer in time.
    pub async fn stats(&self, id: &ContainerId) -> Result<StatsResponse, Error> {
        let operation = "read the figures of";
        let (agent, name) = self.living(id, operation)?;
        let limit = self.timeouts.figures();
        if self.unanswered_stats.load(Ordering::SeqCst) > 0 {
            return Err(failed(operation, &name)(AgentError::TimedOut(limit)));
        }
        let request = agent_container(id);
        let mut call = tokio::spawn(async move { agent.stats(&request).await });
        match tokio::time::timeout(limit, &mut call).await {
            Ok(Ok(stats)) => stats.map_err(failed(operation, &name)),
            Ok(Err(_)) => Err(Error::Interrupted {
                subject: name.to_string(),
            }),
            Err(_) => {
                let unanswered = Arc::clone(&self.unanswered_stats);
                unanswered.fetch_add(1, Ordering::SeqCst);
                // Its own time-out ends it, if nothing else does.
                tokio::spawn(async move {
                    let _ = call.await;
                    unanswered.fetch_sub(1, Ordering::SeqCst);
                });
                Err(failed(operation, &name)(AgentError::TimedOut(limit)))
            }
        }
    }

    /// What a process of a container may lock, as the guest tells it, and what decided about it.
    ///
    /// # Errors
    /// There is no such process, it has ended, or the guest cannot probe it.
    pub async fn memlock(
        &self,
        id: &ContainerId,
        request: MemlockRequest,
    ) -> Result<(MemlockReport, MemlockPolicy), Error> {
        let operation = "examine the locked memory of";
        let policy = self
            .container(id)?
            .memlock
            .get()
            .cloned()
            .unwrap_or_default()
            .to_message();
        let (agent, name) = self.living(id, operation)?;
        let report = agent.memlock(&request).await;
        let mut report = report.map_err(failed(operation, &name))?;
        // A program names itself.
        report.command = printable(&report.command, LONGEST_NAME);
        Ok((report, policy))
    }

    /// Changes a container's limits, and the VM's size with them.
    ///
    /// # Errors
    /// It does not exist, has ended, the VM cannot be given the memory, or the guest refuses.
    pub async fn update(&self, id: &ContainerId, resources: LinuxResources) -> Result<(), Shared> {
        let payload = Payload::Update(Box::new(resources));
        self.done(Request::Update(id.clone()), payload).await
    }

    /// Gives the VM what it lacks for the new limits, and has the guest apply them.
    pub(super) async fn update_in_guest(
        self: &Arc<Self>,
        container: &Container,
        resources: LinuxResources,
    ) -> Result<(), Error> {
        let (agent, name) = self.living(&container.id, "update")?;
        let before = self.sizes.of(&container.id);
        let updated = self.update_limits(&agent, &name, before, resources).await;
        if updated.is_err() {
            self.sizes.count(&container.id, before);
        }
        self.shrink_to_target();
        updated
    }

    async fn update_limits(
        self: &Arc<Self>,
        agent: &AgentClient,
        name: &ProcessName,
        before: Limits,
        mut resources: LinuxResources,
    ) -> Result<(), Error> {
        let limits = before.updated(&resources);
        for warning in guest_resources(&mut resources) {
            tracing::warn!(container = %name, warning);
        }
        let text = serde_json::to_vec(&resources).map_err(|error| Error::Invalid {
            what: "the resources",
            subject: name.to_string(),
            reason: error.to_string(),
        })?;
        self.grow(agent, &name.container, limits).await?;
        let request = UpdateRequest {
            container_id: name.container.to_string(),
            resources: text,
            ..Default::default()
        };
        agent.update(&request).await.map(drop).map_err(failed("update", name))
    }
}

pub(super) fn signal_request(name: &ProcessName, signal: u32, all: bool) -> SignalRequest {
    SignalRequest {
        process: Some(name.to_agent()).into(),
        signal,
        all,
        ..Default::default()
    }
}
