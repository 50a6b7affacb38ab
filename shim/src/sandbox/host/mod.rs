//! The sandbox's requests to the host for one container: mounts below the shared directory, and hooks.
//!
//! This is a trait, so that the sandbox can be tested without mounts.

pub(super) mod changes;
pub(crate) mod disks;
mod error;
mod network;
mod volumes;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use config::EmptyDirMode;
use containerd_shim_protos::types::mount::Mount;
use guest::host_sockets::{Chosen as ChosenSockets, HostSockets};
use guest::names;
use node::guest_spec::{self, HostOptions, Inherited, Input, PlacedBind, guest_spec};
use node::hooks::container::CreateContainerHooks;
use node::hooks::{self, HookPoint, HookState, PoststopHooks};
use node::host_ns::HostNamespace;
use node::memlock::{ContainerPolicy, SandboxPolicy};
use node::share::SharedTree;
use node::sizing::Limits;
use node::volumes::copies::Copies;
use node::volumes::{Volumes, resolve_sources};
use node::watch::Watches;
use oci_spec::runtime::Hooks;
use protocol::agent::{Cover, HostSocket};

use self::error::{blocking, other};
use crate::id::{ContainerId, SandboxId};

pub use self::error::HostError;

/// A container's hooks and what they are told.
#[derive(Debug, Clone)]
pub struct ContainerHooks {
    hooks: Hooks,
    state: HookState,
    create_container: Option<CreateContainerHooks>,
}

/// A container as the guest is to see it.
#[derive(Debug, Clone)]
pub struct GuestContainer {
    /// The OCI specification as JSON, with the guest's paths.
    pub spec: Vec<u8>,
    /// OCI type of a namespace to the host's path of the one that is joined.
    pub join_namespaces: BTreeMap<String, PathBuf>,
    /// The host's path of the network namespace of a container that is not the sandbox's first.
    pub network_of: Option<PathBuf>,
    /// Hooks that the host runs.
    pub hooks: Option<ContainerHooks>,
    /// How much memory its processes may lock.
    pub memlock: ContainerPolicy,
    /// What its execs have of its process.
    pub inherited: Inherited,
    /// What it needs of disks and of the guest's memory.
    pub volumes: Volumes,
    /// What it may use of the VM.
    pub limits: Limits,
    /// What other containers are to see from now on.
    pub covers: Vec<Cover>,
    /// Sockets of the host that it may connect to.
    pub sockets: Vec<HostSocket>,
    /// The host's file that it has for its resolv.conf.
    pub resolv_conf: Option<PathBuf>,
}

/// The host's side of the sandbox's containers.
#[async_trait]
pub trait HostSide: Send + Sync {
    /// Reads the bundle, mounts the rootfs and the binds. What was begun is undone by [`HostSide::detach`].
    ///
    /// # Errors
    /// The bundle cannot be read or something cannot be mounted.
    async fn attach(
        &self,
        container: &ContainerId,
        bundle: &Path,
        rootfs: &[Mount],
    ) -> Result<GuestContainer, HostError>;
    /// Runs the hooks of one point.
    ///
    /// # Errors
    /// One of them failed.
    async fn run_hooks(&self, hooks: &ContainerHooks, point: HookPoint, pid: u32) -> Result<(), HostError>;
    /// Runs the createContainer hooks, and then gives the guest the rootfs.
    ///
    /// # Errors
    /// One of them failed.
    async fn run_create_container_hooks(&self, _hooks: &ContainerHooks, _pid: u32) -> Result<(), HostError> {
        Ok(())
    }
    /// Runs the poststop hooks of a container that is no more, or of which nothing came. They run once, however often this is
    /// called.
    ///
    /// # Errors
    /// One of them failed.
    async fn run_poststop_hooks(&self, _container: &ContainerId) -> Result<(), HostError> {
        Ok(())
    }
    /// The covers of a container are about to be sent to the guest.
    fn covers_sent(&self, _container: &ContainerId) {}
    /// Which covers of those that were sent with a container the guest has made; not called if it has not answered.
    fn covers_made(&self, _container: &ContainerId, _made: &[bool]) {}
    /// Unmounts everything of a container. May be called again.
    ///
    /// # Errors
    /// Something is still mounted.
    async fn detach(&self, container: &ContainerId) -> Result<(), HostError>;
    /// Gives the guest the programs of the host's archive.
    ///
    /// # Errors
    /// There is no archive, or nothing is shared with the guest.
    async fn unpack_programs(&self) -> Result<(), HostError> {
        Err(other(io::Error::from(io::ErrorKind::Unsupported)))
    }
    /// Whether a resolv.conf names Docker's name server.
    async fn asks_docker(&self, _resolv_conf: &Path) -> bool {
        false
    }
    /// What the guest is to be told of; None: nothing is watched.
    fn watches(&self) -> Option<Watches> {
        None
    }
    /// What the guest has copies of; None: files are shared.
    fn copies(&self) -> Option<Copies> {
        None
    }
}

/// The host itself, and not a simulated one.
pub struct RealHost {
    /// Where containers are attached.
    pub tree: SharedTree,
    /// If nothing is shared with the guest: what it has copies of.
    pub copies: Option<Copies>,
    /// The thread in the host's mount namespace.
    pub host: HostNamespace,
    pub sandbox: SandboxId,
    /// What the containers have of the host is watched here.
    pub watches: Option<Watches>,
    /// The poststop hooks that are to be run.
    pub poststop: PoststopHooks,
    /// The host's sockets that containers may connect to.
    pub sockets: HostSockets,
    /// The archive of programs that are run in the guest.
    pub programs: PathBuf,
    /// Kata's `disable_guest_seccomp`.
    pub disable_guest_seccomp: bool,
    pub emptydir_mode: EmptyDirMode,
    /// How much memory the processes of its containers may lock.
    pub memlock: SandboxPolicy,
}

#[async_trait]
impl HostSide for RealHost {
    async fn attach(
        &self,
        container: &ContainerId,
        bundle: &Path,
        rootfs: &[Mount],
    ) -> Result<GuestContainer, HostError> {
        let tree = self.tree.clone();
        let (sandbox, container) = (self.sandbox.clone(), container.clone());
        let (bundle, rootfs) = (bundle.to_owned(), rootfs.to_vec());
        let (disable_guest_seccomp, emptydir_mode) = (self.disable_guest_seccomp, self.emptydir_mode);
        let policy = self.memlock.clone();
        let (watches, copies) = (self.watches.clone(), self.copies.clone());
        let (host, poststop, sockets) = (self.host.clone(), self.poststop.clone(), self.sockets.clone());
        // Whoever gives up does not end the thread, but what it attaches.
        let attachment = tree.begin(&container);
        blocking(move || {
            let read = guest_spec::read(&bundle.join("config.json"));
            let (mut spec, unread) = read.map_err(|error| HostError::Spec(Box::new(error)))?;
            let inherited = Inherited::of(&spec);
            resolve_sources(&mut spec, &bundle, &host);
            let mut volumes = Volumes::plan(&mut spec, &rootfs, emptydir_mode, &host)
                .map_err(|error| HostError::Spec(Box::new(error)))?;
            let input = Input {
                container: &container,
                sandbox: &sandbox,
                disable_guest_seccomp,
                host_files: &volumes.host_files,
            };
            let mut guest = guest_spec(&spec, input).map_err(|error| HostError::Spec(Box::new(error)))?;
            let root = spec
                .root()
                .as_ref()
                .map_or_else(|| PathBuf::from("rootfs"), |root| root.path().clone());
            let root = bundle.join(root);
            let is_shared = volumes.rootfs.is_none() && copies.is_none();
            let mut create_container = CreateContainerHooks::of(&spec, &attachment, &root, &rootfs, is_shared)
                .map_err(|error| HostError::Spec(Box::new(error)))?;
            let mut hooks = spec.hooks().clone().map(|hooks| ContainerHooks {
                hooks,
                state: HookState {
                    oci_version: spec.version().clone(),
                    id: container.as_str().to_owned(),
                    status: "creating".into(),
                    pid: 0,
                    bundle: bundle.clone(),
                    annotations: spec.annotations().clone().unwrap_or_default(),
                },
                create_container: None,
            });
            if let Some(ContainerHooks { hooks, state, .. }) = &hooks {
                poststop.record(hooks, state).map_err(other)?;
            }
            let mut memlock = if container.as_str() == sandbox.as_str() {
                policy.of_first()
            } else {
                policy.of_container(spec.annotations().as_ref())
            };
            let notes = memlock.apply(&mut guest.spec);
            let notes = notes.map_err(|error| HostError::Spec(Box::new(error)))?;
            let mut chosen = ChosenSockets::default();
            guest
                .binds
                .retain(|bind| !sockets.choose(&mut chosen, bind.position, &bind.source, &bind.destination));
            for warning in unread
                .iter()
                .chain(&chosen.warnings)
                .chain(&guest.warnings)
                .chain(&notes)
                .chain(&volumes.warnings)
            {
                tracing::warn!(%container, warning);
            }
            match (&volumes.rootfs, guest.spec.root_mut()) {
                (Some(path), Some(root)) => {
                    root.set_path(path.clone());
                }
                // The guest has the root of a pod's sandbox itself.
                _ if guest.pause => {}
                _ if copies.is_some() => volumes
                    .refuse_shared_root(&root, &rootfs)
                    .map_err(|error| HostError::Spec(Box::new(error)))?,
                // Hooks have to end before the guest has it.
                _ if create_container.is_some() => {}
                _ => {
                    tree.attach_rootfs(&attachment, &rootfs, &root).map_err(other)?;
                }
            }
            let copied = copies
                .as_ref()
                .map(|copies| copies.add(&container, &std::mem::take(&mut guest.binds), &mut volumes));
            let copied = copied.transpose().map_err(|error| HostError::Spec(Box::new(error)))?;
            let binds = tree.attach_binds(&attachment, &guest.binds).map_err(other)?;
            let shown = match tree.still_wanted(&attachment) {
                Ok(_held) => sockets.attach(&container, chosen),
                Err(error) => {
                    // Whoever has undone it may have come before its files were followed.
                    if let Some(copies) = &copies {
                        copies.forget(&container);
                    }
                    return Err(other(error));
                }
            };
            let sockets = shown.placed.into_iter().map(|(position, source)| PlacedBind {
                position,
                source,
                options: HostOptions::default(),
                over: Vec::new(),
            });
            let copied = copied.unwrap_or_default();
            guest.place(
                &binds
                    .placed
                    .into_iter()
                    .chain(sockets)
                    .chain(copied)
                    .collect::<Vec<_>>(),
            );
            if let Some(create_container) = &mut create_container {
                create_container.placed(&guest.spec, guest.pause);
            }
            if let Some(hooks) = &mut hooks {
                hooks.create_container = create_container;
            }
            if let Some(watches) = &watches {
                binds.exported.iter().for_each(|volume| watches.add(*volume));
            }
            let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
            let limits = resources.map(Limits::of).unwrap_or_default();
            Ok(GuestContainer {
                spec: serde_json::to_vec(&guest.spec).map_err(other)?,
                join_namespaces: guest.join_namespaces,
                network_of: guest.network_of,
                hooks,
                memlock,
                inherited,
                volumes,
                limits,
                covers: binds.covers,
                sockets: shown.sockets,
                resolv_conf: names::of_container(&spec),
            })
        })
        .await
    }

    async fn run_hooks(&self, hooks: &ContainerHooks, point: HookPoint, pid: u32) -> Result<(), HostError> {
        let mut state = hooks.state.clone();
        state.status = match point {
            HookPoint::Create => "creating".into(),
            HookPoint::Poststart => "running".into(),
        };
        state.pid = i32::try_from(pid).unwrap_or(0);
        hooks::run(&self.host, &hooks.hooks, point, &state).await.map_err(other)
    }

    async fn run_create_container_hooks(&self, hooks: &ContainerHooks, pid: u32) -> Result<(), HostError> {
        let Some(create_container) = hooks.create_container.clone() else {
            return Ok(());
        };
        let mut state = hooks.state.clone();
        state.pid = i32::try_from(pid).unwrap_or(0);
        let run = create_container.run(&self.host, &self.tree, &state, pid);
        run.await.map_err(other)
    }

    async fn run_poststop_hooks(&self, container: &ContainerId) -> Result<(), HostError> {
        self.poststop.run(&self.host, container).await.map_err(other)
    }

    fn covers_sent(&self, container: &ContainerId) {
        self.tree.covers_sent(container);
    }

    fn covers_made(&self, container: &ContainerId, made: &[bool]) {
        self.tree.covers_made(container, made);
    }

    async fn detach(&self, container: &ContainerId) -> Result<(), HostError> {
        let (tree, watches, container) = (self.tree.clone(), self.watches.clone(), container.clone());
        let (sockets, copies) = (self.sockets.clone(), self.copies.clone());
        blocking(move || {
            let gone = tree.detach(&container);
            // Nobody attaches any by now.
            sockets.detach(&container);
            if let Some(copies) = copies {
                copies.forget(&container);
            }
            let gone = gone.map_err(other)?;
            if let Some(watches) = &watches {
                watches.forget(&gone);
            }
            Ok(())
        })
        .await
    }

    async fn unpack_programs(&self) -> Result<(), HostError> {
        if self.copies.is_some() {
            let reason = "shared_fs = \"none\": no program can be given to the guest";
            return Err(other(io::Error::new(io::ErrorKind::Unsupported, reason)));
        }
        let (tree, archive) = (self.tree.clone(), self.programs.clone());
        blocking(move || tree.unpack_programs(&archive, protocol::PROGRAMS).map_err(other)).await
    }

    async fn asks_docker(&self, resolv_conf: &Path) -> bool {
        let (host, path) = (self.host.clone(), resolv_conf.to_owned());
        let asked = tokio::task::spawn_blocking(move || names::asks_docker(&host, &path));
        asked.await.unwrap_or_default()
    }

    fn watches(&self) -> Option<Watches> {
        self.watches.clone()
    }

    fn copies(&self) -> Option<Copies> {
        self.copies.clone()
    }
}
