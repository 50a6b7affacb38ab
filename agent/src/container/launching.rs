//! Starts processes in a container: create, start, exec.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::Pid;
use oci_spec::runtime::{LinuxNamespaceType, Process as ProcessSpec};
use protocol::agent::Stdio;
use tatami_agent::launch::{LaunchError, LaunchRequest, Launched, Target, launch};
use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

use super::{Container, Life, Slot, Verb};
use crate::cgroup;
use crate::common::ids::ExecId;
use crate::common::timeouts::scaled;
use crate::connections::streams::{Prepared, StdioError, Streams};
use crate::container::process::Process;
use crate::container::reaper::{Exit, Launching};
use crate::error::Error;

/// Timeout for a process to end whose program cannot be executed.
const EXIT_TIMEOUT: Duration = Duration::from_secs(5);

/// A namespace that a new container joins.
pub(crate) type Joined = (LinuxNamespaceType, OwnedFd);

/// A launched process that is not yet known to its container.
struct Newborn {
    pid: Pid,
    pidfd: Option<OwnedFd>,
    exit: oneshot::Receiver<Exit>,
}

/// The name of an exec that is taken: given back when dropped, unless a process has come of it.
struct Reserved<'a>(&'a Container, &'a ExecId);

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        if matches!(state.processes.get(self.1), Some(Slot::Launching(_))) {
            state.processes.remove(self.1);
        }
    }
}

impl Container {
    /// Starts the first process up to the gate. `bundle` is the host's.
    ///
    /// # Errors
    /// The specification cannot be carried out.
    pub(crate) async fn create(
        self: &Arc<Self>,
        stdio: &Stdio,
        join: Vec<Joined>,
        bundle: PathBuf,
    ) -> Result<u32, Error> {
        let target = Target::Container {
            spec: self.spec.clone(),
            join,
        };
        let (prepared, stdio) = self.prepare(&ExecId::Init, stdio).await?;
        let launching = self.services.reaper.launching();
        let launched = launch(LaunchRequest {
            bundle,
            ..self.request(target, stdio)?
        })
        .await
        .map_err(|source| self.launch_error(source))?;
        let newborn = self.register(&launching, launched.pid)?;
        let streams = self.start_streams(&ExecId::Init, prepared, launched.terminal)?;
        let pid = newborn.pid;
        {
            let mut state = self.lock();
            state.life = Life::Created(launched.gate);
            let process = Process::new(pid, newborn.pidfd, streams);
            state.processes.insert(ExecId::Init, Slot::Process(Box::new(process)));
        }
        tokio::spawn(Arc::clone(self).supervise(ExecId::Init, newborn.exit));
        Ok(pid.as_raw().unsigned_abs())
    }

    /// Opens the gate.
    ///
    /// # Errors
    /// The program cannot be executed: the container is stopped then, and its exit is published.
    pub(crate) async fn start(&self) -> Result<(), Error> {
        let gate = {
            let mut state = self.lock();
            self.check(&state, Verb::Start)?;
            match std::mem::replace(&mut state.life, Life::Starting) {
                Life::Created(gate) => gate,
                other => {
                    state.life = other;
                    let phase = state.life.phase();
                    return Err(Error::Phase {
                        id: self.id.clone(),
                        verb: Verb::Start,
                        phase,
                    });
                }
            }
        };
        if let Err(source) = gate.open().await {
            // It is ending. Whoever is told, and deletes it then, must find it stopped.
            let mut stopped = self.stopped.subscribe();
            let _ = timeout(scaled(EXIT_TIMEOUT), stopped.wait_for(|stopped| *stopped)).await;
            return Err(self.launch_error(source));
        }
        let mut state = self.lock();
        // A program that has ended already has left it stopped.
        if matches!(state.life, Life::Starting) {
            state.life = Life::Running;
        }
        Ok(())
    }

    /// Waits until its first process has ended.
    pub(crate) async fn await_end(&self) {
        // An error: the container is gone.
        let _ = self.stopped.subscribe().wait_for(|stopped| *stopped).await;
    }

    /// Adds a process and executes its program. Dropped, or overtaken by SIGKILL or by the container's end, it leaves nothing.
    ///
    /// # Errors
    /// The name is taken, the container does not run, or the program cannot be executed.
    pub(crate) async fn exec(self: &Arc<Self>, exec: ExecId, spec: ProcessSpec, stdio: &Stdio) -> Result<u32, Error> {
        let (init, killed) = self.reserve(&exec)?;
        let _reserved = Reserved(self, &exec);
        let mut stopped = self.stopped.subscribe();
        tokio::select! {
            // A program that was told to be killed, and is ready in the same moment, must not get away.
            biased;
            () = killed.notified() => Err(Error::GivenUp(self.id.clone())),
            _ = stopped.wait_for(|stopped| *stopped) => Err(Error::Finished(self.id.clone(), ExecId::Init)),
            result = self.exec_reserved(&exec, init, spec, stdio) => result,
        }
    }

    /// Takes the name. The answer is a pidfd of the first process, and what is notified when the launch is to end.
    fn reserve(&self, exec: &ExecId) -> Result<(OwnedFd, Arc<Notify>), Error> {
        let mut state = self.lock();
        self.check(&state, Verb::Exec)?;
        if state.processes.contains_key(exec) {
            return Err(Error::ProcessExists(self.id.clone(), exec.clone()));
        }
        let init = match &self.process(&state, &ExecId::Init)?.pidfd {
            Some(pidfd) => pidfd.try_clone().map_err(self.system("duplicate a pidfd"))?,
            None => return Err(Error::Finished(self.id.clone(), ExecId::Init)),
        };
        let killed = Arc::new(Notify::new());
        state
            .processes
            .insert(exec.clone(), Slot::Launching(Arc::clone(&killed)));
        Ok((init, killed))
    }

    async fn exec_reserved(
        self: &Arc<Self>,
        exec: &ExecId,
        init: OwnedFd,
        process: ProcessSpec,
        stdio: &Stdio,
    ) -> Result<u32, Error> {
        let (prepared, stdio) = self.prepare(exec, stdio).await?;
        let target = Target::Exec {
            spec: self.spec.clone(),
            process: Box::new(process),
            init,
        };
        let launching = self.services.reaper.launching();
        let launched = launch(self.request(target, stdio)?)
            .await
            .map_err(|source| self.launch_error(source))?;
        let Launched { pid, terminal, gate } = launched;
        let newborn = self.register(&launching, pid)?;
        let streams = self.start_streams(exec, prepared, terminal)?;
        gate.open().await.map_err(|source| self.launch_error(source))?;
        {
            let mut state = self.lock();
            let process = Process::new(newborn.pid, newborn.pidfd, streams);
            if matches!(state.life, Life::Stopped) {
                // The container ended meanwhile; a process in a shared PID namespace has to be told. ESRCH: it knows.
                let _ = process.signal(libc::SIGKILL);
                return Err(Error::Finished(self.id.clone(), ExecId::Init));
            }
            state.processes.insert(exec.clone(), Slot::Process(Box::new(process)));
        }
        tokio::spawn(Arc::clone(self).supervise(exec.clone(), newborn.exit));
        Ok(pid.as_raw().unsigned_abs())
    }

    fn request(&self, target: Target, stdio: tatami_agent::launch::Stdio) -> Result<LaunchRequest, Error> {
        Ok(LaunchRequest {
            id: self.id.as_str().to_owned(),
            target,
            stdio,
            bundle: PathBuf::new(),
            cgroup: self.cgroup.procs().map_err(|error| self.in_cgroup(error))?,
            agent_cgroup: cgroup::agent_procs().map_err(|error| self.in_cgroup(error))?,
        })
    }

    async fn prepare(&self, exec: &ExecId, stdio: &Stdio) -> Result<(Prepared, tatami_agent::launch::Stdio), Error> {
        Prepared::new(self.services.dialer, stdio)
            .await
            .map_err(|source| self.stream_error(exec, source))
    }

    fn start_streams(&self, exec: &ExecId, prepared: Prepared, terminal: Option<OwnedFd>) -> Result<Streams, Error> {
        prepared
            .start(terminal)
            .map_err(|source| self.stream_error(exec, source))
    }

    fn register(&self, launching: &Launching, pid: Pid) -> Result<Newborn, Error> {
        let registered = rustix::process::Pid::from_raw(pid.as_raw())
            .ok_or(std::io::ErrorKind::NotFound.into())
            .and_then(|pid| launching.register(pid))
            .map_err(self.system("watch the new process"))?;
        Ok(Newborn {
            pid,
            pidfd: registered.pidfd,
            exit: registered.exit,
        })
    }

    pub(super) fn stream_error(&self, exec: &ExecId, source: StdioError) -> Error {
        Error::Stream {
            id: self.id.clone(),
            exec: exec.clone(),
            source,
        }
    }

    fn launch_error(&self, source: LaunchError) -> Error {
        Error::Launch {
            id: self.id.clone(),
            source,
        }
    }

    /// A namespace of the first process, by its OCI name.
    ///
    /// # Errors
    /// There is no such type, or the container has ended.
    pub(crate) fn namespace(
        &self,
        for_container: &crate::common::ids::ContainerId,
        kind: &str,
    ) -> Result<Joined, Error> {
        let refuse = |reason: String| Error::Namespace {
            id: for_container.clone(),
            kind: kind.to_owned(),
            of: self.id.to_string(),
            reason,
        };
        let (typ, file) = namespace_file(kind).ok_or_else(|| refuse("no such type".to_owned()))?;
        let state = self.lock();
        self.check(&state, Verb::Join)?;
        // The lock and `ended` keep the number from meaning another process: it is reaped under the reaper's lock only
        // after which the kernel may reuse it, and we look for life again once the file is open.
        let init = self.process(&state, &ExecId::Init)?;
        let path = format!("/proc/{}/ns/{file}", init.pid);
        let opened = File::open(&path).map_err(|error| refuse(format!("{path}: {error}")))?;
        init.signal(0).map_err(|error| refuse(error.to_string()))?;
        Ok((typ, opened.into()))
    }
}

/// The OCI name of a type of namespace, and its file below /proc/PID/ns.
fn namespace_file(kind: &str) -> Option<(LinuxNamespaceType, &'static str)> {
    let typ = LinuxNamespaceType::try_from(kind).ok()?;
    let file = match typ {
        LinuxNamespaceType::Mount => "mnt",
        LinuxNamespaceType::Cgroup => "cgroup",
        LinuxNamespaceType::Uts => "uts",
        LinuxNamespaceType::Ipc => "ipc",
        LinuxNamespaceType::User => "user",
        LinuxNamespaceType::Pid => "pid",
        LinuxNamespaceType::Network => "net",
        LinuxNamespaceType::Time => "time",
    };
    Some((typ, file))
}
