//! The steps of a start: of a container's first process and of execs, and their terminal sizes.

use std::sync::Arc;

use guest::streams::StdioPaths;
use lifecycle::{Answer, Request};
use node::guest_spec::{self, Inherited};
use node::hooks::HookPoint;
use protocol::agent::ExecRequest;

use crate::sandbox::Sandbox;
use crate::sandbox::driver::message::Payload;
use crate::sandbox::error::{Error, Shared};
use crate::sandbox::host::HostError;
use crate::sandbox::records::container::Container;
use crate::sandbox::records::process::{Process, ProcessName};
use crate::sandbox::verbs::{agent_container, failed};

impl Sandbox {
    /// Starts a container's first process or an exec. The answer is the pid that stands for it.
    ///
    /// # Errors
    /// It is not there, was started before, or its program cannot be executed.
    pub async fn start_process(&self, name: &ProcessName) -> Result<u32, Shared> {
        let (container, _) = self.process(name)?;
        match self.ask(Request::Start(name.clone()), Payload::Nothing).await {
            Answer::Done => {
                self.first_start
                    .send_if_modified(|started| !std::mem::replace(started, true));
                Ok(self.pid_of(&container))
            }
            refused => Err(self.refused(refused)),
        }
    }

    /// Waits until a process of a container has been started.
    pub async fn first_started(&self) {
        // The sender is in self: it cannot be gone.
        let _ = self.first_start.subscribe().wait_for(|started| *started).await;
    }

    /// Whoever asked for the container may have put a network into its new namespace since the create, as `ctr run --cni` does.
    pub(in crate::sandbox) async fn follow_network_for(&self, process: &Process) -> Result<(), Error> {
        let subject = process.name.to_string();
        let agent = self.agent("start", &subject)?;
        self.update_network(&agent, &subject).await
    }

    /// Has the guest start a container's first process.
    pub(in crate::sandbox) async fn start_in_guest(&self, process: &Process) -> Result<(), Error> {
        let name = &process.name;
        let agent = self.agent("start", &name.to_string())?;
        let started = agent.start_container(&agent_container(&name.container)).await;
        started.map_err(failed("start", name))?;
        process.hold_stdin();
        self.start_with_size(process).await;
        Ok(())
    }

    /// Runs the hooks that follow a start. OCI runtime spec 1.3, lifecycle, and runc since 1.2: one that fails stops the container and is
    /// the start's error.
    pub(in crate::sandbox) async fn run_start_hooks(&self, container: &Container) -> Result<(), Error> {
        let Some(hooks) = container.hooks() else { return Ok(()) };
        let pid = self.pid_of(container);
        let run = self.host.run_hooks(hooks, HookPoint::Poststart, pid).await;
        run.map_err(|source| Error::Host {
            operation: "run the poststart hooks of",
            subject: container.subject(),
            source,
        })
    }

    pub(in crate::sandbox) async fn open_streams(&self, process: &Process) -> Result<(), Error> {
        let stdio = self.prepare_streams(process).await?;
        process.set_stdio(stdio);
        Ok(())
    }

    pub(in crate::sandbox) async fn exec_in_guest(&self, process: &Process) -> Result<(), Error> {
        let name = &process.name;
        let agent = self.agent("start", &name.to_string())?;
        let call = ExecRequest {
            container_id: name.container.to_string(),
            exec_id: name.exec_id().to_owned(),
            process: process.spec.clone(),
            stdio: Some(process.take_stdio()).into(),
            ..Default::default()
        };
        agent.exec(&call).await.map(drop).map_err(failed("start", name))
    }

    pub(in crate::sandbox) async fn connect_exec(&self, process: &Arc<Process>) -> Result<(), Error> {
        let agent = self.agent("start", &process.name.to_string())?;
        self.connect_streams(process, &agent).await?;
        process.hold_stdin();
        self.start_with_size(process).await;
        Ok(())
    }

    /// For a start, which a terminal of the wrong size is no reason to fail.
    pub(in crate::sandbox) async fn start_with_size(&self, process: &Process) {
        if let Err(error) = self.apply_size(process).await {
            tracing::debug!(process = %process.name, %error, "the terminal keeps its size");
        }
    }

    /// Adds an exec, whose `process` object is given as JSON; [`Sandbox::start_process`] runs it.
    ///
    /// # Errors
    /// There is no such container, it has stopped, the id is taken, or it may not have what it asks for.
    pub async fn add_exec(&self, name: &ProcessName, stdio: StdioPaths, spec: &[u8]) -> Result<(), Shared> {
        let container = self.container(&name.container)?;
        let policy = container.memlock.get().cloned().unwrap_or_default();
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::Host {
            operation: "add",
            subject: name.to_string(),
            source: HostError::Spec(source),
        };
        let spec = guest_spec::read_exec(spec, container.inherited.get_or_init(Inherited::default));
        let (spec, left_out) = spec.map_err(|error| failed(Box::new(error)))?;
        let applied = policy.apply_to_exec(&spec);
        let (spec, notes) = applied.map_err(|error| failed(Box::new(error)))?;
        for note in left_out.iter().chain(&notes) {
            tracing::warn!(process = %name, note);
        }
        let process = Arc::new(Process::new(name.clone(), stdio, spec));
        match self.ask(Request::AddExec(name.clone()), Payload::Exec(process)).await {
            Answer::Done => Ok(()),
            refused => Err(self.refused(refused)),
        }
    }
}
