//! The containers of the sandbox by name. The map's lock is held for a look-up, never for the work.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use oci_spec::runtime::Spec;
use protocol::agent::Stdio;
use tokio::sync::Notify;

use crate::container::{Container, Services};
use crate::error::Error;
use crate::ids::ContainerId;

/// All containers.
#[derive(Debug)]
pub(crate) struct Sandbox {
    services: Services,
    /// None: the name is taken by a container that is being made or removed.
    containers: Mutex<HashMap<ContainerId, Option<Arc<Container>>>>,
    shutdown: Arc<Notify>,
}

type Containers<'a> = MutexGuard<'a, HashMap<ContainerId, Option<Arc<Container>>>>;

/// A name that is taken: given back when dropped.
struct Reserved<'a> {
    sandbox: &'a Sandbox,
    id: ContainerId,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if let Entry::Occupied(entry) = self.sandbox.lock().entry(self.id.clone())
            && entry.get().is_none()
        {
            entry.remove();
        }
    }
}

impl Sandbox {
    /// `shutdown` is notified when the host has asked for it.
    pub(crate) fn new(services: Services, shutdown: Arc<Notify>) -> Self {
        Self {
            services,
            containers: Mutex::default(),
            shutdown,
        }
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
            Some(Some(container)) => Ok(Arc::clone(container)),
            Some(None) | None => Err(Error::NoContainer(id.clone())),
        }
    }

    /// Makes a container up to the gate.
    ///
    /// # Errors
    /// The name is taken, or the specification cannot be carried out; nothing is left then.
    pub(crate) async fn create(
        &self,
        id: ContainerId,
        spec: Spec,
        stdio: &Stdio,
        join: &HashMap<String, String>,
    ) -> Result<u32, Error> {
        let mut joined = Vec::new();
        for (kind, other) in join {
            joined.push(self.container(&ContainerId::new(other)?)?.namespace(&id, kind)?);
        }
        let _reserved = match self.lock().entry(id.clone()) {
            Entry::Occupied(_) => return Err(Error::ContainerExists(id)),
            Entry::Vacant(entry) => {
                entry.insert(None);
                Reserved {
                    sandbox: self,
                    id: id.clone(),
                }
            }
        };
        let container = Arc::new(Container::new(id.clone(), spec, self.services.clone()).await?);
        match container.create(stdio, joined).await {
            Ok(pid) => {
                self.lock().insert(id, Some(container));
                Ok(pid)
            }
            Err(error) => {
                if let Err(left) = container.discard().await {
                    tracing::warn!(container = %id, error = %crate::report::chain(&left), "not removed");
                }
                Err(error)
            }
        }
    }

    /// Removes a stopped container.
    ///
    /// # Errors
    /// It is not stopped, or something of it cannot be removed; then it stays.
    pub(crate) async fn delete(&self, id: &ContainerId) -> Result<(), Error> {
        self.container(id)?.delete().await?;
        self.lock().remove(id);
        Ok(())
    }

    /// Kills everything, syncs, and has the power turned off.
    pub(crate) async fn shut_down(&self) {
        let all: Vec<_> = self.lock().values().flatten().cloned().collect();
        for container in all {
            container.kill();
        }
        // On a thread of its own: a file system may take its time, and the answer needs this one.
        if tokio::task::spawn_blocking(rustix::fs::sync).await.is_err() {
            tracing::error!("cannot sync");
        }
        self.shutdown.notify_one();
    }
}
