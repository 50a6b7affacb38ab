//! The poststop hooks that are still to be run. They are written to a file before the container's first hook runs, so
//! that they run exactly once, whatever ends the container: its deletion, the unwinding of a failed create, or `delete`
//! if the shim is gone.
//!
//! There is one file per container below the sandbox's directory, which only root can access. The module knows nothing
//! about VMs and containers.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Hook, Hooks};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::{HookError, HookState, run_one};
use crate::host_ns::HostNamespace;
use crate::id::ContainerId;
use crate::remove;

/// The directory in that of the sandbox.
const DIRECTORY: &str = "poststop";

/// Extension of the file that says how many of a record's hooks have been run.
const DONE: &str = "done";

/// What a hook without a time-out of its own may take where nobody waits for the container any more, in seconds.
const LIMIT: i64 = 10;

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    hooks: Vec<Hook>,
    state: HookState,
}

/// The hooks that a sandbox owes.
#[derive(Debug, Clone)]
pub struct Owed {
    directory: PathBuf,
}

impl Owed {
    /// Those of the sandbox with this directory.
    #[must_use]
    pub fn below(run_dir: &Path) -> Self {
        Self {
            directory: run_dir.join(DIRECTORY),
        }
    }

    /// Those that [`Owed::hand_over`] has moved to this directory.
    #[must_use]
    pub fn moved_to(directory: PathBuf) -> Self {
        Self { directory }
    }

    fn file(&self, container: &str) -> PathBuf {
        self.directory.join(format!("{container}.json"))
    }

    /// Writes down what a container's end owes; nothing where it has no poststop hooks.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn record(&self, hooks: &Hooks, state: &HookState) -> io::Result<()> {
        let hooks = hooks.poststop().clone().unwrap_or_default();
        if hooks.is_empty() {
            return Ok(());
        }
        let record = Record {
            hooks,
            state: HookState {
                status: "stopped".into(),
                pid: 0,
                ..state.clone()
            },
        };
        fs::create_dir_all(&self.directory)?;
        // Its own: another container's may be written at the same time.
        let new = self.directory.join(format!("{}.new", state.id));
        fs::write(&new, serde_json::to_vec(&record)?)?;
        fs::rename(new, self.file(&state.id))
    }

    /// Runs what a container's end owes, each hook once, whether the one before it failed or not.
    ///
    /// # Errors
    /// The first hook that failed.
    pub async fn pay(&self, host: &HostNamespace, container: &ContainerId) -> Result<(), HookError> {
        self.pay_file(host, &self.file(container.as_str()), None).await
    }

    async fn pay_file(&self, host: &HostNamespace, file: &Path, limit: Option<i64>) -> Result<(), HookError> {
        let Some(mut claim) = Claim::of(file) else {
            return Ok(());
        };
        let mut first = Ok(());
        for mut hook in std::mem::take(&mut claim.hooks) {
            if hook.timeout().is_none() {
                hook.set_timeout(limit);
            }
            let result = run_one(host, hook, &claim.state).await;
            claim.done();
            first = first.and(result);
        }
        claim.remove();
        first
    }

    /// Runs all that the sandbox owes. What fails is logged: there is nobody who could do better.
    pub async fn pay_all(&self, host: &HostNamespace) {
        // No directory: nothing is owed.
        let Ok(entries) = fs::read_dir(&self.directory) else {
            return;
        };
        let complete = |entry: &fs::DirEntry| entry.path().extension().is_some_and(|extension| extension == "json");
        for entry in entries.flatten().filter(complete) {
            if let Err(error) = self.pay_file(host, &entry.path(), Some(LIMIT)).await {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(file = %entry.path().display(), error, "a poststop hook failed");
            }
        }
    }

    /// The same for a caller in the host's mount namespace that can wait; then the directory goes. Blocks.
    pub fn pay_all_blocking(&self) {
        if !self.directory.exists() {
            return;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        match (HostNamespace::start_thread(), runtime) {
            (Ok(host), Ok(runtime)) => runtime.block_on(self.pay_all(&host)),
            (host, runtime) => return tracing::warn!(?host, ?runtime, "poststop hooks cannot be run"),
        }
        if let Err(error) = remove::directory(&self.directory) {
            tracing::warn!(%error, path = %self.directory.display(), "cannot remove the record of poststop hooks");
        }
    }

    /// Moves what is owed to `directory`, for a program of its own to pay: `delete` has 5 s in all, and a hook may take longer. What is
    /// there already, from an earlier time, is paid as well. The answer is whether there is anything.
    ///
    /// # Errors
    /// It cannot be moved.
    pub fn hand_over(&self, directory: &Path) -> io::Result<bool> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(directory.exists()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
            fs::rename(entry.path(), directory.join(entry.file_name()))?;
        }
        Ok(directory.exists())
    }
}

/// A record whose hooks this process runs. Whoever ends before it is done leaves the rest to the next.
struct Claim {
    hooks: Vec<Hook>,
    state: HookState,
    file: PathBuf,
    /// How many hooks have been run.
    done: usize,
    /// Holds the lock on the record.
    _record: File,
}

impl Claim {
    /// None where there is no record, or somebody else runs its hooks.
    fn of(path: &Path) -> Option<Self> {
        let mut record = File::open(path).ok()?;
        flock(&record, FlockOperation::NonBlockingLockExclusive).ok()?;
        // It was done between the two steps.
        if record.metadata().ok()?.nlink() == 0 {
            return None;
        }
        let mut text = Vec::new();
        record.read_to_end(&mut text).ok()?;
        let Record { mut hooks, state } = match serde_json::from_slice(&text) {
            Ok(record) => record,
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "cannot understand which poststop hooks are owed");
                return None;
            }
        };
        let done = fs::read_to_string(path.with_extension(DONE)).ok();
        let done = done.and_then(|done| done.parse().ok()).unwrap_or(0).min(hooks.len());
        Some(Self {
            hooks: hooks.split_off(done),
            state,
            file: path.to_owned(),
            done,
            _record: record,
        })
    }

    fn done(&mut self) {
        self.done += 1;
        if let Err(error) = fs::write(self.file.with_extension(DONE), self.done.to_string()) {
            tracing::debug!(%error, "a poststop hook may be run again");
        }
    }

    fn remove(self) {
        // They may be gone with the sandbox's directory.
        let _ = fs::remove_file(&self.file);
        let _ = fs::remove_file(self.file.with_extension(DONE));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn state(bundle: &Path) -> HookState {
        HookState {
            oci_version: "1.0.2".into(),
            id: "me".into(),
            status: "creating".into(),
            pid: 42,
            bundle: bundle.to_owned(),
            annotations: HashMap::new(),
        }
    }

    fn hooks(scripts: &[&str]) -> Hooks {
        let hooks: Vec<_> = scripts
            .iter()
            .map(|script| serde_json::json!({ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"] }))
            .collect();
        serde_json::from_value(serde_json::json!({ "poststop": hooks })).unwrap()
    }

    #[tokio::test]
    async fn hooks_are_run_once_and_all_of_them() {
        let (run_dir, bundle) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let owed = Owed::below(run_dir.path());
        let script = hooks(&["cat >> ran; exit 7", "echo second >> ran"]);
        owed.record(&script, &state(bundle.path())).unwrap();
        let host = HostNamespace::start_thread().unwrap();
        let id = ContainerId::new("me").unwrap();
        assert!(matches!(owed.pay(&host, &id).await, Err(HookError::Failed { .. })));
        owed.pay(&host, &id).await.unwrap();
        owed.pay_all(&host).await;
        let ran = fs::read_to_string(bundle.path().join("ran")).unwrap();
        let state: serde_json::Value = serde_json::from_str(ran.strip_suffix("second\n").unwrap()).unwrap();
        assert_eq!((&state["status"], &state["pid"]), (&"stopped".into(), &0.into()));
    }

    #[test]
    fn what_is_owed_outlives_who_owes_it_and_the_bundle() {
        let (run_dir, bundle) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let ran = run_dir.path().join("ran");
        let script = hooks(&[&format!("pwd > {}", ran.display())]);
        Owed::below(run_dir.path())
            .record(&script, &state(bundle.path()))
            .unwrap();
        drop(bundle);
        Owed::below(run_dir.path()).pay_all_blocking();
        assert_eq!(fs::read_to_string(&ran).unwrap(), "/\n");
    }

    #[tokio::test]
    async fn who_ends_in_the_middle_leaves_the_rest_and_two_at_once_run_nothing_twice() {
        let (run_dir, bundle) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let owed = Owed::below(run_dir.path());
        let script = hooks(&["echo first >> ran", "echo second >> ran; sleep 0.3"]);
        owed.record(&script, &state(bundle.path())).unwrap();
        let host = HostNamespace::start_thread().unwrap();
        let mut claim = Claim::of(&owed.file("me")).unwrap();
        // Who has it now runs it; it ends after the first.
        assert!(Claim::of(&owed.file("me")).is_none());
        claim.done();
        drop(claim);
        tokio::join!(owed.pay_all(&host), owed.pay_all(&host));
        owed.pay_all(&host).await;
        assert_eq!(fs::read_to_string(bundle.path().join("ran")).unwrap(), "second\n");
        assert_eq!(fs::read_dir(&owed.directory).unwrap().count(), 0);
    }

    #[test]
    fn what_is_handed_over_is_paid_elsewhere() {
        let (run_dir, bundle) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (owed, elsewhere) = (Owed::below(run_dir.path()), run_dir.path().join("elsewhere"));
        assert!(!owed.hand_over(&elsewhere).unwrap());
        let script = hooks(&[&format!("echo ran > {}/ran", run_dir.path().display())]);
        owed.record(&script, &state(bundle.path())).unwrap();
        assert!(owed.hand_over(&elsewhere).unwrap());
        owed.pay_all_blocking();
        assert!(!run_dir.path().join("ran").exists());
        Owed::moved_to(elsewhere.clone()).pay_all_blocking();
        assert!(run_dir.path().join("ran").exists() && !elsewhere.exists());
    }

    #[test]
    fn nothing_is_written_where_nothing_is_owed() {
        let run_dir = tempfile::tempdir().unwrap();
        let owed = Owed::below(run_dir.path());
        owed.record(&Hooks::default(), &state(run_dir.path())).unwrap();
        assert!(!run_dir.path().join(DIRECTORY).exists());
        owed.pay_all_blocking();
    }
}
