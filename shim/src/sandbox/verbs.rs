//! What is done to containers and processes that exist.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use containerd_shim_protos::events::task::{
    TaskDelete, TaskExecAdded, TaskExecStarted, TaskPaused, TaskResumed, TaskStart,
};
use containerd_shim_protos::topics::{
    TASK_DELETE_EVENT_TOPIC, TASK_EXEC_ADDED_EVENT_TOPIC, TASK_EXEC_STARTED_EVENT_TOPIC, TASK_PAUSED_EVENT_TOPIC,
    TASK_RESUMED_EVENT_TOPIC, TASK_START_EVENT_TOPIC,
};
use protocol::agent::{
    CloseStdinRequest, ContainerId as AgentContainerId, ExecRequest, ListProcessesResponse, ResizeTerminalRequest,
    SignalRequest, StatsResponse, UpdateRequest,
};
use ttrpc::Code;

use super::process::{Exit, Phase, Process, ProcessName};
use super::{Container, Sandbox};
use crate::agent_client::{AgentClient, AgentError};
use crate::error::{Error, chain};
use crate::events::timestamp;
use crate::hooks::HookPoint;
use crate::id::ContainerId;
use crate::streams::{Prepared, StdioPaths, Streams};

/// SIGKILL on Linux (signal(7)).
const SIGKILL: u32 = 9;

/// For a process that was never started to die of SIGKILL.
const KILL: Duration = Duration::from_secs(10);

/// Status of an exec whose program could not be started: as a shell has it.
const NOT_STARTED: u32 = 127;

fn agent_container(id: &ContainerId) -> AgentContainerId {
    AgentContainerId {
        container_id: id.to_string(),
        ..Default::default()
    }
}

fn failed(operation: &'static str, subject: &ProcessName) -> impl FnOnce(AgentError) -> Error {
    let subject = subject.to_string();
    move |source| Error::Agent {
        operation,
        subject,
        source,
    }
}

impl Sandbox {
    /// Starts a container's first process or an exec. The answer is the pid that stands for it.
    ///
    /// # Errors
    /// It is not there, was started before, or its program cannot be executed.
    pub async fn start_process(self: &Arc<Self>, name: &ProcessName) -> Result<u32, Error> {
        let (container, process) = self.process(name)?;
        let sandbox = Arc::clone(self);
        // A task of its own: whoever asked may go away, and a process must not stay half started.
        let work = tokio::spawn(async move {
            if process.name.exec.is_some() {
                sandbox.start_exec(&container, &process).await
            } else {
                let _changes = container.changes.lock().await;
                sandbox.start_init(&container, &process).await
            }
        });
        work.await.unwrap_or_else(|_| {
            Err(Error::Interrupted {
                subject: name.to_string(),
            })
        })
    }

    async fn start_init(&self, container: &Container, process: &Process) -> Result<u32, Error> {
        let agent = self.agent("start", &process.name.to_string())?;
        process.begin_start()?;
        let started = agent.start_container(&agent_container(&container.id)).await;
        if let Err(source) = started {
            process.set_phase(Phase::Created);
            process.drop_streams();
            return Err(failed("start", &process.name)(source));
        }
        self.apply_size(&agent, process).await;
        let pid = self.pid();
        let event = TaskStart {
            container_id: container.id.to_string(),
            pid,
            ..Default::default()
        };
        self.events.publish(TASK_START_EVENT_TOPIC, &event);
        process.set_phase(Phase::Running);
        if let Some(hooks) = &container.hooks {
            // OCI runtime spec, lifecycle: a poststart hook that fails is logged and the container goes on.
            if let Err(error) = self.host.run_hooks(hooks, HookPoint::Poststart, pid).await {
                tracing::warn!(container = %container.id, error = chain(&error), "a poststart hook failed");
            }
        }
        Ok(pid)
    }

    async fn start_exec(&self, container: &Container, process: &Arc<Process>) -> Result<u32, Error> {
        let agent = self.agent("start", &process.name.to_string())?;
        match container.init.phase() {
            Phase::Running if !container.paused.load(Ordering::Acquire) => {}
            Phase::Running => {
                return Err(Error::State {
                    operation: "start",
                    subject: process.name.to_string(),
                    state: "in a paused container",
                });
            }
            phase => return Err(container.init.not_allowed("start an exec in", phase)),
        }
        process.begin_start()?;
        let started = self.run_exec(&agent, process).await;
        if let Err(error) = started {
            process.claim_exit();
            process.drop_streams();
            process.set_phase(Phase::Stopped(Exit {
                status: NOT_STARTED,
                at: std::time::SystemTime::now(),
            }));
            return Err(error);
        }
        let pid = self.pid();
        let event = TaskExecStarted {
            container_id: container.id.to_string(),
            exec_id: process.name.exec_id().to_owned(),
            pid,
            ..Default::default()
        };
        self.events.publish(TASK_EXEC_STARTED_EVENT_TOPIC, &event);
        process.set_phase(Phase::Running);
        Ok(pid)
    }

    async fn run_exec(&self, agent: &AgentClient, process: &Arc<Process>) -> Result<(), Error> {
        let name = &process.name;
        let stream_error = |source| Error::Stream {
            subject: name.to_string(),
            source,
        };
        let opened = Prepared::open(
            &process.stdio,
            &self.expected,
            name.container.as_str(),
            self.namespace.as_str(),
        );
        let prepared = opened.await.map_err(stream_error)?;
        let call = ExecRequest {
            container_id: name.container.to_string(),
            exec_id: name.exec_id().to_owned(),
            process: process.spec.clone(),
            stdio: Some(prepared.stdio()).into(),
            ..Default::default()
        };
        agent.exec(&call).await.map_err(failed("start", name))?;
        let streams = Arc::new(prepared.connect().await.map_err(stream_error)?);
        self.watch_stdin(process, &streams, agent);
        process.set_streams(streams);
        self.apply_size(agent, process).await;
        Ok(())
    }

    async fn apply_size(&self, agent: &AgentClient, process: &Process) {
        if let Some((columns, rows)) = process.remembered_size() {
            let request = ResizeTerminalRequest {
                process: Some(process.name.to_agent()).into(),
                columns,
                rows,
                ..Default::default()
            };
            // A terminal of the wrong size is no reason to fail a start.
            if let Err(error) = agent.resize_terminal(&request).await {
                tracing::debug!(process = %process.name, %error, "the terminal keeps its size");
            }
        }
    }

    /// Tells the agent how long stdin was, once it has ended. A terminal's end is the program's own affair.
    pub(super) fn watch_stdin(&self, process: &Process, streams: &Arc<Streams>, agent: &AgentClient) {
        let Some(length) = streams.stdin_length() else {
            return;
        };
        if process.stdio.terminal {
            return;
        }
        let (name, agent) = (process.name.clone(), agent.clone());
        tokio::spawn(async move {
            // No length: the process ended first.
            if let Ok(length) = length.await {
                let request = CloseStdinRequest {
                    process: Some(name.to_agent()).into(),
                    length,
                    ..Default::default()
                };
                if let Err(error) = agent.close_stdin(&request).await {
                    tracing::debug!(process = %name, %error, "stdin's end did not arrive");
                }
            }
        });
    }

    /// Adds an exec; [`Sandbox::start_process`] runs it.
    ///
    /// # Errors
    /// There is no such container, it has stopped, or the id is taken.
    pub fn add_exec(&self, name: &ProcessName, stdio: StdioPaths, spec: Vec<u8>) -> Result<(), Error> {
        let container = self.container(&name.container)?;
        let Some(exec) = name.exec.clone() else {
            return Err(Error::Exists {
                subject: name.to_string(),
            });
        };
        if let phase @ Phase::Stopped(_) = container.init.phase() {
            return Err(container.init.not_allowed("add an exec to", phase));
        }
        {
            let mut execs = container.execs();
            if execs.contains_key(&exec) {
                return Err(Error::Exists {
                    subject: name.to_string(),
                });
            }
            execs.insert(exec, Arc::new(Process::new(name.clone(), stdio, spec)));
        }
        let event = TaskExecAdded {
            container_id: name.container.to_string(),
            exec_id: name.exec_id().to_owned(),
            ..Default::default()
        };
        self.events.publish(TASK_EXEC_ADDED_EVENT_TOPIC, &event);
        Ok(())
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// There is no such process, it was never started, or it has ended.
    pub async fn kill(&self, name: &ProcessName, signal: u32, all: bool) -> Result<(), Error> {
        let (_, process) = self.process(name)?;
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
        match agent.signal(&signal_request(name, signal, all)).await {
            Ok(_) => Ok(()),
            // Its exit is on the way here.
            Err(AgentError::Refused {
                code: Code::NOT_FOUND, ..
            }) => Err(finished()),
            Err(source) => Err(failed("signal", name)(source)),
        }
    }

    /// Forgets a process that does not run. The answer is its pid and its exit.
    ///
    /// # Errors
    /// There is no such process, it runs, or what it held cannot be freed.
    pub async fn delete(self: &Arc<Self>, name: &ProcessName) -> Result<(u32, Exit), Error> {
        let (container, process) = self.process(name)?;
        let sandbox = Arc::clone(self);
        let work = tokio::spawn(async move {
            let _changes = container.changes.lock().await;
            match process.phase() {
                Phase::Created | Phase::Stopped(_) => {}
                phase => return Err(process.not_allowed("delete", phase)),
            }
            if process.name.exec.is_some() {
                sandbox.delete_exec(&container, &process).await
            } else {
                sandbox.delete_container(&container).await
            }
        });
        work.await.unwrap_or_else(|_| {
            Err(Error::Interrupted {
                subject: name.to_string(),
            })
        })
    }

    async fn delete_exec(&self, container: &Container, process: &Process) -> Result<(u32, Exit), Error> {
        let exit = match process.phase() {
            Phase::Stopped(exit) => exit,
            // Never started: the guest does not know it.
            _ => Exit {
                status: 0,
                at: std::time::SystemTime::now(),
            },
        };
        self.forget_in_guest(process).await?;
        if let Some(exec) = &process.name.exec {
            container.execs().remove(exec);
        }
        Ok((self.pid(), exit))
    }

    async fn delete_container(self: &Arc<Self>, container: &Container) -> Result<(u32, Exit), Error> {
        let process = &container.init;
        if process.phase() == Phase::Created
            && let Ok(agent) = self.agent("delete", "the container")
        {
            // It waits at its gate for a start that will not come.
            if let Err(error) = agent.signal(&signal_request(&process.name, SIGKILL, true)).await {
                tracing::debug!(container = %container.id, %error, "there is nothing to kill");
            }
            // Its exit is reported as any other; if it is not, the deletion in the guest says why.
            let _ = tokio::time::timeout(KILL, process.stopped()).await;
        }
        self.forget_in_guest(process).await?;
        process.drop_streams();
        self.host.detach(&container.id).await.map_err(|source| Error::Host {
            operation: "unmount the files of",
            subject: process.name.to_string(),
            source,
        })?;
        let pid = self.pid();
        let exit = match process.phase() {
            Phase::Stopped(exit) => exit,
            _ => {
                let exit = Exit {
                    status: 128 + SIGKILL,
                    at: std::time::SystemTime::now(),
                };
                // Wakes who waits.
                process.set_phase(Phase::Stopped(exit));
                exit
            }
        };
        if let Some(hooks) = &container.hooks {
            // As for poststart.
            if let Err(error) = self.host.run_hooks(hooks, HookPoint::Poststop, 0).await {
                tracing::warn!(container = %container.id, error = chain(&error), "a poststop hook failed");
            }
        }
        self.slots().remove(&container.id);
        let event = TaskDelete {
            container_id: container.id.to_string(),
            pid,
            exit_status: exit.status,
            exited_at: Some(timestamp(exit.at)).into(),
            ..Default::default()
        };
        self.events.publish(TASK_DELETE_EVENT_TOPIC, &event);
        Ok((pid, exit))
    }

    async fn forget_in_guest(&self, process: &Process) -> Result<(), Error> {
        // Without a VM there is nothing to forget.
        let Ok(agent) = self.agent("delete", "the process") else {
            return Ok(());
        };
        match agent.delete(&process.name.to_agent()).await {
            Ok(_)
            | Err(AgentError::Refused {
                code: Code::NOT_FOUND, ..
            }) => Ok(()),
            // The VM has just ended: the same.
            Err(AgentError::Broken(_)) => Ok(()),
            Err(source) => Err(failed("delete", &process.name)(source)),
        }
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
    fn living(&self, id: &ContainerId, operation: &'static str) -> Result<(AgentClient, ProcessName), Error> {
        let container = self.container(id)?;
        let name = container.init.name.clone();
        if matches!(container.init.phase(), Phase::Stopped(_)) {
            return Err(Error::Finished {
                subject: name.to_string(),
            });
        }
        Ok((self.agent(operation, &name.to_string())?, name))
    }

    /// A container's processes.
    ///
    /// # Errors
    /// It does not exist or has ended.
    pub async fn processes(&self, id: &ContainerId) -> Result<ListProcessesResponse, Error> {
        let operation = "list the processes of";
        let (agent, name) = self.living(id, operation)?;
        let listed = agent.list_processes(&agent_container(id)).await;
        listed.map_err(failed(operation, &name))
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

    /// Changes a container's limits: OCI `linux.resources` as JSON.
    ///
    /// # Errors
    /// It does not exist, has ended, or the guest refuses.
    pub async fn update(&self, id: &ContainerId, resources: Vec<u8>) -> Result<(), Error> {
        let (agent, name) = self.living(id, "update")?;
        let request = UpdateRequest {
            container_id: id.to_string(),
            resources,
            ..Default::default()
        };
        agent.update(&request).await.map(drop).map_err(failed("update", &name))
    }
}

fn signal_request(name: &ProcessName, signal: u32, all: bool) -> SignalRequest {
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
