//! Starts: of a container's first process and of execs, with their streams and their terminals' sizes.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use containerd_shim_protos::events::task::{TaskExecAdded, TaskExecStarted, TaskStart};
use containerd_shim_protos::topics::{
    TASK_EXEC_ADDED_EVENT_TOPIC, TASK_EXEC_STARTED_EVENT_TOPIC, TASK_START_EVENT_TOPIC,
};
use protocol::agent::{CloseStdinRequest, ExecRequest, ResizeTerminalRequest};

use super::host::HostError;
use super::process::{Exit, Phase, Process, ProcessName};
use super::verbs::{agent_container, failed};
use super::{Container, Sandbox};
use crate::agent_client::AgentClient;
use crate::error::Error;
use crate::guest_spec;
use crate::hooks::HookPoint;
use crate::streams::{Prepared, StdioPaths, Streams};

/// Status of an exec whose program could not be started: as a shell has it.
const NOT_STARTED: u32 = 127;

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
        // Whoever asked for the container may have put a network into its new namespace since the create, as `ctr run --cni` does.
        self.update_network(&agent, &process.name.to_string()).await?;
        process.begin_start()?;
        let started = agent.start_container(&agent_container(&container.id)).await;
        if let Err(source) = started {
            process.set_phase(Phase::Created);
            process.drop_streams();
            return Err(failed("start", &process.name)(source));
        }
        self.apply_size(&agent, process).await;
        let pid = self.pid_of(container);
        let event = TaskStart {
            container_id: container.id.to_string(),
            pid,
            ..Default::default()
        };
        process.set_phase_telling(Phase::Running, || self.events.publish(TASK_START_EVENT_TOPIC, &event));
        if let Some(hooks) = &container.hooks {
            // OCI runtime spec 1.3, lifecycle, and runc since 1.2: one that fails stops the container and is the start's error.
            if let Err(source) = self.host.run_hooks(hooks, HookPoint::Poststart, pid).await {
                if let Err(error) = self.kill_surely(&agent, &process.name, true).await {
                    tracing::debug!(container = %container.id, %error, "there is nothing to kill");
                }
                return Err(Error::Host {
                    operation: "run the poststart hooks of",
                    subject: process.name.to_string(),
                    source,
                });
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
        let pid = self.pid_of(container);
        let event = TaskExecStarted {
            container_id: container.id.to_string(),
            exec_id: process.name.exec_id().to_owned(),
            pid,
            ..Default::default()
        };
        process.set_phase_telling(Phase::Running, || {
            self.events.publish(TASK_EXEC_STARTED_EVENT_TOPIC, &event)
        });
        Ok(pid)
    }

    async fn run_exec(&self, agent: &AgentClient, process: &Arc<Process>) -> Result<(), Error> {
        let name = &process.name;
        let prepared = self.open_streams(process).await?;
        let call = ExecRequest {
            container_id: name.container.to_string(),
            exec_id: name.exec_id().to_owned(),
            process: process.spec.clone(),
            stdio: Some(prepared.stdio()).into(),
            ..Default::default()
        };
        agent.exec(&call).await.map_err(failed("start", name))?;
        self.connect_streams(process, prepared, agent).await?;
        self.apply_size(agent, process).await;
        Ok(())
    }

    /// Opens the host's end of a process's streams, for the guest to dial.
    pub(super) async fn open_streams(&self, process: &Process) -> Result<Prepared, Error> {
        let container = process.name.container.as_str();
        let opened = Prepared::open(&process.stdio, &self.expected, container, self.namespace.as_str());
        opened.await.map_err(|source| Error::Stream {
            subject: process.name.to_string(),
            source,
        })
    }

    /// Connects them with what the guest has dialled.
    pub(super) async fn connect_streams(
        &self,
        process: &Arc<Process>,
        prepared: Prepared,
        agent: &AgentClient,
    ) -> Result<(), Error> {
        let connected = prepared.connect().await.map_err(|source| Error::Stream {
            subject: process.name.to_string(),
            source,
        })?;
        let streams = Arc::new(connected);
        self.watch_stdin(process, &streams, agent);
        process.set_streams(streams);
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
    fn watch_stdin(&self, process: &Process, streams: &Arc<Streams>, agent: &AgentClient) {
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

    /// Adds an exec, whose `process` object is given as JSON; [`Sandbox::start_process`] runs it.
    ///
    /// # Errors
    /// There is no such container, it has stopped, the id is taken, or it may not have what it asks for.
    pub fn add_exec(&self, name: &ProcessName, stdio: StdioPaths, spec: &[u8]) -> Result<(), Error> {
        let container = self.container(&name.container)?;
        let Some(exec) = name.exec.clone() else {
            return Err(Error::Exists {
                subject: name.to_string(),
            });
        };
        if let phase @ Phase::Stopped(_) = container.init.phase() {
            return Err(container.init.not_allowed("add an exec to", phase));
        }
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::Host {
            operation: "add",
            subject: name.to_string(),
            source: HostError::Spec(source),
        };
        let (spec, left_out) = guest_spec::read_exec(spec).map_err(|error| failed(Box::new(error)))?;
        let applied = container.memlock.apply_to_exec(&spec);
        let (spec, notes) = applied.map_err(|error| failed(Box::new(error)))?;
        for note in left_out.iter().chain(&notes) {
            tracing::warn!(process = %name, note);
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
}
