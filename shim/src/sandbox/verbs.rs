//! What is asked of containers and processes that exist, and changes neither their number nor their streams.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use containerd_shim_protos::events::task::{TaskPaused, TaskResumed};
use containerd_shim_protos::topics::{TASK_PAUSED_EVENT_TOPIC, TASK_RESUMED_EVENT_TOPIC};
use oci_spec::runtime::LinuxResources;
use protocol::agent::{
    ContainerId as AgentContainerId, ListProcessesResponse, MemlockReport, MemlockRequest, Process as AgentProcess,
    ResizeTerminalRequest, SignalRequest, StatsResponse, UpdateRequest,
};
use protocol::diagnostics::MemlockPolicy;
use ttrpc::Code;

use super::process::{Phase, ProcessName};
use super::{Container, Sandbox};
use crate::agent_client::{AgentClient, AgentError, printable};
use crate::error::Error;
use crate::guest_spec::guest_resources;
use crate::id::{ContainerId, ExecId};
use crate::sizing::Limits;

/// SIGKILL on Linux (signal(7)).
pub(super) const SIGKILL: u32 = 9;

/// containerd's namespace of Docker's containers.
const DOCKER: &str = "moby";

/// For the agent to take a SIGKILL: it only has to ask the guest's kernel.
const KILL_ANSWER: Duration = Duration::from_secs(10);

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
    /// Sends a signal.
    ///
    /// # Errors
    /// There is no such process, it was never started, or it has ended.
    pub async fn kill(self: &Arc<Self>, name: &ProcessName, signal: u32, all: bool) -> Result<(), Error> {
        let (container, process) = self.process(name)?;
        let finished = || Error::Finished {
            subject: name.to_string(),
        };
        match process.phase() {
            Phase::Stopped(_) => return Err(finished()),
            phase @ Phase::Created if name.exec.is_some() => return Err(process.not_allowed("signal", phase)),
            Phase::Busy | Phase::Created | Phase::Running => {}
        }
        let Ok(agent) = self.agent("signal", &name.to_string()) else {
            return Err(finished());
        };
        let sent = if signal == SIGKILL {
            self.kill_surely(&agent, name, all).await
        } else {
            agent.signal(&signal_request(name, signal, all)).await.map(drop)
        };
        match sent {
            Ok(()) => {
                if signal == SIGKILL && name.exec.is_none() {
                    self.see_to_end(container);
                }
                Ok(())
            }
            // Its exit is on the way here.
            Err(AgentError::Refused {
                code: Code::NOT_FOUND, ..
            }) => Err(finished()),
            Err(source) => Err(failed("signal", name)(source)),
        }
    }

    /// Sends SIGKILL. A guest that does not take it in time is ended itself, with every container in it: it answers
    /// none of them, and whoever sends SIGKILL must get rid of what it is sent to.
    pub(super) async fn kill_surely(
        &self,
        agent: &AgentClient,
        name: &ProcessName,
        all: bool,
    ) -> Result<(), AgentError> {
        let request = signal_request(name, SIGKILL, all);
        if let Ok(answer) = tokio::time::timeout(KILL_ANSWER, agent.signal(&request)).await {
            return answer.map(drop);
        }
        let seconds = KILL_ANSWER.as_secs();
        self.give_up(format!(
            "its agent did not answer a SIGKILL of {name} within {seconds} s"
        ))
        .await;
        Ok(())
    }

    /// Freezes (`true`) or thaws a container.
    ///
    /// # Errors
    /// It does not run, or is frozen or not already.
    pub async fn set_paused(&self, id: &ContainerId, pause: bool) -> Result<(), Error> {
        let container = self.container(id)?;
        let _changes = container.changes.lock().await;
        let (operation, wrong) = if pause {
            ("pause", "paused")
        } else {
            ("resume", "not paused")
        };
        let name = &container.init.name;
        match container.init.phase() {
            Phase::Running => {}
            phase => return Err(container.init.not_allowed(operation, phase)),
        }
        if container.paused.load(Ordering::Acquire) == pause {
            return Err(Error::State {
                operation,
                subject: name.to_string(),
                state: wrong,
            });
        }
        let agent = self.agent(operation, &name.to_string())?;
        let request = agent_container(id);
        let done = if pause {
            agent.pause(&request).await
        } else {
            agent.resume(&request).await
        };
        done.map_err(failed(operation, name))?;
        container.paused.store(pause, Ordering::Release);
        let container_id = id.to_string();
        if pause {
            let event = TaskPaused {
                container_id,
                ..Default::default()
            };
            self.events.publish(TASK_PAUSED_EVENT_TOPIC, &event);
        } else {
            let event = TaskResumed {
                container_id,
                ..Default::default()
            };
            self.events.publish(TASK_RESUMED_EVENT_TOPIC, &event);
        }
        Ok(())
    }

    /// Sets a terminal's size; before the start it is kept for then.
    ///
    /// # Errors
    /// There is no such process or it has ended.
    pub async fn resize(&self, name: &ProcessName, columns: u32, rows: u32) -> Result<(), Error> {
        let (_, process) = self.process(name)?;
        match process.phase() {
            Phase::Created | Phase::Busy if name.exec.is_some() => {
                process.remember_size((columns, rows));
                return Ok(());
            }
            phase @ Phase::Stopped(_) => return Err(process.not_allowed("resize the terminal of", phase)),
            Phase::Created | Phase::Busy | Phase::Running => {}
        }
        let request = ResizeTerminalRequest {
            process: Some(name.to_agent()).into(),
            columns,
            rows,
            ..Default::default()
        };
        let agent = self.agent("resize the terminal of", &name.to_string())?;
        let resized = agent.resize_terminal(&request).await;
        resized.map(drop).map_err(failed("resize the terminal of", name))
    }

    /// CloseIO.
    ///
    /// # Errors
    /// There is no such process.
    pub fn close_stdin(&self, name: &ProcessName) -> Result<(), Error> {
        let (_, process) = self.process(name)?;
        if let Some(streams) = process.streams() {
            streams.close_stdin();
        }
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
        if matches!(container.init.phase(), Phase::Stopped(_)) {
            return Err(Error::Finished {
                subject: name.to_string(),
            });
        }
        Ok((self.agent(operation, &name.to_string())?, name))
    }

    /// A container's processes, as the guest numbers them. Docker is told the VMM alone: `docker top` looks the numbers up
    /// with ps on the host, where the guest's numbers are other processes, of which it would show the command lines.
    ///
    /// # Errors
    /// It does not exist or has ended.
    pub async fn processes(&self, id: &ContainerId) -> Result<ListProcessesResponse, Error> {
        let operation = "list the processes of";
        let (agent, name) = self.living(id, operation)?;
        if self.namespace.as_str() == DOCKER {
            return Ok(self.the_vmm_alone());
        }
        let listed = agent.list_processes(&agent_container(id)).await;
        let mut listed = listed.map_err(failed(operation, &name))?;
        let container = self.container(id)?;
        let execs = container.execs();
        for process in &mut listed.processes {
            // containerd's clients show it: it is a name that containerd gave, or none.
            let known = |exec: &String| ExecId::new(exec).is_ok_and(|exec| execs.contains_key(&exec));
            process.exec_id = process.exec_id.take().filter(known);
        }
        drop(execs);
        Ok(listed)
    }

    fn the_vmm_alone(&self) -> ListProcessesResponse {
        let vmm = AgentProcess {
            pid: self.pid(),
            ..AgentProcess::default()
        };
        ListProcessesResponse {
            processes: vec![vmm],
            ..ListProcessesResponse::default()
        }
    }

    /// A container's figures.
    ///
    /// # Errors
    /// It does not exist or has ended.
    pub async fn stats(&self, id: &ContainerId) -> Result<StatsResponse, Error> {
        let operation = "read the figures of";
        let (agent, name) = self.living(id, operation)?;
        let stats = agent.stats(&agent_container(id)).await;
        stats.map_err(failed(operation, &name))
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
        let policy = self.container(id)?.memlock.to_message();
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
    pub async fn update(self: &Arc<Self>, id: &ContainerId, resources: LinuxResources) -> Result<(), Error> {
        let container = self.container(id)?;
        let (sandbox, subject) = (Arc::clone(self), container.init.name.to_string());
        // Of its own, so that it is not left half done when whoever asked goes away.
        let work = tokio::spawn(async move {
            let _changes = container.changes.lock().await;
            let (agent, name) = sandbox.living(&container.id, "update")?;
            let before = sandbox.sizes.of(&container.id);
            let updated = sandbox.update_limits(&agent, &name, before, resources).await;
            if updated.is_err() {
                sandbox.sizes.count(&container.id, before);
            }
            if matches!(container.init.phase(), Phase::Stopped(_)) {
                // It has ended meanwhile, and what it had must not be counted again.
                sandbox.sizes.forget(&container.id);
            }
            sandbox.settle();
            updated
        });
        work.await.unwrap_or(Err(Error::Interrupted { subject }))
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

impl Container {
    /// Whether it is frozen.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Acquire)
    }
}
