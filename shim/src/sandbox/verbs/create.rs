//! The steps of Create: mounts while the guest boots, hooks, disks and memory, the guest, the streams (of execs, too). The state machine
//! decides the next step, and what is undone if one fails.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use base::chain;
use guest::agent_client::AgentClient;
use guest::streams::{Prepared, StreamError, Streams};
use node::bundle;
use node::hooks::HookPoint;
use node::volumes::{DirectVolume, Volumes, record};
use oci_spec::runtime::{LinuxDevice, Spec};
use protocol::agent::{BlockDevice, CloseStdinRequest, CreateContainerRequest, Stdio, Storage};
use rustix::process::Signal;

use crate::id::ContainerId;
use crate::sandbox::Sandbox;
use crate::sandbox::driver::fault::is_answer;
use crate::sandbox::error::Error;
use crate::sandbox::host::disks::DiskError;
use crate::sandbox::host::{GuestContainer, HostError};
use crate::sandbox::records::container::Container;
use crate::sandbox::records::process::Process;
use crate::sandbox::records::stand_in::StandIn;

impl Sandbox {
    /// Reads the bundle, and mounts the rootfs and the binds.
    pub(in crate::sandbox) async fn attach(self: &Arc<Self>, container: &Container) -> Result<(), Error> {
        self.renew_stand_in(container).map_err(|error| Error::Host {
            operation: "create",
            subject: container.subject(),
            source: HostError::Other(Box::new(error)),
        })?;
        self.mounts_are_served().await?;
        let attached = self
            .host
            .attach(&container.id, &container.bundle, &container.rootfs)
            .await;
        let guest = attached.map_err(|source| Error::Host {
            operation: "create",
            subject: container.subject(),
            source,
        })?;
        // Once: a container is attached once.
        let _ = container.hooks.set(guest.hooks.clone());
        let _ = container.memlock.set(guest.memlock.clone());
        let _ = container.inherited.set(guest.inherited.clone());
        let _ = container.resolv_conf.set(guest.resolv_conf.clone());
        container.making().guest = Some(guest);
        Ok(())
    }

    /// Makes another process for the sandbox's first container, if the one that stood for it was killed and the VM lives on for others.
    fn renew_stand_in(self: &Arc<Self>, container: &Container) -> io::Result<()> {
        if container.id.as_str() == self.id.as_str()
            && self.stand_in_killed.load(Ordering::SeqCst)
            && let Some(vm) = self.running_vm()
        {
            self.stand_for_the_sandbox(&vm)?;
            self.stand_in_killed.store(false, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Checks whose network the container is to have, and runs the hooks of the creation. They may put a network into the VM's namespace, as Docker's do.
    pub(in crate::sandbox) async fn run_create_hooks(&self, container: &Container) -> Result<(), Error> {
        let network_of = container
            .making()
            .guest
            .as_ref()
            .and_then(|guest| guest.network_of.clone());
        if let Some(path) = network_of {
            self.owner_of(bundle::NETWORK, &path, &container.subject())?;
        }
        let Some(hooks) = container.hooks() else { return Ok(()) };
        let failed = |source| Error::Host {
            operation: "run the hooks of",
            subject: container.subject(),
            source,
        };
        let run = self.host.run_hooks(hooks, HookPoint::Create, self.pid()).await;
        run.map_err(failed)?;
        let run = self.host.run_create_container_hooks(hooks, self.pid()).await;
        run.map_err(failed)?;
        let agent = self.agent("create", &container.subject())?;
        self.update_network(&agent, &container.subject()).await
    }

    /// Opens the streams, plugs the disks in, gives the VM what it lacks of memory and vCPUs, and serves Docker's names if it asks for them.
    pub(in crate::sandbox) async fn provision(self: &Arc<Self>, container: &Container) -> Result<(), Error> {
        let subject = container.subject();
        let agent = self.agent("create", &subject)?;
        let guest = container.making().guest.take();
        let guest = guest.ok_or_else(|| Error::Interrupted {
            subject: subject.clone(),
        })?;
        let stdio = self.prepare_streams(&container.init).await?;
        let GuestContainer {
            mut spec,
            join_namespaces,
            mut volumes,
            limits,
            covers,
            sockets,
            ..
        } = guest;
        let owner = |(kind, path): (String, PathBuf)| {
            let owner = self.owner_of(&kind, &path, &subject)?;
            Ok((kind, owner.to_string()))
        };
        let join_namespaces = join_namespaces.into_iter().map(owner).collect::<Result<_, Error>>()?;
        let device_names = std::mem::take(&mut volumes.device_names);
        let (disks, size) = (
            self.plug_in(&container.id, volumes),
            self.grow(&agent, &container.id, limits),
        );
        let ((storages, devices, gone), ()) = tokio::try_join!(disks, size)?;
        if !gone.is_empty() {
            let rest = without_devices(&spec, &gone);
            spec = rest.map_err(|error| Error::Host {
                operation: "create",
                subject: subject.clone(),
                source: HostError::Other(Box::new(error)),
            })?;
        }
        let call = CreateContainerRequest {
            container_id: container.id.to_string(),
            spec,
            stdio: Some(stdio).into(),
            join_namespaces,
            storages,
            devices,
            covers,
            sockets,
            bundle: container.bundle.display().to_string(),
            device_names,
            ..Default::default()
        };
        container.making().call = Some(Box::new(call));
        // Here, and not before the call to make it: a creation that is given up meanwhile is not sent to the guest.
        self.update_names(&agent).await;
        Ok(())
    }

    pub(in crate::sandbox) async fn create_in_guest(&self, container: &Container) -> Result<(), Error> {
        let agent = self.agent("create", &container.subject())?;
        let mut call = container.making().call.take().unwrap_or_default();
        // Now: another container may have been counted since this one was prepared.
        call.memory_grows_to_bytes = self.sizes.tell_growth();
        self.host.covers_sent(&container.id);
        let made = agent.create_container(&call).await;
        match &made {
            Ok(created) => self.host.covers_made(&container.id, &created.covered),
            Err(error) if is_answer(error) => self.host.covers_made(&container.id, &[]),
            // It may have made them.
            Err(_) => {}
        }
        made.map(drop).map_err(|source| Error::Agent {
            operation: "create",
            subject: container.subject(),
            source,
        })
    }

    /// Connects the streams, and makes the pid that stands for a container that is not the sandbox's first.
    pub(in crate::sandbox) async fn connect(self: &Arc<Self>, container: &Container) -> Result<(), Error> {
        let agent = self.agent("create", &container.subject())?;
        self.connect_streams(&container.init, &agent).await?;
        if container.id.as_str() != self.id.as_str() {
            self.stand_for(container).map_err(|source| Error::Host {
                operation: "make a pid for",
                subject: container.subject(),
                source: HostError::Other(Box::new(source)),
            })?;
        }
        Ok(())
    }

    /// Opens the host's end of a process's streams, for the guest to dial. The answer tells the guest how.
    pub(in crate::sandbox) async fn prepare_streams(&self, process: &Process) -> Result<Stdio, Error> {
        let container = process.name.container.as_str();
        let opened = Prepared::open(&process.stdio, &self.streams, container, self.namespace.as_str());
        let prepared = opened.await.map_err(|source| Error::Stream {
            subject: process.name.to_string(),
            source,
        })?;
        let stdio = prepared.stdio();
        process.set_prepared(prepared);
        Ok(stdio)
    }

    /// Connects what was prepared with what the guest has dialled.
    pub(in crate::sandbox) async fn connect_streams(
        &self,
        process: &Arc<Process>,
        agent: &AgentClient,
    ) -> Result<(), Error> {
        let failed = |source| Error::Stream {
            subject: process.name.to_string(),
            source,
        };
        let prepared = process.take_prepared().ok_or_else(|| failed(StreamError::NotDialled))?;
        let connected = prepared.connect(self.timeouts.streams()).await.map_err(failed)?;
        let streams = Arc::new(connected);
        self.watch_stdin(process, &streams, agent);
        process.set_streams(streams);
        Ok(())
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

    /// Makes the pid that stands for a container. Whoever kills it kills the container.
    fn stand_for(self: &Arc<Self>, container: &Container) -> io::Result<()> {
        let vm = self.running_vm();
        let cgroups = vm.as_ref().map_or_else(Vec::new, |vm| vm.cgroup_members());
        let network = vm.and_then(|vm| vm.network_namespace());
        let stand_in = StandIn::new(container.id.as_str(), self.vmm_pid(), network, &cgroups)?;
        let killed = stand_in.killed()?;
        let pid = stand_in.pid();
        // Once: a container is connected once.
        let _ = container.stand_in.set(stand_in);
        let (sandbox, init) = (Arc::downgrade(self), container.init.name.clone());
        tokio::spawn(async move {
            killed.await;
            let Some(sandbox) = sandbox.upgrade() else { return };
            // Another container may have the id by now: its pid is another one.
            if sandbox
                .container(&init.container)
                .is_ok_and(|now| sandbox.pid_of(&now) == pid)
            {
                tracing::warn!(container = %init.container, pid, "the process that stands for a container was killed: so is the container");
                if let Err(error) = sandbox.kill(&init, Signal::KILL.as_raw().unsigned_abs(), true).await {
                    tracing::debug!(container = %init.container, error = error.message(), "it was not to be killed");
                }
            }
        });
        Ok(())
    }

    /// The container whose namespace of a kind a path of the host stands for: another one of the sandbox, by its pid, or the
    /// sandbox's own.
    fn owner_of(&self, kind: &str, path: &Path, subject: &str) -> Result<ContainerId, Error> {
        let is_pod = self.sizes.is_pod();
        let made = self.created();
        let pid = match bundle::process_in(path, kind) {
            // Clients of pods name them by files, too.
            None if is_pod => return Ok(ContainerId::new(self.id.as_str())?),
            Some(pid) if is_pod && pid == self.pid() => return Ok(ContainerId::new(self.id.as_str())?),
            pid => pid,
        };
        let owner = made.iter().find(|container| pid == Some(self.pid_of(container)));
        let owner = owner.map(|container| container.id.clone());
        owner.ok_or_else(|| Error::Invalid {
            what: "a namespace",
            subject: subject.to_owned(),
            reason: format!("{kind}: {} is no container's of this sandbox", path.display()),
        })
    }

    /// Plugs in what a container needs, and tells the guest by which numbers it finds it. The third part of the answer is the devices that have gone meanwhile, which
    /// the container does without.
    async fn plug_in(
        &self,
        container: &ContainerId,
        mut volumes: Volumes,
    ) -> Result<(Vec<Storage>, Vec<BlockDevice>, Vec<BlockDevice>), Error> {
        let failed = |source| Error::Disk {
            operation: "create",
            subject: format!("container {container}"),
            source: Box::new(source),
        };
        let mut serials = Vec::new();
        for (index, disk) in std::mem::take(&mut volumes.disks).into_iter().enumerate() {
            let vm = self.running_vm().ok_or_else(|| failed(DiskError::Interrupted))?;
            serials.push(match self.disks.attach(vm, container, disk).await {
                Err(DiskError::Open(error)) if volumes.is_dispensable(index) => {
                    tracing::warn!(%container, error = chain(&error), "a device of the host is left out");
                    None
                }
                attached => Some(attached.map_err(failed)?),
            });
        }
        self.use_volumes(volumes.direct);
        let serial = |index: usize| serials.get(index).cloned().flatten().unwrap_or_default();
        let storages = volumes.storages.into_iter().map(|(mut storage, disks)| {
            let mut serials = disks.into_iter().map(serial);
            storage.serial = serials.next().unwrap_or_default();
            storage.more_serials = serials.collect();
            storage
        });
        let devices = volumes.devices.into_iter().map(|(mut device, disk)| {
            device.serial = serial(disk);
            device
        });
        let (devices, gone) = devices.partition(|device| !device.serial.is_empty());
        Ok((storages.collect(), devices, gone))
    }

    /// Remembers what a container is about to use, and writes a file on the host for those who ask by its path.
    fn use_volumes(&self, volumes: Vec<DirectVolume>) {
        for volume in volumes {
            if let Err(error) = record::write(Path::new(record::ROOT), &volume.path, self.namespace.as_str(), &self.id)
            {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    volume = %volume.path.display(),
                    "its figures and its resizing cannot be asked for by its path"
                );
            }
            self.direct_volumes().insert(volume.path.clone(), volume);
        }
    }

    /// Unplugs what a container leaves. A guest that holds on to a disk does not hold up the deletion: the disk is freed by
    /// the VM's end.
    pub(in crate::sandbox) async fn release_disks(&self, container: &ContainerId) {
        let vm = self.running_vm().filter(|_| self.is_ready());
        for (serial, error) in self.disks.release(vm, container).await {
            tracing::error!(%container, serial, error = chain(&error), "a disk stays in the VM until its end");
        }
    }
}

/// A specification for the guest without some of its devices.
fn without_devices(spec: &[u8], gone: &[BlockDevice]) -> serde_json::Result<Vec<u8>> {
    let mut spec: Spec = serde_json::from_slice(spec)?;
    let is_gone = |listed: &LinuxDevice| {
        let number = (listed.major(), listed.minor());
        let is = |gone: &BlockDevice| {
            listed.path() == Path::new(&gone.path) && number == (gone.host_major.into(), gone.host_minor.into())
        };
        gone.iter().any(is)
    };
    let linux = spec.linux_mut().as_mut();
    if let Some(listed) = linux.and_then(|linux| linux.devices_mut().as_mut()) {
        listed.retain(|device| !is_gone(device));
    }
    serde_json::to_vec(&spec)
}
