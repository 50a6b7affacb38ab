//! Removes everything that a sandbox has left on the host. The server's end and `delete` use it. It may run twice, or
//! twice at the same time.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::hooks::Owed;
use crate::host_cgroup::HostCgroup;
use crate::id::SandboxId;
use crate::management::places;
use crate::network;
use crate::process::{self, ProcessRef};
use crate::run_dir::{Lock, RunDir};
use crate::share;
use crate::sys;
use crate::volumes::record;

/// How long the killed may take to die: `delete` has 5 s in all.
const KILL_LIMIT: Duration = Duration::from_secs(2);

/// Kills what is left of the sandbox (never the caller), and removes its cgroup, mounts and directory. What cannot be
/// removed is logged: there is nobody who could do better. Blocks for about 3 s at most, and while a `start` of the same
/// sandbox is under way.
///
/// `server` is who the caller knows the sandbox's server to be. If another one is recorded once the lock is had, the
/// sandbox is a newer one of the same id, and it is left alone.
pub fn remove_sandbox(run_dir: &RunDir, server: Option<ProcessRef>) {
    match run_dir.lock() {
        Ok(lock) if recorded_server(run_dir) == server => remove_locked(run_dir, &lock),
        Ok(_) => tracing::debug!(path = %run_dir.path().display(), "a newer sandbox has this directory"),
        Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "cannot remove the sandbox"),
    }
}

/// The server that `sandbox.json` names; none where it cannot be read.
#[must_use]
pub fn recorded_server(run_dir: &RunDir) -> Option<ProcessRef> {
    run_dir.read_state().ok().flatten().and_then(|state| state.shim)
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
        record::forget(Path::new(record::ROOT), &state.namespace, &state.id);
        if let Ok(id) = SandboxId::new(&state.id) {
            places::remove(&places::ROOTS.map(Path::new), run_dir.path(), &id);
        }
        let deadline = Instant::now() + KILL_LIMIT;
        // The server first, so that it does not take its VM's end for a failure to be reported.
        let processes: Vec<ProcessRef> = state.shim.into_iter().chain(state.vm).collect();
        process::kill_all(&processes, deadline);
        if let Some(record) = &state.network {
            network::remove(record);
        }
        let cgroup = HostCgroup::recorded(state.cgroups);
        cgroup.kill_all(deadline);
        cgroup.remove();
    }
    // What a shim that is gone has not come to.
    pay(run_dir);
    // Removing the directory while something is mounted in it would remove the host's files.
    let removed = share::unmount_below(run_dir.path())
        .map_err(|error| Box::new(error) as Box<dyn std::error::Error>)
        .and_then(|()| run_dir.remove().map_err(Into::into));
    if let Err(error) = removed {
        tracing::warn!(error = &*error, path = %run_dir.path().display(), "cannot remove the sandbox's directory");
    }
}

/// Has the sandbox's poststop hooks run by a process that outlives this one: containerd kills `delete` after 5 s.
fn pay(run_dir: &RunDir) {
    let directory = run_dir.owed();
    let payer = match Owed::below(run_dir.path()).hand_over(&directory) {
        Ok(false) => return,
        Ok(true) => std::env::current_exe().and_then(|program| {
            let mut command = Command::new(program);
            command.arg("-poststop").arg(&directory).current_dir("/");
            // containerd waits for the end of `delete`'s streams as well.
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            sys::detach(&mut command);
            command.spawn()
        }),
        Err(error) => Err(error),
    };
    if let Err(error) = payer {
        tracing::warn!(%error, path = %directory.display(), "the sandbox's poststop hooks are not run");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Namespace;
    use crate::run_dir::SandboxState;

    fn sandbox(root: &Path) -> (RunDir, SandboxState) {
        let (namespace, id) = (Namespace::new("n").unwrap(), SandboxId::new("pod").unwrap());
        let run_dir = RunDir::below(root, &namespace, &id);
        run_dir.create().unwrap();
        (run_dir, SandboxState::new(&namespace, &id))
    }

    #[test]
    fn a_newer_sandbox_of_the_same_id_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let (run_dir, mut state) = sandbox(root.path());
        let mut newer = Command::new("sleep").arg("600").spawn().unwrap();
        state.shim = ProcessRef::of(newer.id().try_into().unwrap());
        run_dir.write_state(&state).unwrap();
        // The older server at its end, and a delete that looked before the newer one was there.
        remove_sandbox(&run_dir, ProcessRef::own());
        remove_sandbox(&run_dir, None);
        assert!(run_dir.path().exists());
        assert_eq!(newer.try_wait().unwrap(), None);
        remove_sandbox(&run_dir, state.shim);
        assert!(!newer.wait().unwrap().success());
        let left: Vec<_> = std::fs::read_dir(root.path()).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
    }

    #[test]
    fn a_lock_holds_off_its_own_sandbox_and_no_other() {
        let root = tempfile::tempdir().unwrap();
        let (run_dir, _) = sandbox(root.path());
        let held = run_dir.lock().unwrap();
        let namespace = Namespace::new("n").unwrap();
        let other = RunDir::below(root.path(), &namespace, &SandboxId::new("other").unwrap());
        drop(other.lock().unwrap());
        let (sender, removed) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                remove_sandbox(&run_dir, None);
                sender.send(()).unwrap();
            });
            let early = removed.recv_timeout(Duration::from_millis(50));
            assert!(early.is_err());
            drop(held);
            removed.recv().unwrap();
        });
        assert!(!run_dir.path().exists());
    }
}
