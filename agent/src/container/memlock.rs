//! How much memory a process of the container may lock.

use protocol::agent::MemlockReport;
use rustix::process::Pid;
use tatami_agent::memlock::{self, ProbeError};

use super::Container;
use crate::common::blocking;
use crate::common::ids::ExecId;
use crate::error::Error;

/// One probe at a time: it changes a sysctl for a moment.
static PROBING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

impl Container {
    /// Reports on a process, as the PID namespace of the first process numbers it, or on the first one (0), and probes with so many pages.
    ///
    /// # Errors
    /// There is no such process, or it cannot be probed.
    pub(crate) async fn memlock(&self, pid: u32, pages: u32) -> Result<MemlockReport, Error> {
        let probing = PROBING.lock().await;
        let (pid, seen) = self.member(pid)?;
        let failed = |source| Error::Memlock {
            id: self.id.clone(),
            source,
        };
        let probe = blocking::run(move || {
            // Held to the probe's end, also where nobody waits for its result any more.
            let _probing = probing;
            memlock::report(pid, pages)
        });
        let report = probe.await.map_err(self.system("probe"))?;
        let mut report = report.map_err(failed)?;
        // The number may have come to mean another process meanwhile.
        if self.member(seen)?.0 != pid {
            return Err(self.foreign(seen));
        }
        report.pid = seen;
        Ok(report)
    }

    /// The process that has that number in the container, as the guest numbers it and as the container does; 0: the first process.
    fn member(&self, pid: u32) -> Result<(i32, u32), Error> {
        let state = self.lock();
        let init = self.process(&state, &ExecId::Init)?;
        if init.ended {
            return Err(Error::Finished(self.id.clone(), ExecId::Init));
        }
        let init = init.pid.as_raw();
        // The numbers of a process begin with the guest's own, and end with that of the namespace that it is in.
        let own = memlock::numbers(init).map_err(|error| self.system("read the numbers of a process")(error))?;
        let level = own.len().saturating_sub(1);
        if pid == 0 || own.last() == Some(&pid) {
            return Ok((init, own.last().copied().unwrap_or(0)));
        }
        let all = self.cgroup.pids().map_err(|error| self.in_cgroup(error))?;
        let mut all = all.into_iter().map(|one| Pid::as_raw(Some(one)));
        // One that cannot be read has ended.
        let found = all.find(|one| memlock::numbers(*one).is_ok_and(|numbers| numbers.get(level) == Some(&pid)));
        found.map(|guests| (guests, pid)).ok_or_else(|| self.foreign(pid))
    }

    fn foreign(&self, pid: u32) -> Error {
        Error::Memlock {
            id: self.id.clone(),
            source: ProbeError::Foreign(pid),
        }
    }
}
