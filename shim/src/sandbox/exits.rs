//! What the guest reports, and the end of everything: exits become records, wake who waits, and reach containerd.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use containerd_shim_protos::events::task::{TaskExit, TaskOOM};
use containerd_shim_protos::topics::{TASK_EXIT_EVENT_TOPIC, TASK_OOM_EVENT_TOPIC};
use protocol::agent::event::What;
use protocol::agent::{ProcessExit, ProcessId};

use super::noise::complain;
use super::process::{Exit, Phase, Process, ProcessName};
use super::{KILLED, Sandbox, Slot, ended};
use crate::agent_client::printable;
use crate::events::timestamp;
use crate::id::{ContainerId, ExecId};
use crate::streams::OutputLengths;
use crate::vm::Ending;

/// For what the connections of a dead VM still hold.
const LAST_WORDS: Duration = Duration::from_secs(1);

impl Sandbox {
    /// Handles one event of the guest. An answer means that the VM has to end.
    pub(super) fn handle(self: &Arc<Self>, event: What) -> Option<Ending> {
        match event {
            What::Exit(exit) => self.exited(&exit),
            What::Oom(oom) => match ContainerId::new(&oom.container_id).map(|id| self.container(&id).map(|_| id)) {
                Ok(Ok(id)) => self.publish_oom(&id),
                _ => complain!("the guest reports an OOM of a container that does not exist"),
            },
            What::Fatal(reason) => return Some(ended(&format!("the agent gave up: {}", printable(&reason, 2048)))),
            // The generated enum is open for variants of a newer agent.
            _ => complain!("the guest reports something unknown"),
        }
        None
    }

    fn publish_oom(&self, id: &ContainerId) {
        let event = TaskOOM {
            container_id: id.to_string(),
            ..Default::default()
        };
        self.events.publish(TASK_OOM_EVENT_TOPIC, &event);
    }

    fn exited(self: &Arc<Self>, exit: &ProcessExit) {
        let Some(process) = exit.process.as_ref().and_then(|name| self.reported(name)) else {
            let forwarded = exit
                .process
                .as_ref()
                .is_some_and(|name| self.forward_ended(name, exit.stdout_length));
            if forwarded {
                return;
            }
            complain!("the guest reports the exit of a process that does not exist");
            return;
        };
        let lengths = OutputLengths {
            stdout: Some(exit.stdout_length),
            stderr: Some(exit.stderr_length),
            patience: self.patience,
        };
        // By the host's clock, as every other time that leaves the shim: a container may set the guest's (CAP_SYS_TIME).
        let at = SystemTime::now();
        self.finish(
            process,
            Exit {
                status: exit.status & 0xff,
                at,
            },
            lengths,
        );
    }

    /// The process that the guest names, also one whose creation is under way.
    fn reported(&self, name: &ProcessId) -> Option<Arc<Process>> {
        let container = ContainerId::new(&name.container_id).ok()?;
        if let Some(console) = self.console(&container) {
            return name.exec_id.is_empty().then_some(console);
        }
        let slots = self.slots();
        match slots.get(&container)? {
            Slot::Creating(init) => name.exec_id.is_empty().then(|| Arc::clone(init)),
            Slot::Ready(container) if name.exec_id.is_empty() => Some(Arc::clone(&container.init)),
            Slot::Ready(container) => container.execs().get(&ExecId::new(&name.exec_id).ok()?).cloned(),
        }
    }

    /// Brings a process to its end: its output first, then the event and the record. The first report counts.
    pub(super) fn finish(self: &Arc<Self>, process: Arc<Process>, exit: Exit, lengths: OutputLengths) {
        if !process.claim_exit() {
            return;
        }
        let sandbox = Arc::clone(self);
        tokio::spawn(async move {
            if matches!(process.reach(|phase| phase != Phase::Busy).await, Phase::Stopped(_)) {
                // Its creation failed: containerd has been told so.
                return;
            }
            if let Some(streams) = process.drop_streams() {
                streams.finish(lengths).await;
            }
            if process.name.exec.is_none() {
                // containerd expects the execs of a container to end before it.
                for exec in sandbox.started_execs(&process.name) {
                    if tokio::time::timeout(sandbox.patience, exec.stopped()).await.is_err() {
                        tracing::warn!(exec = %exec.name, "the container has ended and the exec's exit is not reported");
                        sandbox.exit_now(
                            &exec,
                            Exit {
                                status: KILLED,
                                at: exit.at,
                            },
                        );
                    }
                }
            }
            sandbox.exit_now(&process, exit);
            if process.name.exec.is_none() {
                sandbox.sizes.forget(&process.name.container);
                sandbox.settle();
            }
        });
    }

    fn started_execs(&self, name: &ProcessName) -> Vec<Arc<Process>> {
        let Ok(container) = self.container(&name.container) else {
            return Vec::new();
        };
        let execs = container.execs();
        let started = execs
            .values()
            .filter(|exec| matches!(exec.phase(), Phase::Running | Phase::Busy));
        started.cloned().collect()
    }

    fn exit_now(&self, process: &Process, exit: Exit) {
        if self.console(&process.name.container).is_some() {
            process.set_phase(Phase::Stopped(exit));
            return;
        }
        let event = TaskExit {
            container_id: process.name.container.to_string(),
            // containerd's shims give the container's id for its first process.
            id: process
                .name
                .exec
                .as_ref()
                .map_or(process.name.container.as_str(), ExecId::as_str)
                .to_owned(),
            pid: self
                .container(&process.name.container)
                .map_or_else(|_| self.pid(), |container| self.pid_of(&container)),
            exit_status: exit.status,
            exited_at: Some(timestamp(exit.at)).into(),
            ..Default::default()
        };
        process.set_phase_telling(Phase::Stopped(exit), || {
            self.events.publish(TASK_EXIT_EVENT_TOPIC, &event);
        });
    }

    /// The VM is gone: everything that ran has been killed.
    pub(super) fn end_all(self: &Arc<Self>, ending: &Ending, at: SystemTime) {
        let containers: Vec<_> = {
            let slots = self.slots();
            let ready = slots.values().filter_map(|slot| match slot {
                Slot::Ready(container) => Some(Arc::clone(container)),
                // Whoever creates it is told by the agent's broken connection.
                Slot::Creating(_) => None,
            });
            ready.collect()
        };
        let exit = Exit { status: KILLED, at };
        let lengths = OutputLengths {
            stdout: None,
            stderr: None,
            patience: LAST_WORDS,
        };
        for console in self.all_consoles() {
            self.finish(console, exit, lengths);
        }
        for container in containers {
            if ending.out_of_memory {
                self.publish_oom(&container.id);
            }
            let execs: Vec<_> = container.execs().values().cloned().collect();
            for exec in execs {
                self.finish(exec, exit, lengths);
            }
            self.finish(Arc::clone(&container.init), exit, lengths);
        }
    }
}
