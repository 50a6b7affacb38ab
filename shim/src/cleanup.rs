//! Removes everything that a sandbox has left on the host. The server's end and `delete` use it. It may run twice, or
//! twice at the same time.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{ChildStdin, Stdio};
use std::time::{Duration, Instant};

use base::spawn::Program;
use node::hooks::PoststopHooks;
use node::host_cgroup::HostCgroup;
use node::network;
use node::process::{self, ProcessRef};
use node::run_dir::{Lock, RunDir};
use node::share;
use node::volumes::record;

use crate::id::SandboxId;
use crate::management::places;
use crate::program::alive::is_alive;

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
    remove_contents(run_dir);
}

/// Removes what each `start` has left that was killed before it had launched a server: nobody may ever start or delete a sandbox of that id again. A
/// sandbox that is recorded is left to whoever deletes it.
pub fn sweep(root: &Path) {
    for run_dir in RunDir::known(root).into_iter().filter(RunDir::is_unrecorded) {
        // A start, or a removal, that is under way has the lock.
        let Ok(Some(lock)) = run_dir.try_lock() else { continue };
        // A server that has just been launched writes itself down after its start has ended.
        if run_dir.is_unrecorded() && !is_alive(&run_dir.socket()) {
            remove_locked(&run_dir, &lock);
        }
    }
}

/// The same for a directory that nobody else knows, or that another lock protects.
pub(crate) fn remove_contents(run_dir: &RunDir) {
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
    let deadline = Instant::now() + KILL_LIMIT;
    // The server first, so that it does not take its VM's end for a failure to be reported.
    let server: Vec<ProcessRef> = state.iter().filter_map(|state| state.shim).collect();
    process::kill_all(&server, deadline);
    // The rest may take longer than containerd gives `delete`.
    let removing = run_poststop_hooks(run_dir);
    let deadline = Instant::now() + KILL_LIMIT;
    if let Some(state) = state {
        record::forget(Path::new(record::ROOT), &state.namespace, &state.id);
        if let Ok(id) = SandboxId::new(&state.id) {
            places::remove(&places::ROOTS.map(Path::new), run_dir.path(), &id);
        }
        process::kill_all(&state.vm, deadline);
        if let Some(record) = &state.network {
            network::remove(record);
        }
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
    drop(removing);
}

/// Has the sandbox's poststop hooks run by a process that outlives this one: containerd kills `delete` after 5 s. The process
/// runs them when the answer is dropped, or this process has ended: the hooks come after the removal.
fn run_poststop_hooks(run_dir: &RunDir) -> Option<ChildStdin> {
    let directory = run_dir.handed_over_hooks();
    let runner = match PoststopHooks::below(run_dir.path()).hand_over(&directory) {
        Ok(false) => return None,
        Ok(true) => std::env::current_exe().and_then(|program| {
            // containerd waits for the end of `delete`'s streams as well: it has none of them. A hook that names no environment has this
            // process's, as one that the sandbox's server runs.
            Program::new(program)
                .envs(std::env::vars_os())
                .args([OsStr::new("-poststop"), directory.as_os_str()])
                .stdin(Stdio::piped())
                .session()
                .spawn()
        }),
        Err(error) => Err(error),
    };
    match runner {
        Ok(runner) => runner.stdin,
        Err(error) => {
            tracing::warn!(%error, path = %directory.display(), "the sandbox's poststop hooks are not run");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Namespace;
    use node::run_dir::SandboxState;
    use std::process::Command;

    fn sandbox(root: &Path) -> (RunDir, SandboxState) {
        let (namespace, id) = (Namespace::new("n").unwrap(), SandboxId::new("pod").unwrap());
        let run_dir = RunDir::below(root, &namespace, &id);
        run_dir.create().unwrap();
        (run_dir, SandboxState::new(&namespace, &id))
    }

    #[test]
    fn what_a_start_leaves_that_is_killed_before_there_is_a_server_is_swept() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| {
            let run_dir = RunDir::at(root.path().join(name));
            drop(run_dir.lock().unwrap());
            run_dir.create().unwrap();
            drop(run_dir.lock().unwrap());
            run_dir
        };
        let [killed, started, recorded, starting] = ["killed", "started", "recorded", "starting"].map(at);
        std::fs::create_dir(root.path().join("pool")).unwrap();
        std::fs::write(root.path().join("stray.lock"), "").unwrap();
        drop(std::os::unix::net::UnixListener::bind(killed.socket()).unwrap());
        let _listener = std::os::unix::net::UnixListener::bind(started.socket()).unwrap();
        let state = SandboxState::new(&Namespace::new("n").unwrap(), &SandboxId::new("s").unwrap());
        recorded.write_state(&state).unwrap();
        let held = starting.lock().unwrap();
        sweep(root.path());
        let mut left: Vec<_> = std::fs::read_dir(root.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        let wanted = [
            "pool",
            "recorded",
            "recorded.lock",
            "started",
            "started.lock",
            "starting",
            "starting.lock",
        ];
        assert_eq!(left, wanted);
        drop(held);
        sweep(root.path());
        assert!(!starting.path().exists());
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

    /// containerd kills `delete` after 5 s, wherever it is.
    #[test]
    fn poststop_hooks_are_handed_over_before_the_vm_is_waited_for() {
        let root = tempfile::tempdir().unwrap();
        let (run_dir, mut state) = sandbox(root.path());
        // A cgroup whose processes cannot be listed before somebody writes to it.
        let procs = root.path().join("cgroup.procs");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &procs,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        state.shim = None;
        state.cgroups = vec![root.path().to_owned()];
        run_dir.write_state(&state).unwrap();
        let poststop = run_dir.path().join("poststop");
        std::fs::create_dir(&poststop).unwrap();
        std::fs::write(poststop.join("pod.1.json"), "").unwrap();
        let is_handed_over = || run_dir.handed_over_hooks().exists() && !poststop.exists();
        std::thread::scope(|scope| {
            let removal = scope.spawn(|| remove_sandbox(&run_dir, None));
            let limit = Instant::now() + Duration::from_secs(10);
            while !is_handed_over() && Instant::now() < limit {
                std::thread::yield_now();
            }
            let handed_over = is_handed_over() && !removal.is_finished();
            drop(std::fs::File::options().write(true).open(&procs).unwrap());
            removal.join().unwrap();
            assert!(handed_over);
        });
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
