//! Handles the end of a process, up to its published exit.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use protocol::agent::{ProcessExit, ProcessId};
use tokio::sync::{oneshot, watch};

use super::{Container, Life, Slot};
use crate::common::ids::ExecId;
use crate::connections::streams::Drained;
use crate::container::reaper::Exit;

struct Ended {
    drained: Drained,
    published: watch::Sender<bool>,
    /// The signal that it was meant to die of.
    ended_by: Option<u32>,
}

impl Container {
    /// Waits for the process to be reaped and drained, then publishes its exit. The first process takes the others with
    /// it, and their exits come before its own.
    pub(super) async fn supervise(self: Arc<Self>, exec: ExecId, exit: oneshot::Receiver<Exit>) {
        let Ok(exit) = exit.await else {
            tracing::error!(container = %self.id, process = %exec, "nobody reaps any more");
            return;
        };
        let Some(Ended {
            drained,
            published,
            ended_by,
        }) = self.ended(&exec)
        else {
            return;
        };
        if exec == ExecId::Init {
            self.end_the_others().await;
        }
        let (stdout_length, stderr_length) = drained.lengths().await;
        self.oom.report();
        let at = exit.at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let status = ended_by.map_or(exit.status, |signal| 128 + signal);
        tracing::info!(container = %self.id, process = %exec, status, "ended");
        self.services.events.exit(ProcessExit {
            process: Some(ProcessId {
                container_id: self.id.as_str().to_owned(),
                exec_id: exec.as_str().to_owned(),
                ..ProcessId::default()
            })
            .into(),
            status,
            exited_at_ns: u64::try_from(at.as_nanos()).unwrap_or(u64::MAX),
            stdout_length,
            stderr_length,
            ..ProcessExit::default()
        });
        published.send_replace(true);
    }

    /// Notes that a process is dead. Its number may mean another one from now on.
    fn ended(&self, exec: &ExecId) -> Option<Ended> {
        let mut state = self.lock();
        if *exec == ExecId::Init {
            state.life = Life::Stopped;
            self.stopped.send_replace(true);
        }
        let Some(Slot::Process(process)) = state.processes.get_mut(exec) else {
            return None;
        };
        process.ended = true;
        Some(Ended {
            drained: process.streams.process_ended(),
            published: process.published.clone(),
            ended_by: process.ended_by.get().copied(),
        })
    }

    /// Kills what the first process has left and waits for the exits of the execs.
    async fn end_the_others(&self) {
        if let Err(error) = self.cgroup.kill() {
            tracing::error!(container = %self.id, error = %base::chain(&error), "cannot kill what is left");
        }
        let others: Vec<watch::Receiver<bool>> = {
            let state = self.lock();
            for (_, process) in state.live() {
                // One that is still outside the container's cgroup. ESRCH: dead, and about to be noticed.
                let _ = process.signal(libc::SIGKILL);
            }
            let others = state.processes.iter().filter(|(exec, _)| **exec != ExecId::Init);
            others
                .filter_map(|(_, slot)| match slot {
                    Slot::Process(process) => Some(process.published.subscribe()),
                    Slot::Launching(_) => None,
                })
                .collect()
        };
        for mut published in others {
            // An error: it has been deleted, hence published.
            let _ = published.wait_for(|published| *published).await;
        }
    }
}
