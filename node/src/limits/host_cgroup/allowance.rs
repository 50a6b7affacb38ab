//! The limits of a sandbox's cgroup: those requested last, and those in force. Only this module keeps them.

use std::sync::Arc;

use base::chain;
use tokio::sync::Mutex;

use super::{HostCgroup, limits};
use crate::limits::sizing::{HostLimits, NumberSet};

/// The limits of one sandbox's cgroup, which has none at first.
#[derive(Debug)]
pub struct Allowance {
    cgroup: HostCgroup,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    asked: HostLimits,
    in_force: HostLimits,
}

impl Allowance {
    /// For a cgroup without limits.
    #[must_use]
    pub fn new(cgroup: HostCgroup) -> Self {
        Self {
            cgroup,
            state: Arc::default(),
        }
    }

    /// The cgroup that has the limits.
    #[must_use]
    pub fn cgroup(&self) -> &HostCgroup {
        &self.cgroup
    }

    /// Limits it to this. What cannot be limited is missed, which the log says, and tried again with the next change.
    pub async fn limit(&self, limits: HostLimits) {
        self.put(|_| limits).await;
    }

    /// The same, but allows no less memory than before: the VM may still have it.
    pub async fn raise(&self, limits: HostLimits) {
        self.put(|before| limits.with_room_of(before)).await;
    }

    /// The CPUs that it is limited to, if the host has agreed.
    pub async fn cpus(&self) -> Option<NumberSet> {
        self.state.lock().await.in_force.cpus
    }

    /// Whoever does not wait to the end does not interrupt it.
    async fn put(&self, limits: impl FnOnce(HostLimits) -> HostLimits) {
        let mut state = Arc::clone(&self.state).lock_owned().await;
        let wanted = limits(state.asked);
        if wanted == state.asked {
            return;
        }
        let cgroup = self.cgroup.clone();
        let work = move || {
            state.asked = wanted;
            for error in limits::apply(&cgroup.directories, &wanted, &mut state.in_force) {
                tracing::warn!(
                    error = chain(&error),
                    "a limit of the sandbox's cgroup on the host is not in force"
                );
            }
        };
        // It does not panic, and is not cancelled.
        let _ = tokio::task::spawn_blocking(work).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[tokio::test]
    async fn what_could_not_be_limited_is_tried_again_with_the_next_change_and_growing_takes_nothing_away() {
        let root = tempfile::tempdir().unwrap();
        let file = |name: &str| root.path().join(name);
        let memory = || fs::read_to_string(file("memory.limit_in_bytes")).unwrap();
        fs::write(file("memory.limit_in_bytes"), "").unwrap();
        let allowance = Allowance::new(HostCgroup::recorded(vec![root.path().to_owned()]));
        let limits = |bytes| HostLimits {
            memory: Some(bytes),
            shares: Some(2),
            ..HostLimits::default()
        };
        allowance.limit(limits(4096)).await;
        assert_eq!(memory(), "4096");
        fs::write(file("memory.limit_in_bytes"), "untouched").unwrap();
        fs::write(file("cpu.shares"), "").unwrap();
        allowance.raise(limits(1)).await;
        assert_eq!(memory(), "untouched");
        allowance.raise(limits(8192)).await;
        assert_eq!(memory(), "8192");
        assert_eq!(fs::read_to_string(file("cpu.shares")).unwrap(), "2");
        allowance.limit(limits(1)).await;
        assert_eq!(memory(), "1");
    }
}
