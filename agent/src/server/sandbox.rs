//! The containers of the sandbox by name. The map's lock is held only for a lookup, never during the work.

use std::collections::HashMap;
use std::collections::hash_map;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use oci_spec::runtime::Spec;
use protocol::agent::{BlockDevice, Cover, HostSocket, Stdio, Storage};
use tokio::sync::{Notify, watch};

use crate::common::blocking;
use crate::common::ids::ContainerId;
use crate::common::timeouts::scaled;
use crate::connections::host_sockets::HostSockets;
use crate::connections::names::Names;
use crate::container::{Container, Joined, Services};
use crate::error::Error;
use crate::files::storage::{self, Storages};
use crate::files::volumes::Volumes;

/// The containers of the sandbox, and what they share.
#[derive(Debug)]
pub(crate) struct Sandbox {
    services: Services,
    containers: Mutex<HashMap<ContainerId, Entry>>,
    storages: Storages,
    volumes: Volumes,
    sockets: HostSockets,
    names: Names,
    /// Deletions that are under way: each goes on to its end, whoever waits for it.
    deletions: Mutex<HashMap<ContainerId, Deletion>>,
    shutdown: Arc<Notify>,
}

#[derive(Debug, Clone)]
struct Deletion {
    ended: watch::Receiver<Option<Result<(), Arc<Error>>>>,
    waits_for: watch::Receiver<&'static str>,
}

/// How long a caller waits for a deletion before it is told how it goes.
const SLICE: Duration = Duration::from_secs(5);

/// How long the unmounting of what the host shares holds up a deletion: pages that were written through a mapping go to the host
/// with it.
const UNMOUNT: Duration = Duration::from_secs(20);

/// How a deletion goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deleted {
    All,
    /// It is under way.
    NotYet {
        /// Changes as long as it gets on.
        progress: u64,
        /// For messages.
        waits_for: &'static str,
    },
}

/// A container that the host asks for.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) id: ContainerId,
    pub(crate) spec: Spec,
    pub(crate) stdio: Stdio,
    pub(crate) storages: Vec<Storage>,
    /// Disks that are devices of it.
    pub(crate) devices: Vec<BlockDevice>,
    /// What others are to see in place of a part of what they have.
    pub(crate) covers: Vec<Cover>,
    /// Sockets of the host that it has.
    pub(crate) sockets: Vec<HostSocket>,
    pub(crate) bundle: PathBuf,
    /// What the host calls its character devices, by their numbers.
    pub(crate) device_names: HashMap<String, String>,
}

/// A container that has been made up to the gate.
#[derive(Debug)]
pub(crate) struct Created {
    pub(crate) pid: u32,
    pub(crate) covered: Vec<bool>,
}

type Containers<'a> = MutexGuard<'a, HashMap<ContainerId, Entry>>;

#[derive(Debug)]
enum Entry {
    Making(Making),
    Made(Arc<Container>),
}

/// How others end the making of a container.
#[derive(Debug, Clone)]
struct Making {
    given_up: Arc<Notify>,
    /// Closed when nothing of it is left.
    over: watch::Receiver<()>,
}

/// Ends the making of a container unless its caller has waited for it.
struct GiveUp(Arc<Notify>);

impl Drop for GiveUp {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

struct Deleting<'a>(&'a Sandbox, &'a ContainerId);

impl Drop for Deleting<'_> {
    fn drop(&mut self) {
        let mut deletions = self.0.deletions.lock().unwrap_or_else(PoisonError::into_inner);
        deletions.remove(self.1);
    }
}

/// A name that is taken: given back when dropped, unless a container has come of it.
struct Reserved {
    sandbox: Arc<Sandbox>,
    id: ContainerId,
    given_up: Arc<Notify>,
    _over: watch::Sender<()>,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let hash_map::Entry::Occupied(entry) = self.sandbox.lock().entry(self.id.clone())
            && matches!(entry.get(), Entry::Making(_))
        {
            entry.remove();
        }
    }
}

impl Reserved {
    async fn make(self, wanted: Wanted, joined: Vec<Joined>) -> Result<Created, Error> {
        let made = Box::pin(self.make_on_storages(wanted, joined)).await;
        if made.is_err() {
            self.sandbox.sockets.release(&self.id);
            self.sandbox.release_volumes(&self.id).await;
            if let Err(left) = self.sandbox.storages.release(&self.id).await {
                tracing::warn!(container = %self.id, error = %base::chain(&left), "not released");
            }
        }
        made
    }

    async fn make_on_storages(&self, wanted: Wanted, joined: Vec<Joined>) -> Result<Created, Error> {
        let (sandbox, id) = (&self.sandbox, &self.id);
        let Wanted {
            mut spec,
            stdio,
            storages,
            devices,
            covers,
            sockets,
            bundle,
            device_names,
            ..
        } = wanted;
        let failed = |source| Error::Storage { id: id.clone(), source };
        let acquired = sandbox.sockets.acquire(id, &sockets);
        acquired.map_err(|source| Error::Socket { id: id.clone(), source })?;
        let mounting = sandbox.storages.acquire(id, &storages, &devices);
        let plugged = trace::step("mount storages", mounting, |error| base::chain(error)).await;
        let plugged = plugged.map_err(failed)?;
        storage::rewrite(&mut spec, &plugged, &device_names).map_err(failed)?;
        let (volumes, claim) = (sandbox.volumes.clone(), sandbox.volumes.claim(id));
        let held = blocking::run(move || {
            volumes.acquire(&claim, &spec);
            spec
        });
        let held = tokio::select! {
            held = held => held,
            // Its release ends the claim: what it waits for is not held when it comes.
            () = self.given_up.notified() => return Err(Error::GivenUp(id.clone())),
        };
        let spec = held.map_err(|source| Error::System {
            id: id.clone(),
            what: "hold the volumes",
            source,
        })?;
        let container = Arc::new(Container::new(id.clone(), spec, plugged, sandbox.services.clone()).await?);
        let made = async {
            let pid = trace::step("launch", container.create(&stdio, joined, bundle), |error| {
                base::chain(error)
            })
            .await?;
            let covered = sandbox.cover(id, covers).await;
            Ok(Created { pid, covered })
        };
        let made = tokio::select! {
            made = made => made,
            () = self.given_up.notified() => Err(Error::GivenUp(id.clone())),
        };
        match made {
            Ok(created) => {
                sandbox.lock().insert(id.clone(), Entry::Made(container));
                Ok(created)
            }
            Err(error) => {
                if let Err(left) = container.discard().await {
                    tracing::warn!(container = %id, error = %base::chain(&left), "not removed");
                }
                Err(error)
            }
        }
    }
}

impl Sandbox {
    /// `shutdown` is notified when the host has asked for it.
    pub(crate) fn new(services: Services, shutdown: Arc<Notify>) -> Self {
        Self {
            sockets: HostSockets::new(services.dialer),
            names: Names::new(services.dialer),
            services,
            containers: Mutex::default(),
            storages: Storages::default(),
            volumes: Volumes::default(),
            deletions: Mutex::default(),
            shutdown,
        }
    }

    /// Has other containers see something else, as far as they run. The answer is which of it they do see. Last of all: if the container that it is
    /// done for cannot be made, nothing of it is done.
    async fn cover(&self, by: &ContainerId, covers: Vec<Cover>) -> Vec<bool> {
        let found = covers.into_iter().map(|cover| {
            let id = ContainerId::new(&cover.container_id).ok()?;
            let (_, namespace) = self.container(&id).ok()?.namespace(by, "mount").ok()?;
            Some((id, namespace, cover))
        });
        let found: Vec<Option<(ContainerId, OwnedFd, Cover)>> = found.collect();
        let volumes = self.volumes.clone();
        let covering = blocking::run(move || {
            let cover = |(container, namespace, cover): &(ContainerId, OwnedFd, Cover)| {
                volumes.cover(container, namespace, cover)
            };
            found.iter().map(|found| found.as_ref().is_some_and(cover)).collect()
        });
        covering.await.unwrap_or_default()
    }

    fn lock(&self) -> Containers<'_> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The container of that name.
    ///
    /// # Errors
    /// There is none, or it is still being made.
    pub(crate) fn container(&self, id: &ContainerId) -> Result<Arc<Container>, Error> {
        match self.lock().get(id) {
            Some(Entry::Made(container)) => Ok(Arc::clone(container)),
            Some(Entry::Making(_)) | None => Err(Error::NoContainer(id.clone())),
        }
    }

    /// Makes a container up to the gate. A caller that drops the future, and [`Sandbox::delete`], end the making.
    ///
    /// # Errors
    /// The name is taken, or the specification cannot be carried out; nothing is left then.
    pub(crate) async fn create(
        self: &Arc<Self>,
        wanted: Wanted,
        join: &HashMap<String, String>,
    ) -> Result<Created, Error> {
        let id = wanted.id.clone();
        let mut joined = Vec::new();
        for (kind, other) in join {
            joined.push(self.container(&ContainerId::new(other)?)?.namespace(&id, kind)?);
        }
        let reserved = self.reserve(id.clone())?;
        let _caller = GiveUp(Arc::clone(&reserved.given_up));
        // A task of its own: what was begun is taken back also where the caller is no longer there to do it.
        let making = tokio::spawn(trace::carried(reserved.make(wanted, joined)));
        making.await.unwrap_or_else(|error| {
            Err(Error::System {
                id,
                what: "make the container",
                source: std::io::Error::other(error),
            })
        })
    }

    fn reserve(self: &Arc<Self>, id: ContainerId) -> Result<Reserved, Error> {
        let (over, watched) = watch::channel(());
        let given_up = Arc::new(Notify::new());
        match self.lock().entry(id.clone()) {
            hash_map::Entry::Occupied(_) => return Err(Error::ContainerExists(id)),
            hash_map::Entry::Vacant(entry) => entry.insert(Entry::Making(Making {
                given_up: Arc::clone(&given_up),
                over: watched,
            })),
        };
        Ok(Reserved {
            sandbox: Arc::clone(self),
            id,
            given_up,
            _over: over,
        })
    }

    /// Removes a stopped container, one that was never started, or one that is being made: its set-up may hang. What it has on disks is
    /// written back, which takes as long as it takes: after a while the answer is how it goes. Whoever asks again waits for
    /// the same deletion, and whoever goes away does not end it.
    ///
    /// # Errors
    /// It runs, or something of it cannot be removed; then it stays.
    pub(crate) async fn delete(self: &Arc<Self>, id: &ContainerId) -> Result<Deleted, Arc<Error>> {
        let mut deletion = self.deletion(id);
        let ended = match tokio::time::timeout(SLICE, deletion.ended.wait_for(Option::is_some)).await {
            Ok(Ok(ended)) => ended.clone(),
            Ok(Err(_)) => None,
            Err(_) => {
                return Ok(Deleted::NotYet {
                    progress: self.storages.written(id),
                    waits_for: *deletion.waits_for.borrow(),
                });
            }
        };
        let failed = || {
            Err(Arc::new(Error::System {
                id: id.clone(),
                what: "delete the container",
                source: std::io::Error::other("the task has failed"),
            }))
        };
        ended.unwrap_or_else(failed).map(|()| Deleted::All)
    }

    fn deletion(self: &Arc<Self>, id: &ContainerId) -> Deletion {
        let mut deletions = self.deletions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(deletion) = deletions.get(id) {
            return deletion.clone();
        }
        let (tell, ended) = watch::channel(None);
        let (step, waits_for) = watch::channel("its turn");
        let deletion = Deletion { ended, waits_for };
        deletions.insert(id.clone(), deletion.clone());
        let (sandbox, id) = (Arc::clone(self), id.clone());
        tokio::spawn(trace::carried(async move {
            // Given back whatever happens: the next one is a deletion of its own.
            let _deleting = Deleting(&sandbox, &id);
            let deleted = sandbox.delete_now(&id, &step).await;
            tell.send_replace(Some(deleted.map_err(Arc::new)));
        }));
        deletion
    }

    async fn delete_now(&self, id: &ContainerId, step: &watch::Sender<&'static str>) -> Result<(), Error> {
        let making = match self.lock().get(id) {
            Some(Entry::Making(making)) => Some(making.clone()),
            Some(Entry::Made(_)) | None => None,
        };
        if let Some(Making { given_up, mut over }) = making {
            step.send_replace("the end of its creation");
            given_up.notify_one();
            // An error: its sender is gone, which is what is waited for.
            while over.changed().await.is_ok() {}
            if !self.lock().contains_key(id) {
                return self.release(id, step).await;
            }
        }
        let container = match self.container(id) {
            Ok(container) => container,
            Err(missing) => {
                // A creation that failed may have left what it could not let go of.
                self.release(id, step).await?;
                return Err(missing);
            }
        };
        step.send_replace("its processes and cgroup to go");
        trace::step("remove", container.delete(), |error| base::chain(error)).await?;
        trace::step("release storages", self.release(id, step), |error| base::chain(error)).await?;
        self.lock().remove(id);
        Ok(())
    }

    /// Lets go of all that a container without processes holds. Does nothing for one that holds nothing.
    async fn release(&self, id: &ContainerId, step: &watch::Sender<&'static str>) -> Result<(), Error> {
        self.sockets.release(id);
        step.send_replace("the host's file server to let go of its volumes");
        self.release_volumes(id).await;
        step.send_replace("its file systems to be written back and unmounted");
        let released = self.storages.release(id).await;
        released.map_err(|source| Error::Storage { id: id.clone(), source })
    }

    /// Lets go of what the host shares with a container whose processes have ended. A file server that does not answer holds up the
    /// unmounting for good, and the deletion for [`UNMOUNT`]: what is left goes when it answers.
    async fn release_volumes(&self, id: &ContainerId) {
        let (volumes, name) = (self.volumes.clone(), id.clone());
        let released = blocking::run(move || volumes.release(&name));
        match tokio::time::timeout(scaled(UNMOUNT), released).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(container = %id, %error, "cannot let go of a container's volumes"),
            Err(_) => {
                tracing::warn!(container = %id, "the host does not answer: the container's volumes are let go of later")
            }
        }
    }

    pub(crate) fn volumes(&self) -> &Volumes {
        &self.volumes
    }

    pub(crate) fn names(&self) -> &Names {
        &self.names
    }

    /// The file systems of the guest's own.
    pub(crate) fn storages(&self) -> &Storages {
        &self.storages
    }

    /// Kills everything, syncs, and has the power turned off.
    pub(crate) async fn shut_down(&self) {
        for entry in self.lock().values() {
            match entry {
                Entry::Making(making) => making.given_up.notify_one(),
                Entry::Made(container) => container.kill(),
            }
        }
        // On a thread of its own: a file system may take its time, and the answer needs this one.
        if let Err(error) = blocking::run(rustix::fs::sync).await {
            tracing::error!(%error, "cannot sync");
        }
        self.shutdown.notify_one();
    }
}
