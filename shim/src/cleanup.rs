//! Removes what a sandbox leaves on the host. Used by the server's end and by `delete`: may run twice, or at once.

use std::time::{Duration, Instant};

use crate::host_cgroup::HostCgroup;
use crate::process::{self, ProcessRef};
use crate::run_dir::{Lock, RunDir};
use crate::share;

/// How long the killed may take to die: `delete` has 5 s in all.
const KILL_LIMIT: Duration = Duration::from_secs(2);

/// Kills what is left of the sandbox (never the caller), and removes its cgroup, mounts and directory. What cannot be
/// removed is logged: there is nobody who could do better. Blocks for about 3 s at most.
pub fn remove_sandbox(run_dir: &RunDir) {
    match run_dir.lock() {
        Ok(lock) => remove_locked(run_dir, &lock),
        Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "cannot remove the sandbox"),
    }
}

/// The same for a caller that has the lock.
pub(crate) fn remove_locked(run_dir: &RunDir, _lock: &Lock) {
    if !run_dir.path().exists() {
        return;
    }
    let state = run_dir.read_state().unwrap_or_else(|error| {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "cannot read what the sandbox was made of"
        );
        None
    });
    if let Some(state) = state {
        let deadline = Instant::now() + KILL_LIMIT;
        // The server first, so that it does not take its VM's end for a failure to be reported.
        let processes: Vec<ProcessRef> = state.shim.into_iter().chain(state.vm).collect();
        process::kill_all(&processes, deadline);
        let cgroup = HostCgroup::recorded(state.cgroups);
        cgroup.kill_all(deadline);
        cgroup.remove();
    }
    // Removing the directory while something is mounted in it would remove the host's files.
    let removed = share::unmount_below(run_dir.path())
        .map_err(|error| Box::new(error) as Box<dyn std::error::Error>)
        .and_then(|()| run_dir.remove().map_err(Into::into));
    if let Err(error) = removed {
        tracing::warn!(error = &*error, path = %run_dir.path().display(), "cannot remove the sandbox's directory");
    }
}
