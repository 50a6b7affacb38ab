//! Create: mounts while the VM boots, hooks, the agent. What was done is undone if it cannot be finished.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::SystemTime;

use containerd_shim_protos::events::task::{TaskCreate, TaskIO};
use containerd_shim_protos::topics::TASK_CREATE_EVENT_TOPIC;
use protocol::agent::CreateContainerRequest;
use tokio::sync::oneshot;

use super::host::GuestContainer;
use super::process::{Exit, Phase, Process, ProcessName};
use super::{Container, Mount, Sandbox, Slot};
use crate::error::{Error, chain};
use crate::hooks::HookPoint;
use crate::id::ContainerId;
use crate::streams::{Prepared, StdioPaths};

/// What is to be created.
#[derive(Debug, Clone)]
pub struct CreateRequest {
    /// The container.
    pub id: ContainerId,
    /// Its bundle on the host.
    pub bundle: PathBuf,
    /// How its rootfs is mounted; empty if the bundle has it.
    pub rootfs: Vec<Mount>,
    /// Its streams.
    pub stdio: StdioPaths,
}

/// How far a creation has come, for its unwinding.
#[derive(Default)]
struct Progress {
    attaching: bool,
    asked_agent: bool,
}

impl Sandbox {
    /// Creates a container. Dropping the future interrupts it: what was done is undone all the same. The answer is
    /// the pid that stands for it.
    ///
    /// # Errors
    /// It cannot be created. Nothing of it is left then, and the id is free.
    pub async fn create(self: &Arc<Self>, request: CreateRequest) -> Result<u32, Error> {
        let name = ProcessName {
            container: request.id.clone(),
            exec: None,
        };
        let init = Arc::new(Process::new(name, request.stdio.clone(), Vec::new()));
        {
            let mut slots = self.slots();
            if slots.contains_key(&request.id) {
                return Err(Error::Exists {
                    subject: format!("container {}", request.id),
                });
            }
            slots.insert(request.id.clone(), Slot::Creating(Arc::clone(&init)));
        }
        // Dropped with this future; the work is a task of its own, so that its unwinding is not cut short.
        let (_alive, interrupted) = oneshot::channel::<()>();
        let subject = format!("container {}", request.id);
        let work = tokio::spawn(Arc::clone(self).create_or_unwind(request, init, interrupted));
        work.await.unwrap_or(Err(Error::Interrupted { subject }))
    }

    async fn create_or_unwind(
        self: Arc<Self>,
        request: CreateRequest,
        init: Arc<Process>,
        interrupted: oneshot::Receiver<()>,
    ) -> Result<u32, Error> {
        let mut progress = Progress::default();
        let created = tokio::select! {
            created = self.steps(&request, &init, &mut progress) => created,
            _ = interrupted => Err(Error::Interrupted { subject: init.name.to_string() }),
        };
        let error = match created {
            Ok(pid) => return Ok(pid),
            Err(error) => error,
        };
        tracing::warn!(container = %request.id, error = error.message(), "a container could not be created");
        init.set_phase(Phase::Stopped(Exit {
            status: 255,
            at: SystemTime::now(),
        }));
        init.drop_streams();
        if progress.asked_agent
            && let Ok(agent) = self.agent("delete", "the container")
        {
            // It may not have come into being at all.
            if let Err(error) = agent.delete(&init.name.to_agent()).await {
                tracing::debug!(%error, "the guest has nothing to undo");
            }
        }
        if progress.attaching
            && let Err(error) = self.host.detach(&request.id).await
        {
            tracing::warn!(container = %request.id, error = chain(&error), "its mounts cannot be removed");
        }
        self.slots().remove(&request.id);
        Err(error)
    }

    async fn steps(
        self: &Arc<Self>,
        request: &CreateRequest,
        init: &Arc<Process>,
        progress: &mut Progress,
    ) -> Result<u32, Error> {
        let subject = || init.name.to_string();
        progress.attaching = true;
        let attach = async {
            let attached = self.host.attach(&request.id, &request.bundle, &request.rootfs).await;
            attached.map_err(|source| Error::Host {
                operation: "create",
                subject: subject(),
                source,
            })
        };
        // The mounts' failure is known first, and it is no use to wait for the VM then.
        let (guest, agent) = tokio::try_join!(attach, self.ready())?;
        if let Some(hooks) = &guest.hooks {
            let run = self.host.run_hooks(hooks, HookPoint::Create, self.pid()).await;
            run.map_err(|source| Error::Host {
                operation: "run the hooks of",
                subject: subject(),
                source,
            })?;
        }
        let stream_error = |source| Error::Stream {
            subject: subject(),
            source,
        };
        let opened = Prepared::open(
            &request.stdio,
            &self.expected,
            request.id.as_str(),
            self.namespace.as_str(),
        );
        let prepared = opened.await.map_err(stream_error)?;
        let GuestContainer {
            spec,
            join_namespaces,
            hooks,
        } = guest;
        let call = CreateContainerRequest {
            container_id: request.id.to_string(),
            spec,
            stdio: Some(prepared.stdio()).into(),
            join_namespaces,
            ..Default::default()
        };
        progress.asked_agent = true;
        let started = agent.create_container(&call).await;
        started.map_err(|source| Error::Agent {
            operation: "create",
            subject: subject(),
            source,
        })?;
        let streams = Arc::new(prepared.connect().await.map_err(stream_error)?);
        self.watch_stdin(init, &streams, &agent);
        init.set_streams(streams);
        let container = Container {
            id: request.id.clone(),
            bundle: request.bundle.clone(),
            init: Arc::clone(init),
            execs: std::sync::Mutex::default(),
            hooks,
            changes: tokio::sync::Mutex::default(),
            paused: AtomicBool::new(false),
        };
        let pid = self.pid();
        {
            let mut slots = self.slots();
            // The VM's end is recorded before the map is walked: either we see it here, or the walk sees the container.
            self.agent("create", &subject())?;
            self.publish_created(request, pid);
            slots.insert(request.id.clone(), Slot::Ready(Arc::new(container)));
        }
        init.set_phase(Phase::Created);
        Ok(pid)
    }

    fn publish_created(&self, request: &CreateRequest, pid: u32) {
        let io = TaskIO {
            stdin: request.stdio.stdin.clone(),
            stdout: request.stdio.stdout.clone(),
            stderr: request.stdio.stderr.clone(),
            terminal: request.stdio.terminal,
            ..Default::default()
        };
        let event = TaskCreate {
            container_id: request.id.to_string(),
            bundle: request.bundle.display().to_string(),
            rootfs: request.rootfs.clone(),
            io: Some(io).into(),
            pid,
            ..Default::default()
        };
        self.events.publish(TASK_CREATE_EVENT_TOPIC, &event);
    }
}
