//! The poststop hooks that are still to be run. They are written to a file before the container's first hook runs, so
//! that they run exactly once, whatever ends the container: its deletion, the unwinding of a failed create, or `delete`
//! if the shim is gone.
//!
//! There is one file per container below the sandbox's directory, which only root can access. The module knows nothing
//! about VMs and containers.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Hook, Hooks};
use serde::{Deserialize, Serialize};

use super::{HookError, HookState, run_one};
use crate::host_ns::HostNamespace;
use crate::id::ContainerId;

/// The directory in that of the sandbox.
const DIRECTORY: &str = "poststop";

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
        let Some(record) = take(file) else { return Ok(()) };
        let mut first = Ok(());
        for mut hook in record.hooks {
            if hook.timeout().is_none() {
                hook.set_timeout(limit);
            }
            let result = run_one(host, hook, &record.state).await;
            first = first.and(result);
        }
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

    /// The same for a caller in the host's mount namespace that can wait. Blocks.
    pub fn pay_all_blocking(&self) {
        if !self.directory.exists() {
            return;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        match (HostNamespace::start_thread(), runtime) {
            (Ok(host), Ok(runtime)) => runtime.block_on(self.pay_all(&host)),
            (host, runtime) => tracing::warn!(?host, ?runtime, "poststop hooks cannot be run"),
        }
    }
}

/// Reads a record and removes it: whoever removes it runs the hooks. None where there is none, or another one was faster.
fn take(file: &Path) -> Option<Record> {
    let text = fs::read(file).ok()?;
    fs::remove_file(file).ok()?;
    match serde_json::from_slice(&text) {
        Ok(record) => Some(record),
        Err(error) => {
            tracing::warn!(file = %file.display(), %error, "cannot understand which poststop hooks are owed");
            None
        }
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

    #[test]
    fn nothing_is_written_where_nothing_is_owed() {
        let run_dir = tempfile::tempdir().unwrap();
        let owed = Owed::below(run_dir.path());
        owed.record(&Hooks::default(), &state(run_dir.path())).unwrap();
        assert!(!run_dir.path().join(DIRECTORY).exists());
        owed.pay_all_blocking();
    }
}
