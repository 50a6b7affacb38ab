//! Operations on an existing container: signals, limits, the freezer, statistics, removal.

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::sync::Arc;

use oci_spec::runtime::LinuxResources;
use protocol::agent::StatsResponse;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{Container, Life, Slot, Verb, limit_own_disks};
use crate::cgroup::Cgroup;
use crate::common::blocking;
use crate::common::ids::ExecId;
use crate::common::sys;
use crate::error::Error;

/// The last signal of Linux (SIGRTMAX, signal(7)).
const LAST_SIGNAL: u32 = 64;

/// Signals that end a container that waits to be started, as they end runc's `runc init`: its first process, this program, is
/// the first of its PID namespace and would not see them (pid_namespaces(7)).
const ENDS_WAITING: [i32; 4] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];

/// Thaws a cgroup when dropped, unless it is to stay frozen.
struct Thawed<'a>(Option<&'a Cgroup>);

impl Drop for Thawed<'_> {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.0.map(Cgroup::thaw) {
            tracing::error!(error = %base::chain(&error), "a pause that was given up cannot be undone");
        }
    }
}

impl Container {
    /// Sends a signal to a process, or to all of the container. SIGKILL ends the launch of an exec, which is not there yet.
    ///
    /// # Errors
    /// The process has ended, or is not there; there is no such signal.
    pub(crate) fn signal(&self, exec: &ExecId, signal: u32, all: bool) -> Result<(), Error> {
        let number = i32::try_from(signal)
            .ok()
            .filter(|number| (1..=LAST_SIGNAL.cast_signed()).contains(number))
            .ok_or_else(|| Error::Range(self.id.clone(), "the signal"))?;
        let state = self.lock();
        if let (Some(Slot::Launching(launch)), libc::SIGKILL) = (state.processes.get(exec), number) {
            launch.notify_one();
        }
        let process = self.process(&state, exec)?;
        if process.ended {
            return Err(Error::Finished(self.id.clone(), exec.clone()));
        }
        self.check(&state, Verb::Signal)?;
        let number = match state.life {
            Life::Created(_) if *exec == ExecId::Init && ENDS_WAITING.contains(&number) => {
                let _ = process.ended_by.set(signal);
                libc::SIGKILL
            }
            _ => number,
        };
        match process.signal(number) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
                return Err(Error::Finished(self.id.clone(), exec.clone()));
            }
            Err(error) => return Err(self.system("send a signal")(error)),
        }
        drop(state);
        if all { self.signal_cgroup(number) } else { Ok(()) }
    }

    fn signal_cgroup(&self, signal: i32) -> Result<(), Error> {
        if signal == libc::SIGKILL {
            return self.cgroup.kill().map_err(|error| self.in_cgroup(error));
        }
        let first: Vec<Pid> = {
            let state = self.lock();
            let known: HashSet<i32> = state.live().map(|(_, process)| process.pid.as_raw()).collect();
            let pids = self.cgroup.pids().map_err(|error| self.in_cgroup(error))?;
            let init = self.process(&state, &ExecId::Init)?.pid.as_raw();
            // The first process has it already; execs of ours get it here like any other.
            pids.into_iter()
                .filter(|pid| pid.as_raw_nonzero().get() != init || !known.contains(&init))
                .collect()
        };
        let held: Vec<_> = first
            .into_iter()
            .filter_map(|pid| Some((pid, pidfd_open(pid, PidfdFlags::empty()).ok()?)))
            .collect();
        // A number that is still listed now that its pidfd is open is the process that was meant.
        let still: HashSet<Pid> = self
            .cgroup
            .pids()
            .map_err(|error| self.in_cgroup(error))?
            .into_iter()
            .collect();
        for (_, pidfd) in held.iter().filter(|(pid, _)| still.contains(pid)) {
            // ESRCH: it has ended.
            let _ = sys::send_signal(pidfd.as_fd(), signal);
        }
        Ok(())
    }

    /// Sets the size of a process's terminal.
    ///
    /// # Errors
    /// It has none, or the size is out of range.
    pub(crate) fn resize(&self, exec: &ExecId, columns: u32, rows: u32) -> Result<(), Error> {
        let (Ok(columns), Ok(rows)) = (u16::try_from(columns), u16::try_from(rows)) else {
            return Err(Error::Range(self.id.clone(), "the size of the terminal"));
        };
        let state = self.lock();
        let process = self.process(&state, exec)?;
        process
            .streams
            .resize(columns, rows)
            .map_err(|source| self.stream_error(exec, source))
    }

    /// Closes a process's stdin after so many bytes.
    ///
    /// # Errors
    /// There is no such process.
    pub(crate) fn close_stdin(&self, exec: &ExecId, length: u64) -> Result<(), Error> {
        let state = self.lock();
        self.process(&state, exec)?.streams.close_stdin(length);
        Ok(())
    }

    /// What it has used. On a thread of its own: the kernel sums up the figures of all cgroups below.
    ///
    /// # Errors
    /// There can be no thread.
    pub(crate) async fn stats(&self) -> Result<StatsResponse, Error> {
        let cgroup = Arc::clone(&self.cgroup);
        let read = blocking::run(move || cgroup.stats()).await;
        read.map_err(self.system("read what it has used"))
    }

    /// Freezes it.
    ///
    /// # Errors
    /// It does not run, or a process cannot be stopped.
    pub(crate) async fn pause(&self) -> Result<(), Error> {
        self.check(&self.lock(), Verb::Pause)?;
        // A caller that has given up hears nothing of a container that stops later.
        let mut undone = Thawed(Some(&self.cgroup));
        self.cgroup.freeze(true).await.map_err(|error| self.in_cgroup(error))?;
        undone.0 = None;
        let mut state = self.lock();
        if matches!(state.life, Life::Running) {
            state.life = Life::Paused;
        }
        Ok(())
    }

    /// Thaws it.
    ///
    /// # Errors
    /// It is not paused.
    pub(crate) async fn resume(&self) -> Result<(), Error> {
        self.check(&self.lock(), Verb::Resume)?;
        self.cgroup.freeze(false).await.map_err(|error| self.in_cgroup(error))?;
        let mut state = self.lock();
        if matches!(state.life, Life::Paused) {
            state.life = Life::Running;
        }
        Ok(())
    }

    /// Changes the limits that are given. On a thread of its own: the kernel reclaims memory meanwhile.
    ///
    /// # Errors
    /// The kernel refuses a value.
    pub(crate) async fn update(&self, mut resources: LinuxResources) -> Result<(), Error> {
        self.check(&self.lock(), Verb::Update)?;
        limit_own_disks(&self.id, &mut resources, &self.disks);
        let cgroup = Arc::clone(&self.cgroup);
        let applied = blocking::run(move || cgroup.apply(&resources)).await;
        let applied = applied.map_err(self.system("change the limits"))?;
        applied.map_err(|error| self.in_cgroup(error))
    }

    /// Forgets an exec that has ended. One that is being launched is given up, and can be deleted a moment later.
    ///
    /// # Errors
    /// It runs, or does not exist.
    pub(crate) fn delete_exec(&self, exec: &ExecId) -> Result<(), Error> {
        let mut state = self.lock();
        if let Some(Slot::Launching(launch)) = state.processes.get(exec) {
            // Nobody wants it any more.
            launch.notify_one();
            return Err(Error::Running(self.id.clone(), exec.clone()));
        }
        if !self.process(&state, exec)?.ended {
            return Err(Error::Running(self.id.clone(), exec.clone()));
        }
        state.processes.remove(exec);
        Ok(())
    }

    /// Removes what a stopped container holds. One that waits to be started is killed first, and its exit published.
    ///
    /// # Errors
    /// It is not stopped, or a process in it cannot be killed.
    pub(crate) async fn delete(&self) -> Result<(), Error> {
        let waiting = {
            let state = self.lock();
            self.check(&state, Verb::Delete)?;
            match state.life {
                Life::Created(_) => Some(self.process(&state, &ExecId::Init)?.published.subscribe()),
                _ => None,
            }
        };
        if let Some(mut published) = waiting {
            self.kill();
            // An error: it has been deleted, hence published.
            let _ = published.wait_for(|published| *published).await;
        }
        self.discard().await
    }

    /// Removes the cgroup and everything in it, and closes all streams.
    ///
    /// # Errors
    /// A process in it cannot be killed.
    pub(crate) async fn discard(&self) -> Result<(), Error> {
        self.cgroup.remove().await.map_err(|error| self.in_cgroup(error))?;
        let processes = std::mem::take(&mut self.lock().processes);
        drop(processes);
        Ok(())
    }

    /// Kills everything in it, whatever it is doing.
    pub(crate) fn kill(&self) {
        let state = self.lock();
        for slot in state.processes.values() {
            if let Slot::Process(process) = slot {
                // ESRCH: it has ended.
                let _ = process.signal(libc::SIGKILL);
            }
        }
        drop(state);
        if let Err(error) = self.cgroup.kill() {
            tracing::warn!(container = %self.id, error = %base::chain(&error), "cannot kill");
        }
    }
}
