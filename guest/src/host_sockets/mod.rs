//! Sockets of the host that containers may connect to: those that a container has as a bind mount and that the operator allows
//! (`share_host_sockets`).
//!
//! It decides which sockets are allowed, and records which container has which. It looks a socket up again for each connection, because a
//! restarted service has another socket at the same path. The guest cannot name a socket by its path.

mod find;
mod service;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use config::PathPattern;
use node::host_ns::HostNamespace;
use protocol::agent::HostSocket;

use self::find::Found;
use self::service::HostService;
use crate::relays::{Offer, Relays};
use lifecycle::id::ContainerId;

/// The sockets of one sandbox. Cheap to clone.
#[derive(Clone)]
pub struct HostSockets {
    host: HostNamespace,
    relays: Relays,
    allowed: Arc<[PathPattern]>,
    shown: Arc<Mutex<Shown>>,
}

#[derive(Default)]
struct Shown {
    last: u32,
    of: HashMap<PathBuf, Entry>,
}

struct Entry {
    /// What the guest is told, its token included.
    socket: HostSocket,
    users: HashSet<ContainerId>,
    _offer: Offer,
}

/// Which mount of a container's it is.
type Position = usize;

/// The sockets among the sources of a container's bind mounts.
#[derive(Default)]
pub struct Chosen {
    found: Vec<(Position, Found)>,
    /// What is bound and cannot be connected with, one sentence each.
    pub warnings: Vec<String>,
}

/// Where a container's sockets are in the guest.
#[derive(Debug, Default)]
pub struct ShownSockets {
    /// Where mounts have their sources in the guest.
    pub placed: Vec<(Position, PathBuf)>,
    /// The sockets that the agent creates, with their tokens.
    pub sockets: Vec<HostSocket>,
}

impl HostSockets {
    /// Those that match a pattern, by their paths without links.
    #[must_use]
    pub fn new(host: HostNamespace, relays: Relays, allowed: Vec<PathPattern>) -> Self {
        Self {
            host,
            relays,
            allowed: allowed.into(),
            shown: Arc::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Chooses a bind mount's source if it is a socket and allowed. Else, or if it cannot be looked at, the mount stays what it is.
    /// Blocks.
    pub fn choose(&self, chosen: &mut Chosen, position: usize, source: &Path, destination: &Path) -> bool {
        let Ok(Some(mut found)) = find::socket(&self.host, source) else {
            return false;
        };
        if !self.allowed.iter().any(|pattern| pattern.matches(&found.path)) {
            chosen.warnings.push(format!(
                "nothing in the guest can connect to {}: it is {} on the host, which no entry of runtime.share_host_sockets matches",
                destination.display(),
                found.path.display()
            ));
            return false;
        }
        let (kind, warning) = find::kind(&self.host, &found.path);
        found.kind = kind;
        chosen.warnings.extend(warning);
        chosen.found.push((position, found));
        true
    }

    /// Offers the guest what a container has chosen, until it is detached.
    #[must_use]
    pub fn attach(&self, container: &ContainerId, chosen: Chosen) -> ShownSockets {
        let mut shown = self.lock();
        let mut answer = ShownSockets::default();
        for (position, found) in chosen.found {
            let number = match shown.of.get_mut(&found.path) {
                Some(entry) => {
                    entry.users.insert(container.clone());
                    entry.socket.number
                }
                None => {
                    shown.last += 1;
                    let number = shown.last;
                    let path = found.path.clone();
                    shown.of.insert(path, self.offer(container, number, &found));
                    number
                }
            };
            answer
                .sockets
                .extend(shown.of.get(&found.path).map(|entry| entry.socket.clone()));
            let source = PathBuf::from(protocol::SOCKET_DIRECTORY).join(number.to_string());
            answer.placed.push((position, source));
        }
        answer
    }

    fn offer(&self, container: &ContainerId, number: u32, found: &Found) -> Entry {
        let service = HostService::new(self.host.clone(), found.path.clone(), found.kind);
        let offer = self.relays.offer(Arc::new(service));
        tracing::info!(%container, socket = %found.path.display(), number, "the guest may connect to a socket of the host");
        Entry {
            socket: HostSocket {
                number,
                token: offer.token.to_vec(),
                kind: found.kind.as_raw(),
                mode: found.mode & 0o7777,
                uid: found.uid,
                gid: found.gid,
                ..HostSocket::default()
            },
            users: HashSet::from([container.clone()]),
            _offer: offer,
        }
    }

    /// Lets go of what a container has. What nobody has any more is offered no longer, and its connections are broken.
    pub fn detach(&self, container: &ContainerId) {
        self.lock().of.retain(|_, entry| {
            entry.users.remove(container);
            !entry.users.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// What is chosen of these, and what is left.
    fn choose<'a>(sockets: &HostSockets, sources: &[&'a Path]) -> (Chosen, Vec<&'a Path>) {
        let mut chosen = Chosen::default();
        let left = sources
            .iter()
            .filter(|source| !sockets.choose(&mut chosen, 3, source, Path::new("/d")))
            .copied()
            .collect();
        (chosen, left)
    }

    #[tokio::test]
    async fn a_link_is_what_it_leads_to_and_what_is_not_allowed_stays_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path().canonicalize().unwrap();
        std::fs::create_dir(directory.join("allowed")).unwrap();
        let (inside, outside) = (directory.join("allowed/a.sock"), directory.join("b.sock"));
        let _listeners = [&inside, &outside].map(|path| UnixListener::bind(path).unwrap());
        let link = |name: &str, to: &Path| {
            let link = directory.join(name);
            std::os::unix::fs::symlink(to, &link).unwrap();
            link
        };
        let (good, bad) = (link("good", &inside), link("allowed/bad.sock", &outside));
        let pattern = PathPattern::new(&format!("{}/allowed/*.sock", directory.display())).unwrap();
        let host = HostNamespace::start_thread().unwrap();
        let sockets = HostSockets::new(host, Relays::default(), vec![pattern]);
        let (chosen, left) = choose(&sockets, &[&inside, &good, &bad, &outside, &directory]);
        assert_eq!(left, [&bad, &outside, &directory]);
        assert_eq!(chosen.warnings.len(), 2, "{:?}", chosen.warnings);
        assert!(
            chosen.warnings[0].contains(&outside.display().to_string()),
            "{:?}",
            chosen.warnings
        );
        assert!(chosen.warnings[0].contains("share_host_sockets"));
        // Both are one socket.
        let [one, two] = ["one", "two"].map(|id| ContainerId::new(id).unwrap());
        let shown = sockets.attach(&one, chosen);
        assert_eq!((shown.placed.len(), shown.placed[0].0), (2, 3));
        assert_eq!(shown.placed[0].1, shown.placed[1].1);
        let attach = || sockets.attach(&two, choose(&sockets, &[&inside]).0);
        let again = attach();
        assert_eq!(again.sockets[0], shown.sockets[0]);
        sockets.detach(&one);
        let still = attach();
        assert_eq!(still.sockets[0].token, shown.sockets[0].token);
        sockets.detach(&two);
        let new = attach();
        assert_ne!(new.sockets[0].token, shown.sockets[0].token);
    }
}
