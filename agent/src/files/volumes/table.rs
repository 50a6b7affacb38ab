//! Which volume is held by whom, and which names nobody uses any longer. No I/O, and no wait.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::common::ids::ContainerId;

/// A container's right to hold volumes, until it is released. A later container with the same id has another one.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    pub(super) container: ContainerId,
    number: u64,
}

#[derive(Debug)]
pub(super) enum State {
    /// One thread mounts or unmounts it, and others wait for that.
    Busy,
    Held(Volume),
}

#[derive(Debug)]
pub(super) struct Volume {
    /// Its root, so that what is told reaches the very files that the containers have, whatever is mounted over them.
    pub(super) root: Arc<OwnedFd>,
    pub(super) users: BTreeSet<ContainerId>,
}

#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) volumes: HashMap<u32, State>,
    claims: HashMap<ContainerId, u64>,
    last_claim: u64,
    /// Names that nobody uses any longer, and that the host has not been seen without; true: a thread is looking.
    left: BTreeMap<PathBuf, bool>,
}

impl Table {
    pub(super) fn claim(&mut self, container: &ContainerId) -> Claim {
        self.last_claim += 1;
        self.claims.insert(container.clone(), self.last_claim);
        Claim {
            container: container.clone(),
            number: self.last_claim,
        }
    }

    /// The claim of a container that has not been released.
    pub(super) fn claim_of(&self, container: &ContainerId) -> Option<Claim> {
        let number = *self.claims.get(container)?;
        Some(Claim {
            container: container.clone(),
            number,
        })
    }

    /// Whether its container has not been released.
    pub(super) fn is_valid(&self, claim: &Claim) -> bool {
        self.claims.get(&claim.container) == Some(&claim.number)
    }

    /// The volumes that only this container has used: they are busy from now on, and whoever gets them unmounts them.
    pub(super) fn release(&mut self, container: &ContainerId) -> Vec<(u32, Volume)> {
        self.claims.remove(container);
        let mut unused = Vec::new();
        for (volume, state) in &mut self.volumes {
            let State::Held(held) = state else { continue };
            if held.users.remove(container)
                && held.users.is_empty()
                && let State::Held(held) = std::mem::replace(state, State::Busy)
            {
                unused.push((*volume, held));
            }
        }
        unused
    }

    pub(super) fn uses(&self, container: &ContainerId, volume: u32) -> bool {
        matches!(self.volumes.get(&volume), Some(State::Held(held)) if held.users.contains(container))
    }

    /// A container does not use this volume any more. If nobody else does it is busy from now on, and whoever gets it unmounts it.
    pub(super) fn release_one(&mut self, container: &ContainerId, volume: u32) -> Option<Volume> {
        let state = self.volumes.get_mut(&volume)?;
        let State::Held(held) = state else { return None };
        if !held.users.remove(container) || !held.users.is_empty() {
            return None;
        }
        match std::mem::replace(state, State::Busy) {
            State::Held(held) => Some(held),
            State::Busy => None,
        }
    }

    pub(super) fn leave(&mut self, name: PathBuf) {
        self.left.insert(name, false);
    }

    /// Whether it was left. It is not any more.
    pub(super) fn take_left(&mut self, name: &Path) -> bool {
        self.left.remove(name).is_some()
    }

    pub(super) fn has_left(&self) -> bool {
        !self.left.is_empty()
    }

    /// The next name that was left and that no other thread looks for: the caller looks for it now.
    pub(super) fn look_after(&mut self, last: Option<&Path>) -> Option<PathBuf> {
        let mut names = self.left.iter_mut();
        let (name, looking) =
            names.find(|(name, looking)| !**looking && last.is_none_or(|last| name.as_path() > last))?;
        *looking = true;
        Some(name.clone())
    }

    pub(super) fn looked(&mut self, name: &Path, is_gone: bool) {
        if is_gone {
            self.left.remove(name);
        } else if let Some(looking) = self.left.get_mut(name) {
            *looking = false;
        }
    }
}
