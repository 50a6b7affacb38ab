//! Hooks that run in the container's namespaces: createContainer and startContainer (OCI runtime specification,
//! config.md "POSIX-platform Hooks"). The others are the host's, and the shim's.

use std::{
    fs::File,
    io::{Seek, Write},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use oci_spec::runtime::{ContainerState, Hook, Spec, StateBuilder};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::MemfdFlags,
    process::{Pid, PidfdFlags, pidfd_open},
};

use super::{
    fault::{Context, Fault, Result},
    sys,
};

/// Runs hooks in order with the container's state on their standard input; the first that fails ends the launch.
pub(super) fn run(
    kind: &str,
    hooks: &[Hook],
    spec: &Spec,
    id: &str,
    bundle: &Path,
    status: ContainerState,
) -> Result<()> {
    if hooks.is_empty() {
        return Ok(());
    }
    let state = StateBuilder::default()
        .version(spec.version().clone())
        .id(id)
        .status(status)
        .pid(rustix::process::getpid().as_raw_nonzero().get())
        .bundle(bundle)
        .annotations(spec.annotations().clone().unwrap_or_default())
        .build()
        .map_err(|why| Fault::internal("cannot write the container's state for its hooks", why))?;
    let state = serde_json::to_vec(&state).map_err(|why| Fault::internal("cannot write the container's state", why))?;
    hooks
        .iter()
        .try_for_each(|hook| run_one(kind, hook, &state_file(&state)?))
}

/// The state as a file: a hook need not read it, and a pipe that is full would wait for it to.
fn state_file(state: &[u8]) -> Result<File> {
    let write = || -> std::io::Result<File> {
        let mut file = File::from(rustix::fs::memfd_create("state", MemfdFlags::CLOEXEC)?);
        file.write_all(state)?;
        file.rewind()?;
        Ok(file)
    };
    write().or_fail(|| "cannot write the container's state for its hooks")
}

fn run_one(kind: &str, hook: &Hook, told: &File) -> Result<()> {
    let what = || format!("{kind} hook {}", hook.path().display());
    let mut command = Command::new(hook.path());
    if let Some((name, rest)) = hook.args().as_deref().and_then(<[String]>::split_first) {
        command.arg0(name).args(rest);
    }
    let environment = hook
        .env()
        .as_deref()
        .unwrap_or_default()
        .iter()
        .filter_map(|variable| variable.split_once('='));
    command
        .env_clear()
        .envs(environment)
        .stdin(Stdio::from(told.try_clone().or_fail(what)?))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    sys::die_with_parent(&mut command);
    let mut child = command.spawn().or_refuse(what)?;
    if let Some(seconds) = hook.timeout().and_then(|seconds| u64::try_from(seconds).ok()) {
        end_in_time(&mut child, Duration::from_secs(seconds)).or_refuse(what)?;
    }
    let status = child.wait().or_fail(what)?;
    if status.success() {
        Ok(())
    } else {
        Err(Fault::refused(what(), status))
    }
}

/// Kills the hook when its time is over before it has ended.
fn end_in_time(child: &mut Child, limit: Duration) -> std::io::Result<()> {
    let pid = i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .ok_or(std::io::ErrorKind::InvalidData)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let end = Instant::now() + limit;
    loop {
        let left = Timespec::try_from(end.saturating_duration_since(Instant::now())).map_err(std::io::Error::other)?;
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left)) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(0) => {
                child.kill()?;
                child.wait()?;
                return Err(std::io::Error::other(format!(
                    "did not end within {} s",
                    limit.as_secs()
                )));
            }
            other => return other.map(drop).map_err(Into::into),
        }
    }
}
