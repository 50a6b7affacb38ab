//! The hooks that the OCI runtime runs on the host: prestart, createRuntime, poststart, poststop.
//!
//! They run in the host's mount namespace and the runtime's other namespaces (OCI runtime spec, config.md,
//! "POSIX-platform Hooks"), with the container's state on stdin.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use oci_spec::runtime::{Hook, Hooks};
use serde::Serialize;

use crate::host_ns::{HostNamespace, HostNamespaceError};
use crate::process;

/// How much of a failed hook's output goes into the error, in bytes.
const OUTPUT_MAX: u64 = 1000;

/// When a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookPoint {
    /// prestart, then createRuntime: the VM's process exists, the container's process does not run yet.
    Create,
    /// After the container's process was started.
    Poststart,
    /// After the container was deleted.
    Poststop,
}

/// The container's state as the OCI runtime spec has it (runtime.md, "State").
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct HookState {
    /// Version of the OCI runtime spec.
    pub oci_version: String,
    /// The container.
    pub id: String,
    /// "creating", "created", "running" or "stopped".
    pub status: &'static str,
    /// A process in the container's namespaces as far as they exist on the host: QEMU. 0 once it is gone.
    pub pid: i32,
    /// Absolute.
    pub bundle: PathBuf,
    /// The container's.
    pub annotations: HashMap<String, String>,
}

/// Why a hook did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// It could not be started.
    #[error("cannot start hook {}", path.display())]
    Start {
        /// The program.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It failed.
    #[error("hook {} failed with {status}: {output}", path.display())]
    Failed {
        /// The program.
        path: PathBuf,
        /// Its exit status.
        status: ExitStatus,
        /// The end of what it printed.
        output: String,
    },
    /// It took longer than it may.
    #[error("hook {} did not end within {timeout:?}", path.display())]
    Timeout {
        /// The program.
        path: PathBuf,
        /// What it may take.
        timeout: Duration,
    },
    /// The host's namespace cannot be reached.
    #[error(transparent)]
    Host(#[from] HostNamespaceError),
}

/// Runs all hooks of a point, one after the other. The caller carries the spec's rule: an error at
/// [`HookPoint::Create`] fails the create and ends the series, others are only logged, and here the remaining hooks run
/// all the same.
///
/// # Errors
/// A hook failed: the first one that did.
pub async fn run(host: &HostNamespace, hooks: &Hooks, point: HookPoint, state: &HookState) -> Result<(), HookError> {
    let mut first = Ok(());
    for hook in at(hooks, point) {
        let (host, state, path) = (host.clone(), state.clone(), hook.path().clone());
        let result = tokio::task::spawn_blocking(move || run_one(&host, &hook, &state))
            .await
            .unwrap_or_else(|error| {
                Err(HookError::Start {
                    path,
                    source: io::Error::other(error),
                })
            });
        if result.is_err() && point == HookPoint::Create {
            return result;
        }
        first = first.and(result);
    }
    first
}

// The OCI spec deprecates prestart, but Docker's network arrives by it.
#[allow(deprecated)]
fn at(hooks: &Hooks, point: HookPoint) -> Vec<Hook> {
    let lists = match point {
        HookPoint::Create => vec![hooks.prestart(), hooks.create_runtime()],
        HookPoint::Poststart => vec![hooks.poststart()],
        HookPoint::Poststop => vec![hooks.poststop()],
    };
    lists.into_iter().flatten().flatten().cloned().collect()
}

fn run_one(host: &HostNamespace, hook: &Hook, state: &HookState) -> Result<(), HookError> {
    let path = hook.path().clone();
    let start = |source| HookError::Start {
        path: path.clone(),
        source,
    };
    let stdin = temporary(&serde_json::to_vec(state).map_err(|error| start(error.into()))?).map_err(start)?;
    let output = temporary(&[]).map_err(start)?;
    let (stdout, stderr) = (output.try_clone().map_err(start)?, output.try_clone().map_err(start)?);
    let timeout = hook
        .timeout()
        .and_then(|seconds| u64::try_from(seconds).ok())
        .map(Duration::from_secs);
    let mut command = command(hook);
    command
        .stdin(stdin)
        .stdout(stdout)
        .stderr(stderr)
        .current_dir(&state.bundle);
    let child = host.run(move || command.spawn())?.map_err(start)?;
    let status = wait(child, timeout).map_err(start)?;
    match (status, timeout) {
        (None, timeout) => Err(HookError::Timeout {
            path,
            timeout: timeout.unwrap_or_default(),
        }),
        (Some(status), _) if status.success() => Ok(()),
        (Some(status), _) => Err(HookError::Failed {
            path,
            status,
            output: tail(output),
        }),
    }
}

/// The hook's environment is the one that it names, and nothing of ours. Its process group is its own, so that all of
/// it can be ended.
fn command(hook: &Hook) -> Command {
    let mut command = Command::new(hook.path());
    let args = hook.args().clone().unwrap_or_default();
    if let Some(name) = args.first() {
        command.arg0(name);
    }
    command.args(args.iter().skip(1)).env_clear().process_group(0);
    for variable in hook.env().iter().flatten() {
        if let Some((name, value)) = variable.split_once('=') {
            command.env(name, value);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// Waits for the hook; none if it was killed because its time was over.
fn wait(mut child: Child, timeout: Option<Duration>) -> io::Result<Option<ExitStatus>> {
    let Some(timeout) = timeout else {
        return child.wait().map(Some);
    };
    if process::wait(&child, Instant::now() + timeout)? {
        return child.wait().map(Some);
    }
    if let Some(group) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) {
        // Not reaped yet, so the number is still the group's.
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    child.wait()?;
    Ok(None)
}

/// A file in memory, read from its start. Unlike a pipe it needs nobody at the other end.
fn temporary(content: &[u8]) -> io::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create("hook", rustix::fs::MemfdFlags::CLOEXEC)?);
    file.write_all(content)?;
    file.rewind()?;
    Ok(file)
}

/// The end of what the hook printed.
fn tail(mut output: File) -> String {
    let mut bytes = Vec::new();
    let length = output.metadata().map(|metadata| metadata.len()).unwrap_or_default();
    let start = io::SeekFrom::Start(length.saturating_sub(OUTPUT_MAX));
    let read = output
        .seek(start)
        .and_then(|_| output.take(OUTPUT_MAX).read_to_end(&mut bytes));
    match read {
        Ok(_) => String::from_utf8_lossy(&bytes).trim().to_owned(),
        Err(error) => format!("(its output cannot be read: {error})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hooks(script: &str, timeout: i64) -> Hooks {
        let hook = serde_json::json!({
            "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["WHO=hook"], "timeout": timeout
        });
        serde_json::from_value(serde_json::json!({ "createRuntime": [hook], "poststop": [hook, hook] })).unwrap()
    }

    async fn create(script: &str, timeout: i64, bundle: &std::path::Path) -> Result<(), HookError> {
        let state = HookState {
            oci_version: "1.0.2".to_owned(),
            id: "me".to_owned(),
            status: "creating",
            pid: 42,
            bundle: bundle.to_owned(),
            annotations: HashMap::new(),
        };
        let host = HostNamespace::start_thread().unwrap();
        run(&host, &hooks(script, timeout), HookPoint::Create, &state).await
    }

    #[tokio::test]
    async fn a_hook_gets_the_state_and_only_its_own_environment() {
        let bundle = tempfile::tempdir().unwrap();
        create("cat > state; echo $WHO$HOME > env", 30, bundle.path())
            .await
            .unwrap();
        let state: serde_json::Value =
            serde_json::from_slice(&std::fs::read(bundle.path().join("state")).unwrap()).unwrap();
        assert_eq!(
            (&state["id"], &state["pid"], &state["ociVersion"]),
            (&"me".into(), &42.into(), &"1.0.2".into())
        );
        assert_eq!(std::fs::read_to_string(bundle.path().join("env")).unwrap(), "hook\n");
    }

    #[tokio::test]
    async fn a_hook_that_fails_says_why() {
        let bundle = tempfile::tempdir().unwrap();
        let error = create("echo no network >&2; exit 3", 30, bundle.path())
            .await
            .unwrap_err();
        assert!(error.to_string().contains("no network"), "{error}");
    }

    #[tokio::test]
    async fn a_hook_that_hangs_is_ended() {
        let bundle = tempfile::tempdir().unwrap();
        assert!(matches!(
            create("sleep 600", 1, bundle.path()).await,
            Err(HookError::Timeout { .. })
        ));
    }
}
