//! Create: mounts while the VM boots, hooks, the agent. What was done is undone if it cannot be finished.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::SystemTime;

use containerd_shim_protos::events::task::{TaskCreate, TaskIO};
use containerd_shim_protos::topics::TASK_CREATE_EVENT_TOPIC;
use protocol::agent::{BlockDevice, CreateContainerRequest, Storage};
use tokio::sync::oneshot;

use super::host::{GuestContainer, HostError};
use super::process::{Exit, Phase, Process, ProcessName};
use super::stand_in::{StandIn, pid_in};
use super::{Container, DiskError, Mount, Sandbox, Slot};
use crate::error::{Error, chain};
use crate::hooks::HookPoint;
use crate::id::ContainerId;
use crate::streams::StdioPaths;
use crate::volumes::Volumes;

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
        let subject = init.name.to_string();
        let created = tokio::select! {
            // A VM that does not come up is told of by who waits for it.
            biased;
            created = self.steps(&request, &init, &mut progress) => created,
            _ = interrupted => Err(Error::Interrupted { subject }),
            // Whatever a step waits for, a file server that does not answer for one, there is nothing to create any more.
            _ = self.ended() => Err(self.agent("create", &subject).err().unwrap_or(Error::Interrupted { subject })),
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
        self.sizes.forget(&request.id);
        self.settle();
        self.release_disks(&request.id).await;
        if progress.attaching
            && let Err(error) = self.host.detach(&request.id).await
        {
            tracing::warn!(container = %request.id, error = chain(&error), "its mounts cannot be removed");
        }
        if let Err(error) = self.host.run_poststop_hooks(&request.id).await {
            tracing::warn!(container = %request.id, error = chain(&error), "a poststop hook failed");
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
            // They may have put a network into the VM's namespace, as Docker's do.
            self.update_network(&agent, &subject()).await?;
        }
        let prepared = self.open_streams(init).await?;
        let GuestContainer {
            spec,
            mut join_namespaces,
            pid_namespace,
            hooks,
            memlock,
            volumes,
            limits,
        } = guest;
        if let Some(owner) = pid_namespace.map(|path| self.owner_of(&path, &subject())).transpose()? {
            join_namespaces.insert("pid".to_owned(), owner.to_string());
        }
        let (disks, size) = (
            self.plug_in(&request.id, volumes),
            self.grow(&agent, &request.id, limits),
        );
        let ((storages, devices), ()) = tokio::try_join!(disks, size)?;
        let call = CreateContainerRequest {
            container_id: request.id.to_string(),
            spec,
            stdio: Some(prepared.stdio()).into(),
            join_namespaces,
            storages,
            devices,
            ..Default::default()
        };
        progress.asked_agent = true;
        let started = agent.create_container(&call).await;
        started.map_err(|source| Error::Agent {
            operation: "create",
            subject: subject(),
            source,
        })?;
        self.connect_streams(init, prepared, &agent).await?;
        let stand_in = if request.id.as_str() == self.id.as_str() {
            None
        } else {
            let made = StandIn::new(self.pid()).await;
            Some(made.map_err(|source| Error::Host {
                operation: "make a pid for",
                subject: subject(),
                source: HostError::Other(Box::new(source)),
            })?)
        };
        let container = Container {
            id: request.id.clone(),
            bundle: request.bundle.clone(),
            init: Arc::clone(init),
            execs: std::sync::Mutex::default(),
            hooks,
            memlock,
            changes: tokio::sync::Mutex::default(),
            paused: AtomicBool::new(false),
            doomed: AtomicBool::new(false),
            undeletable: AtomicBool::new(false),
            stand_in,
        };
        let pid = self.pid_of(&container);
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

    /// The container whose PID namespace a path of the host stands for: another one of the pod, by its pid, or the
    /// sandbox's own.
    fn owner_of(&self, path: &Path, subject: &str) -> Result<ContainerId, Error> {
        let pid = match pid_in(path) {
            Some(pid) if pid != self.pid() => pid,
            Some(_) | None => return Ok(ContainerId::new(self.id.as_str())?),
        };
        let slots = self.slots();
        let owner = slots.values().find_map(|slot| match slot {
            Slot::Ready(container) if self.pid_of(container) == pid => Some(container.id.clone()),
            Slot::Ready(_) | Slot::Creating(_) => None,
        });
        owner.ok_or_else(|| Error::Invalid {
            what: "the PID namespace",
            subject: subject.to_owned(),
            reason: format!("{} is no container's of this sandbox", path.display()),
        })
    }

    /// Plugs in what a container needs, and tells the guest by which numbers it finds it.
    async fn plug_in(
        &self,
        container: &ContainerId,
        volumes: Volumes,
    ) -> Result<(Vec<Storage>, Vec<BlockDevice>), Error> {
        let failed = |source| Error::Disk {
            operation: "create",
            subject: format!("container {container}"),
            source: Box::new(source),
        };
        let mut serials = Vec::new();
        for disk in volumes.disks {
            let machine = self.machine().ok_or_else(|| failed(DiskError::Interrupted))?;
            serials.push(self.disks.attach(machine, container, disk).await.map_err(failed)?);
        }
        self.use_volumes(volumes.direct);
        let serial = |index: usize| serials.get(index).cloned().unwrap_or_default();
        let storages = volumes.storages.into_iter().map(|(mut storage, disk)| {
            storage.serial = disk.map(serial).unwrap_or_default();
            storage
        });
        let devices = volumes.devices.into_iter().map(|(mut device, disk)| {
            device.serial = serial(disk);
            device
        });
        Ok((storages.collect(), devices.collect()))
    }

    /// Unplugs what a container leaves. A guest that holds on to a disk does not hold up the deletion: the disk is freed by
    /// the VM's end.
    pub(super) async fn release_disks(&self, container: &ContainerId) {
        let machine = self.machine().filter(|_| self.is_ready());
        for (serial, error) in self.disks.release(machine, container).await {
            tracing::error!(%container, serial, error = chain(&error), "a disk stays in the VM until its end");
        }
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
