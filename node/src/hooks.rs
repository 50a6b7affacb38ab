//! The hooks that the OCI runtime runs on the host: prestart, createRuntime, createContainer, poststart, poststop.
//!
//! All but createContainer hooks ([`container`]) run in the host's mount namespace and the runtime's other namespaces (OCI runtime spec, config.md,
//! "POSIX-platform Hooks"), with the container's state on stdin.

pub mod container;
mod poststop;
mod users;
mod view;

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::fchown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use base::spawn::Program;
use base::tail::Tail;
use oci_spec::runtime::{Hook, Hooks};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use crate::host::host_ns::{HostNamespace, HostNamespaceError};
use crate::host::sys;

use view::View;

pub use poststop::{PoststopHooks, run_handed_over};

/// How much of a failed hook's output goes into the error, in bytes.
const OUTPUT_MAX: usize = 1000;

/// Bytes that a pipe can hold (`pipe-max-size`, proc_sys_fs(5)).
const LARGEST_PIPE: usize = 1 << 20;

/// When a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookPoint {
    /// prestart, then createRuntime: the VM's process exists, the container's process does not run yet.
    Create,
    /// After the container's process was started.
    Poststart,
}

/// The container's state as the OCI runtime spec has it (runtime.md, "State").
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct HookState {
    /// Version of the OCI runtime spec.
    pub oci_version: String,
    /// The container's id.
    pub id: String,
    /// "creating", "created", "running" or "stopped".
    pub status: Cow<'static, str>,
    /// A process in the container's namespaces as far as they exist on the host: the one that stands for it. 0 once it is gone.
    pub pid: i32,
    /// The absolute path of the bundle.
    pub bundle: PathBuf,
    /// The container's annotations.
    pub annotations: HashMap<String, String>,
}

impl HookState {
    /// Its bundle where it is still there: the working directory of a hook has to exist.
    fn directory(&self) -> &Path {
        if self.bundle.is_dir() {
            &self.bundle
        } else {
            Path::new("/")
        }
    }
}

/// Why a hook did not do its work.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what they are")]
pub enum HookError {
    #[error("cannot start hook {}", path.display())]
    Start {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("hook {} failed with {status}: {output}", path.display())]
    Failed {
        path: PathBuf,
        status: ExitStatus,
        output: String,
    },
    #[error("hook {} did not end within {timeout:?}", path.display())]
    Timeout { path: PathBuf, timeout: Duration },
    /// A createContainer hook has changed what is mounted in the container's root.
    #[error("hook {} has changed what is mounted on {}, which would not reach the guest", path.display(), on.display())]
    Mounted { path: PathBuf, on: PathBuf },
    /// A createContainer hook cannot be shown the container's files.
    #[error("cannot show the container's files at {} to its createContainer hooks", root.display())]
    View {
        root: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Host(#[from] HostNamespaceError),
}

/// Runs the hooks of a point, one after the other, until one fails. Poststop hooks are run by [`PoststopHooks`].
///
/// # Errors
/// A hook failed: no container comes of a create then, and one that was started is stopped (OCI runtime spec 1.3, runtime.md,
/// "Lifecycle").
pub async fn run(host: &HostNamespace, hooks: &Hooks, point: HookPoint, state: &HookState) -> Result<(), HookError> {
    for hook in at(hooks, point) {
        run_one(host, hook, state, None).await?;
    }
    Ok(())
}

// The OCI spec deprecates prestart, but Docker's network arrives by it.
#[allow(deprecated)]
fn at(hooks: &Hooks, point: HookPoint) -> Vec<Hook> {
    let lists = match point {
        HookPoint::Create => vec![hooks.prestart(), hooks.create_runtime()],
        HookPoint::Poststart => vec![hooks.poststart()],
    };
    lists.into_iter().flatten().flatten().cloned().collect()
}

async fn run_one(host: &HostNamespace, hook: Hook, state: &HookState, view: Option<View>) -> Result<(), HookError> {
    let path = hook.path().clone();
    let failed = |source| HookError::Start {
        path: path.clone(),
        source,
    };
    let timeout = hook
        .timeout()
        .and_then(|seconds| u64::try_from(seconds).ok())
        .map(Duration::from_secs);
    let (host, state) = (host.clone(), state.clone());
    // Its start as well: its program may be on a file server that does not answer.
    let ending = async {
        let started = tokio::task::spawn_blocking(move || start(&host, &hook, &state, view.as_ref())).await;
        let mut running = started.unwrap_or_else(|error| Err(failed(io::Error::other(error))))?;
        running.end().await.map_err(failed)
    };
    let ended: Result<_, HookError> = match timeout {
        None => ending.await,
        Some(timeout) => match tokio::time::timeout(timeout, ending).await {
            Ok(ended) => ended,
            Err(_) => return Err(HookError::Timeout { path, timeout }),
        },
    };
    match ended? {
        (status, _) if status.success() => Ok(()),
        (status, output) => Err(HookError::Failed { path, status, output }),
    }
}

/// Starts it, a createContainer hook in its view. Blocks.
fn start(host: &HostNamespace, hook: &Hook, state: &HookState, view: Option<&View>) -> Result<Running, HookError> {
    let failed = |source| HookError::Start {
        path: hook.path().clone(),
        source,
    };
    let stdin = temporary(&serde_json::to_vec(state).map_err(|error| failed(error.into()))?).map_err(failed)?;
    let (output, stdout) = io::pipe().map_err(failed)?;
    if let Some(owner) = view.and_then(View::owner) {
        // Who opens it again (`/dev/stderr`) has to be its owner.
        fchown(&stdout, Some(owner.uid), Some(owner.gid)).map_err(failed)?;
    }
    let stderr = stdout.try_clone().map_err(failed)?;
    let program = program(hook).stdin(stdin).stdout(stdout).stderr(stderr);
    let directory = view.map_or_else(|| state.directory(), View::directory);
    let command = program.directory(directory).into_command().map_err(failed)?;
    let bundle = state.bundle.clone();
    let start = move |mut command: Command| match command.spawn() {
        // containerd removes the bundle while the hooks of a sandbox that is gone are run: maybe since it was looked for.
        Err(error) if error.kind() == io::ErrorKind::NotFound && !bundle.is_dir() => command.current_dir("/").spawn(),
        started => started,
    };
    let (child, keeper) = match view {
        None => (host.run(move || start(command))?.map_err(failed)?, None),
        Some(view) => {
            let (child, keeper) = view.spawn(command).map_err(failed)?;
            (child, Some(keeper))
        }
    };
    Ok(Running {
        child: Some(child),
        output: output.into(),
        _keeper: keeper,
    })
}

/// A hook's process. Dropping it before its end ends it and its group: nobody waits any more, whether its time is over or
/// the sandbox is shut down.
struct Running {
    child: Option<Child>,
    output: OwnedFd,
    /// A createContainer hook ends with this, and with the shim.
    _keeper: Option<mpsc::Sender<()>>,
}

impl Running {
    /// Its status and the end of what it has printed. A daemon that it leaves behind is not waited for.
    async fn end(&mut self) -> io::Result<(ExitStatus, String)> {
        let child = self.child.as_mut().ok_or(io::ErrorKind::InvalidInput)?;
        let pid = pid(child).ok_or(io::ErrorKind::InvalidInput)?;
        // A pidfd is readable once the process is dead (pidfd_open(2)).
        let pidfd = sys::watch(pidfd_open(pid, PidfdFlags::empty())?)?;
        let mut output = pipe::Receiver::from_owned_fd(self.output.try_clone()?)?;
        let tail = Tail::new(OUTPUT_MAX);
        let mut buffer = vec![0; 16 << 10];
        let mut is_open = true;
        loop {
            tokio::select! {
                dead = pidfd.readable() => {
                    let _ = dead?;
                    break;
                }
                // An error is an end as well.
                read = output.read(&mut buffer), if is_open => match read {
                    Ok(count @ 1..) => tail.push(&buffer[..count]),
                    Ok(_) | Err(_) => is_open = false,
                }
            }
        }
        // What is left, and no more than a pipe holds: a daemon may write without end.
        for _ in 0..LARGEST_PIPE / buffer.len() {
            match output.try_read(&mut buffer) {
                Ok(count @ 1..) => tail.push(&buffer[..count]),
                Ok(_) | Err(_) => break,
            }
        }
        Ok((child.wait()?, tail.text()))
    }
}

fn pid(child: &Child) -> Option<Pid> {
    i32::try_from(child.id()).ok().and_then(Pid::from_raw)
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        // Not reaped yet, so the number is still the group's.
        if let (Ok(None), Some(group)) = (child.try_wait(), pid(&child)) {
            let _ = kill_process_group(group, Signal::KILL);
            // It may have left its group.
            let _ = child.kill();
            // In an uninterruptible wait it does not die before that ends, and this is a thread of the runtime. Without a thread it stays
            // a zombie until the shim's end.
            let _ = thread::Builder::new()
                .name("hook-reaper".to_owned())
                .spawn(move || child.wait());
        }
    }
}

/// The hook's environment is the one that it names, be it empty; if it names none it is ours, as with runc. A createContainer hook of runc's has the program's then, in which
/// an image can have LD_PRELOAD: it never gets that here. Its score and limits are those that runc
/// leaves it: its caller's, as containerd has started it. Its process group is its own, so that all of it can be ended.
fn program(hook: &Hook) -> Program {
    let args = hook.args().clone().unwrap_or_default();
    let mut program = Program::new(hook.path()).args(args.iter().skip(1));
    if let Some(name) = args.first() {
        program = program.named(name);
    }
    match hook.env() {
        Some(variables) => program.envs(variables.iter().filter_map(|variable| variable.split_once('='))),
        None => program.envs(std::env::vars_os()),
    }
}

/// A file in memory, read from its start. Unlike a pipe it needs nobody at the other end.
fn temporary(content: &[u8]) -> io::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create("hook", rustix::fs::MemfdFlags::CLOEXEC)?);
    file.write_all(content)?;
    file.rewind()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn hooks(script: &str, timeout: i64) -> Hooks {
        let hook = serde_json::json!({
            "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["WHO=hook"], "timeout": (timeout > 0).then_some(timeout)
        });
        serde_json::from_value(serde_json::json!({ "createRuntime": [hook], "poststop": [hook, hook] })).unwrap()
    }

    async fn create(script: &str, timeout: i64, bundle: &Path) -> Result<(), HookError> {
        let state = HookState {
            oci_version: "1.0.2".to_owned(),
            id: "me".to_owned(),
            status: "creating".into(),
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

    /// As runc leaves them: it gives back the limit of open files that its language's runtime has raised, and sets no score.
    #[tokio::test]
    async fn a_hook_has_the_score_and_the_limits_with_which_the_shim_was_started() {
        let bundle = tempfile::tempdir().unwrap();
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile)
            .current
            .unwrap();
        base::spawn::raise_open_files().unwrap();
        create("(cat /proc/self/oom_score_adj; ulimit -n) > found", 30, bundle.path())
            .await
            .unwrap();
        let score = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
        let found = std::fs::read_to_string(bundle.path().join("found")).unwrap();
        assert_eq!(found, format!("{score}{files}\n"));
    }

    #[tokio::test]
    async fn a_flood_of_output_is_kept_in_part_and_a_daemon_is_not_waited_for() {
        let bundle = tempfile::tempdir().unwrap();
        let script = "head -c 3000000 /dev/zero | tr '\\0' x; echo end; sleep 600 & echo $! > pid; exit 3";
        let began = std::time::Instant::now();
        let HookError::Failed { output, .. } = create(script, 60, bundle.path()).await.unwrap_err() else {
            panic!("it did not fail");
        };
        assert!(began.elapsed() < Duration::from_secs(60));
        assert!(output.ends_with("xend") && output.len() <= OUTPUT_MAX, "{output}");
        let daemon = std::fs::read_to_string(bundle.path().join("pid")).unwrap();
        let daemon = daemon.trim().parse().ok().and_then(Pid::from_raw).unwrap();
        rustix::process::kill_process(daemon, Signal::KILL).unwrap();
    }

    #[test]
    fn a_hook_that_names_no_environment_has_ours() {
        let printed = |env: serde_json::Value| {
            let hook = serde_json::json!({ "path": "/usr/bin/env", "env": env });
            let output = program(&serde_json::from_value(hook).unwrap())
                .stdout(std::process::Stdio::piped())
                .into_command()
                .unwrap()
                .output()
                .unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        assert!(printed(serde_json::Value::Null).contains("PATH="));
        assert_eq!(printed(serde_json::json!([])), "");
        assert_eq!(printed(serde_json::json!(["A=b"])), "A=b\n");
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

    /// A file system whose server takes a request and does not answer it: who asks is in an uninterruptible wait (the kernel's
    /// `request_wait_answer`). After `RELEASED` the server ends.
    struct Unanswering(tempfile::TempDir);

    const RELEASED: Duration = Duration::from_secs(20);

    impl Unanswering {
        fn mount() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let mut device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
            let data = format!(
                "fd={},rootmode=40000,user_id=0,group_id=0",
                std::os::fd::AsRawFd::as_raw_fd(&device)
            );
            let data = std::ffi::CString::new(data).unwrap();
            rustix::mount::mount(
                "none",
                directory.path(),
                "fuse",
                rustix::mount::MountFlags::NODEV,
                &*data,
            )
            .unwrap();
            thread::spawn(move || {
                let mut request = vec![0; 64 << 10];
                assert!(device.read(&mut request).unwrap() > 0);
                // FUSE_INIT's answer (fuse_out_header and fuse_init_out of linux/fuse.h): version 7.31, writes of a page.
                let mut answer = vec![0; 80];
                answer[..4].copy_from_slice(&80u32.to_ne_bytes());
                answer[8..16].copy_from_slice(&request[8..16]);
                for (at, number) in [(16, 7u32), (20, 31), (36, 4096)] {
                    answer[at..at + 4].copy_from_slice(&number.to_ne_bytes());
                }
                device.write_all(&answer).unwrap();
                // The first look-up; a second one waits for it.
                assert!(device.read(&mut request).unwrap() > 0);
                thread::sleep(RELEASED);
            });
            Self(directory)
        }
    }

    impl Drop for Unanswering {
        fn drop(&mut self) {
            let _ = rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH);
        }
    }

    #[tokio::test]
    async fn hooks_that_no_signal_reaches_hold_nobody_up() {
        let (bundle, dead) = (tempfile::tempdir().unwrap(), Unanswering::mount());
        let began = std::time::Instant::now();
        for name in ["one", "two"] {
            let script = format!("exec cat {}/{name}", dead.0.path().display());
            let result = create(&script, 1, bundle.path()).await;
            assert!(matches!(result, Err(HookError::Timeout { .. })));
        }
        assert!(began.elapsed() < RELEASED, "a hook was waited for");
    }

    #[tokio::test]
    async fn a_hook_without_a_timeout_ends_when_nobody_waits_any_more() {
        let bundle = tempfile::tempdir().unwrap();
        let pid = bundle.path().join("pid");
        nix::unistd::mkfifo(&pid, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let read = tokio::task::spawn_blocking(move || std::fs::read_to_string(pid));
        let path = bundle.path().to_owned();
        let create = tokio::spawn(async move { create("echo $$ > pid; exec sleep 600", 0, &path).await });
        let pid = read.await.unwrap().unwrap();
        create.abort();
        assert!(create.await.unwrap_err().is_cancelled());
        // SIGKILL is sent when the work is dropped; the kernel ends the process in its own time.
        let stat = Path::new("/proc").join(pid.trim()).join("stat");
        let ended = async {
            while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), ended).await.unwrap();
    }
}
