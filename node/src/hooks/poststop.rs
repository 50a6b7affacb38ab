//! The poststop hooks that are still to be run. They are written to a file before the container's first hook runs, so
//! that they run exactly once, whatever ends the container: its deletion, the unwinding of a failed create, or `delete`
//! if the shim is gone.
//!
//! There is one file per creation of a container below the sandbox's directory, which only root can access: a container may
//! be created while the hooks of an earlier one with its id still run. The module knows nothing about VMs and containers.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use oci_spec::runtime::{Hook, Hooks};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::{HookError, HookState, run_one};
use crate::host::host_ns::HostNamespace;
use crate::host::remove;
use lifecycle::id::ContainerId;

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

/// The poststop hooks of a sandbox that are still to be run.
#[derive(Debug, Clone)]
pub struct PoststopHooks {
    directory: PathBuf,
}

impl PoststopHooks {
    /// Those of the sandbox with this directory.
    #[must_use]
    pub fn below(run_dir: &Path) -> Self {
        Self {
            directory: run_dir.join(DIRECTORY),
        }
    }

    /// The records that are complete, those of one container or of all, the oldest first.
    fn records(&self, container: Option<&ContainerId>) -> Vec<PathBuf> {
        // No directory: there is nothing to run.
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let mut records: Vec<_> = entries
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let name = name.strip_suffix(".json")?;
                let numbered = name.rsplit_once('.');
                let numbered = numbered.and_then(|(id, number)| Some((id, number.parse::<u128>().ok()?)));
                // A shim of an earlier version had one record for an id, without a number.
                let (id, number) = numbered.unwrap_or((name, 0));
                let wanted = container.is_none_or(|container| container.as_str() == id);
                wanted.then(|| (number, entry.path()))
            })
            .collect();
        records.sort();
        records.into_iter().map(|(_, path)| path).collect()
    }

    /// Writes down the hooks of a container; nothing if it has none.
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
        let file = self.directory.join(format!("{}.{}.json", state.id, now()));
        let new = file.with_extension("new");
        fs::write(&new, serde_json::to_vec(&record)?)?;
        fs::rename(new, file)
    }

    /// Runs the hooks of a container, each once, whether the one before it failed or not.
    ///
    /// # Errors
    /// The first hook that failed.
    pub async fn run(&self, host: &HostNamespace, container: &ContainerId) -> Result<(), HookError> {
        let mut first = Ok(());
        // Its own first: those of an earlier one with its id may hang.
        for record in self.records(Some(container)).into_iter().rev() {
            first = first.and(self.run_record(host, &record, None).await);
        }
        first
    }

    async fn run_record(&self, host: &HostNamespace, file: &Path, limit: Option<i64>) -> Result<(), HookError> {
        let Some(mut claim) = Claim::of(file) else {
            return Ok(());
        };
        let mut first = Ok(());
        for mut hook in std::mem::take(&mut claim.hooks) {
            if hook.timeout().is_none() {
                hook.set_timeout(limit);
            }
            let result = run_one(host, hook, &claim.state, None).await;
            claim.done();
            first = first.and(result);
        }
        claim.remove();
        first
    }

    /// Runs those of all containers. What fails is logged: there is nobody who could do better.
    pub async fn run_all(&self, host: &HostNamespace) {
        for record in self.records(None) {
            if let Err(error) = self.run_record(host, &record, Some(LIMIT)).await {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(file = %record.display(), error, "a poststop hook failed");
            }
        }
    }

    /// Moves all of them into `directory`, for a program of its own that runs them with [`run_handed_over`]: `delete` has 5 s in all, and a
    /// hook may take longer. What an earlier removal has moved there stays apart: its hooks may be running. The answer is
    /// whether there is anything.
    ///
    /// # Errors
    /// It cannot be moved.
    pub fn hand_over(&self, directory: &Path) -> io::Result<bool> {
        if self.records(None).is_empty() {
            return Ok(directory.exists());
        }
        let place = directory.join(now().to_string());
        loop {
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
            match fs::rename(&self.directory, &place) {
                Ok(()) => return Ok(true),
                // The program that runs those of an earlier removal has just removed the directory.
                Err(error) if error.kind() == io::ErrorKind::NotFound && self.directory.exists() => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Nanoseconds since the epoch: a number that no other record has.
fn now() -> u128 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_nanos()
}

/// Runs all that [`PoststopHooks::hand_over`] has moved into a directory, and removes it. For a caller in the host's mount namespace
/// that can wait: blocks.
pub fn run_handed_over(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let (host, runtime) = match (HostNamespace::start_thread(), runtime) {
        (Ok(host), Ok(runtime)) => (host, runtime),
        (host, runtime) => return tracing::warn!(?host, ?runtime, "poststop hooks cannot be run"),
    };
    for entry in entries.flatten() {
        let poststop = PoststopHooks {
            directory: entry.path(),
        };
        runtime.block_on(poststop.run_all(&host));
        // What is left is being run by another process, which removes it.
        if poststop.records(None).is_empty()
            && let Err(error) = remove::directory(&poststop.directory)
        {
            tracing::warn!(%error, path = %poststop.directory.display(), "cannot remove the record of poststop hooks");
        }
    }
    // It stays for whoever else has something in it.
    let _ = fs::remove_dir(directory);
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
                tracing::warn!(file = %path.display(), %error, "cannot understand which poststop hooks are to be run");
                // Nobody else can either.
                let _ = fs::remove_file(path);
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
        let poststop = PoststopHooks::below(run_dir.path());
        let script = hooks(&["cat >> ran; exit 7", "echo second >> ran"]);
        poststop.record(&script, &state(bundle.path())).unwrap();
        let host = HostNamespace::start_thread().unwrap();
        let id = ContainerId::new("me").unwrap();
        assert!(matches!(poststop.run(&host, &id).await, Err(HookError::Failed { .. })));
        poststop.run(&host, &id).await.unwrap();
        poststop.run_all(&host).await;
        let ran = fs::read_to_string(bundle.path().join("ran")).unwrap();
        let state: serde_json::Value = serde_json::from_str(ran.strip_suffix("second\n").unwrap()).unwrap();
        assert_eq!((&state["status"], &state["pid"]), (&"stopped".into(), &0.into()));
    }

    #[test]
    fn hooks_that_are_still_to_be_run_outlive_their_shim_and_the_bundle() {
        let (run_dir, bundle) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let ran = run_dir.path().join("ran");
        let script = hooks(&[&format!("pwd > {}", ran.display())]);
        PoststopHooks::below(run_dir.path())
            .record(&script, &state(bundle.path()))
            .unwrap();
        drop(bundle);
        let elsewhere = run_dir.path().join("elsewhere");
        assert!(PoststopHooks::below(run_dir.path()).hand_over(&elsewhere).unwrap());
        run_handed_over(&elsewhere);
        assert_eq!(fs::read_to_string(&ran).unwrap(), "/\n");
    }

    #[tokio::test]
    async fn who_ends_in_the_middle_leaves_the_rest_and_two_at_once_run_nothing_twice() {
        let (run_dir, bundle) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let poststop = PoststopHooks::below(run_dir.path());
        let script = hooks(&["echo first >> ran", "echo second >> ran; sleep 0.3"]);
        poststop.record(&script, &state(bundle.path())).unwrap();
        let host = HostNamespace::start_thread().unwrap();
        let record = poststop.records(None).remove(0);
        let mut claim = Claim::of(&record).unwrap();
        // Who has it now runs it; it ends after the first.
        assert!(Claim::of(&record).is_none());
        claim.done();
        drop(claim);
        tokio::join!(poststop.run_all(&host), poststop.run_all(&host));
        poststop.run_all(&host).await;
        assert_eq!(fs::read_to_string(bundle.path().join("ran")).unwrap(), "second\n");
        assert_eq!(fs::read_dir(&poststop.directory).unwrap().count(), 0);
    }

    #[test]
    fn what_is_handed_over_is_run_elsewhere() {
        let (run_dir, bundle) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (poststop, elsewhere) = (PoststopHooks::below(run_dir.path()), run_dir.path().join("elsewhere"));
        assert!(!poststop.hand_over(&elsewhere).unwrap());
        let script = hooks(&[&format!("echo ran > {}/ran", run_dir.path().display())]);
        poststop.record(&script, &state(bundle.path())).unwrap();
        assert!(poststop.hand_over(&elsewhere).unwrap());
        let host = HostNamespace::start_thread().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(poststop.run_all(&host));
        assert!(!run_dir.path().join("ran").exists());
        run_handed_over(&elsewhere);
        assert!(run_dir.path().join("ran").exists() && !elsewhere.exists());
    }

    /// A hook that says that it runs and then waits for a line.
    fn waiting(directory: &Path) -> Hooks {
        let [began, goes_on] = ["began", "goes-on"].map(|name| {
            let path = directory.join(name);
            let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
            rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
            path.display().to_string()
        });
        let ran = directory.join("ran").display().to_string();
        hooks(&[
            &format!("echo first > {began}; read line < {goes_on}; echo first >> {ran}"),
            &format!("echo second >> {ran}"),
        ])
    }

    fn third(directory: &Path) -> Hooks {
        hooks(&[&format!("echo third >> {}/ran", directory.display())])
    }

    #[tokio::test]
    async fn a_container_with_the_id_of_one_whose_hooks_still_run_has_its_own_run_too() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        let poststop = PoststopHooks::below(directory);
        poststop.record(&waiting(directory), &state(directory)).unwrap();
        let host = HostNamespace::start_thread().unwrap();
        let id = ContainerId::new("me").unwrap();
        let next = async {
            tokio::fs::read(directory.join("began")).await.unwrap();
            poststop.record(&third(directory), &state(directory)).unwrap();
            tokio::fs::write(directory.join("goes-on"), "\n").await.unwrap();
        };
        let (paid, ()) = tokio::join!(poststop.run(&host, &id), next);
        paid.unwrap();
        poststop.run(&host, &id).await.unwrap();
        let ran = fs::read_to_string(directory.join("ran")).unwrap();
        assert_eq!(ran, "first\nsecond\nthird\n");
    }

    #[test]
    fn what_is_handed_over_while_hooks_of_an_earlier_removal_run_is_run_too() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        let elsewhere = directory.join("elsewhere");
        let poststop = PoststopHooks::below(directory);
        poststop.record(&waiting(directory), &state(directory)).unwrap();
        poststop.hand_over(&elsewhere).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| run_handed_over(&elsewhere));
            fs::read(directory.join("began")).unwrap();
            poststop.record(&third(directory), &state(directory)).unwrap();
            assert!(poststop.hand_over(&elsewhere).unwrap());
            fs::write(directory.join("goes-on"), "\n").unwrap();
        });
        run_handed_over(&elsewhere);
        let ran = fs::read_to_string(directory.join("ran")).unwrap();
        assert_eq!(ran, "first\nsecond\nthird\n");
        assert!(!elsewhere.exists());
    }

    #[tokio::test]
    async fn a_containers_own_hooks_come_before_those_of_an_earlier_one_and_a_record_without_a_number_counts() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        let poststop = PoststopHooks::below(directory);
        poststop
            .record(&hooks(&["echo first >> ran"]), &state(directory))
            .unwrap();
        // As an earlier version named it.
        let first = poststop.records(None).remove(0);
        fs::rename(first, poststop.directory.join("me.json")).unwrap();
        poststop.record(&third(directory), &state(directory)).unwrap();
        let host = HostNamespace::start_thread().unwrap();
        poststop.run(&host, &ContainerId::new("me").unwrap()).await.unwrap();
        let ran = fs::read_to_string(directory.join("ran")).unwrap();
        assert_eq!(ran, "third\nfirst\n");
        // The directory is still there, and no hook in it is still to be run.
        assert!(!poststop.hand_over(&directory.join("elsewhere")).unwrap());
    }

    #[test]
    fn nothing_is_written_where_there_are_no_hooks() {
        let run_dir = tempfile::tempdir().unwrap();
        let poststop = PoststopHooks::below(run_dir.path());
        poststop.record(&Hooks::default(), &state(run_dir.path())).unwrap();
        assert!(!run_dir.path().join(DIRECTORY).exists());
        let elsewhere = run_dir.path().join("elsewhere");
        assert!(!poststop.hand_over(&elsewhere).unwrap());
        run_handed_over(&elsewhere);
    }
}
