//! Hooks of the container: startContainer (OCI runtime specification, config.md "POSIX-platform Hooks"). A hook is
//! confined like the process that it precedes: its user, capabilities and limits, its cgroup, its seccomp filter. The
//! shim runs the other hooks, on the host.

use std::{
    fs::File,
    io::{Read, Seek, Write},
    os::{fd::OwnedFd, unix::process::CommandExt},
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
    filter::Filter,
    sys,
};

/// What a hook's state is made of, and its environment.
#[derive(Debug, Clone, Copy)]
pub(super) struct HookInput<'a> {
    pub(super) spec: &'a Spec,
    pub(super) id: &'a str,
    /// Path on the host.
    pub(super) bundle: &'a Path,
    /// The process's, for hooks that name none.
    pub(super) environment: &'a [String],
}

/// What a hook takes on that the calling process has not taken on yet: it goes on until the hooks have ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Confinement<'a> {
    /// `cgroup.procs` of the container.
    pub(super) cgroup: &'a OwnedFd,
    pub(super) filter: Option<&'a Filter>,
}

/// Most of a hook's standard error that is handed on, in bytes.
const MAX_COMPLAINT: u64 = 1024;

/// Runs startContainer hooks in order with the container's state on their standard input; the first that fails ends the launch.
pub(super) fn run(hooks: &[Hook], input: HookInput<'_>, confinement: Confinement<'_>) -> Result<()> {
    if hooks.is_empty() {
        return Ok(());
    }
    let HookInput {
        spec,
        id,
        bundle,
        environment,
    } = input;
    let state = StateBuilder::default()
        .version(spec.version().clone())
        .id(id)
        .status(ContainerState::Created)
        .pid(rustix::process::getpid().as_raw_nonzero().get())
        .bundle(bundle)
        .annotations(spec.annotations().clone().unwrap_or_default())
        .build()
        .map_err(|why| Fault::internal("cannot write the container's state for its hooks", why))?;
    let state = serde_json::to_vec(&state).map_err(|why| Fault::internal("cannot write the container's state", why))?;
    hooks
        .iter()
        .try_for_each(|hook| run_one(hook, &file(&state)?, environment, confinement))
}

/// A file in memory, from its beginning. A hook need not read its state, and nobody reads what it says before it ends: a
/// pipe that is full would wait for that.
fn file(content: &[u8]) -> Result<File> {
    let write = || -> std::io::Result<File> {
        let mut file = File::from(rustix::fs::memfd_create("hook", MemfdFlags::CLOEXEC)?);
        file.write_all(content)?;
        file.rewind()?;
        Ok(file)
    };
    write().or_fail(|| "cannot make a file for a hook")
}

fn run_one(hook: &Hook, state: &File, environment: &[String], confinement: Confinement<'_>) -> Result<()> {
    let what = || format!("startContainer hook {}", hook.path().display());
    let said = file(&[])?;
    let mut command = Command::new(hook.path());
    if let Some((name, rest)) = hook.args().as_deref().and_then(<[String]>::split_first) {
        command.arg0(name).args(rest);
    }
    let environment = hook
        .env()
        .as_deref()
        .unwrap_or(environment)
        .iter()
        .filter_map(|variable| variable.split_once('='));
    command
        .env_clear()
        .envs(environment)
        .stdin(Stdio::from(state.try_clone().or_fail(what)?))
        .stdout(Stdio::null())
        .stderr(Stdio::from(said.try_clone().or_fail(what)?));
    sys::die_with_parent(&mut command);
    let cgroup = confinement.cgroup.try_clone().or_fail(what)?;
    sys::confine(&mut command, cgroup, confinement.filter.cloned());
    let mut child = command.spawn().or_refuse(what)?;
    if let Some(seconds) = hook.timeout().and_then(|seconds| u64::try_from(seconds).ok()) {
        end_in_time(&mut child, Duration::from_secs(seconds)).or_refuse(what)?;
    }
    let status = child.wait().or_fail(what)?;
    if status.success() {
        Ok(())
    } else {
        Err(Fault::refused(what(), format_args!("{status}{}", complaint(said))))
    }
}

/// What the hook had to say about its failure.
fn complaint(mut said: File) -> String {
    let mut text = Vec::new();
    match said
        .rewind()
        .and_then(|()| said.take(MAX_COMPLAINT).read_to_end(&mut text))
    {
        Ok(1..) => format!(", stderr: {}", String::from_utf8_lossy(&text).trim_end()),
        // It said nothing, or nothing that can be had: its status stands alone.
        Ok(0) | Err(_) => String::new(),
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
