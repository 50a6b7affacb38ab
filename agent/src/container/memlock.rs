//! How much memory a process of the container may lock.

use protocol::agent::MemlockReport;
use rustix::process::Pid;
use tatami_agent::memlock::{self, ProbeError};

use super::Container;
use crate::error::Error;
use crate::ids::ExecId;

/// One probe at a time: it changes a sysctl for a moment.
static PROBING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

impl Container {
    /// Reports on a process, as [`Container::processes`] numbers it, or on the first one (0), and probes with so many pages.
    ///
    /// # Errors
    /// There is no such process, or it cannot be probed.
    pub(crate) async fn memlock(&self, pid: u32, pages: u32) -> Result<MemlockReport, Error> {
        let probing = PROBING.lock().await;
        let pid = self.member(pid)?;
        let failed = |source| Error::Memlock {
            id: self.id.clone(),
            source,
        };
        let probe = tokio::task::spawn_blocking(move || {
            // Held to the probe's end, also where nobody waits for its result any more.
            let _probing = probing;
            memlock::report(pid, pages)
        });
        let report = probe
            .await
            .map_err(|error| self.system("probe")(std::io::Error::other(error)))?;
        let report = report.map_err(failed)?;
        // The number may have come to mean another process meanwhile, of another container.
        self.member(report.pid)?;
        Ok(report)
    }

    /// The process of that number, if it is one of the container's.
    fn member(&self, pid: u32) -> Result<i32, Error> {
        let state = self.lock();
        let init = self.process(&state, &ExecId::Init)?;
        if init.ended {
            return Err(Error::Finished(self.id.clone(), ExecId::Init));
        }
        let init = init.pid.as_raw();
        if pid == 0 || pid == init.unsigned_abs() {
            return Ok(init);
        }
        let all = self.cgroup.pids().map_err(|error| self.in_cgroup(error))?;
        let number = pid.cast_signed();
        if all.iter().any(|one| Pid::as_raw(Some(*one)) == number) {
            return Ok(number);
        }
        Err(Error::Memlock {
            id: self.id.clone(),
            source: ProbeError::Foreign(pid),
        })
    }
}
