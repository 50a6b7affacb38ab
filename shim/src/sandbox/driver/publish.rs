//! Passes the guest's reports to the state machine, and events to containerd.

use std::sync::Arc;
use std::time::SystemTime;

use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIO, TaskOOM, TaskPaused, TaskResumed,
    TaskStart,
};
use containerd_shim_protos::topics::{
    TASK_CREATE_EVENT_TOPIC, TASK_DELETE_EVENT_TOPIC, TASK_EXEC_ADDED_EVENT_TOPIC, TASK_EXEC_STARTED_EVENT_TOPIC,
    TASK_EXIT_EVENT_TOPIC, TASK_OOM_EVENT_TOPIC, TASK_PAUSED_EVENT_TOPIC, TASK_RESUMED_EVENT_TOPIC,
    TASK_START_EVENT_TOPIC,
};
use guest::vm::Ending;
use guest::warn_rate_limited;
use lifecycle::{Event, Exit, Input, Output};
use protocol::agent::event::What;
use protocol::agent::{ProcessExit, ProcessId};

use crate::events::timestamp;
use crate::id::{ContainerId, ExecId};
use crate::sandbox::records::container::Container;
use crate::sandbox::records::process::{Process, ProcessName};
use crate::sandbox::vm::boot::gave_up;
use crate::sandbox::{Sandbox, ended};

impl Sandbox {
    /// Handles one event of the guest. An answer means that the VM has to end.
    pub(in crate::sandbox) async fn handle(self: &Arc<Self>, event: What) -> Option<Ending> {
        match event {
            What::Exit(exit) => self.exited(&exit).await,
            What::Oom(oom) => match ContainerId::new(&oom.container_id).map(|id| self.container(&id)) {
                Ok(Ok(container)) if container.tells_of_oom() => {
                    self.publish(&container, &container.init, Event::OutOfMemory)
                }
                Ok(Ok(container)) => {
                    warn_rate_limited!(container = %container.id, "the guest reports more OOM kills than containerd is told of")
                }
                _ => warn_rate_limited!("the guest reports an OOM of a container that does not exist"),
            },
            What::Fatal(reason) => return Some(ended(&gave_up(&reason))),
            // The generated enum is open for variants of a newer agent.
            _ => warn_rate_limited!("the guest reports something unknown"),
        }
        None
    }

    async fn exited(self: &Arc<Self>, exit: &ProcessExit) {
        let Some((id, name)) = exit.process.as_ref().and_then(|id| Some((id, named(id)?))) else {
            warn_rate_limited!("the guest reports the exit of a process that does not exist");
            return;
        };
        // By the host's clock, as every other time that leaves the shim: a container may set the guest's (CAP_SYS_TIME).
        let at = SystemTime::now();
        let status = exit.status & 0xff;
        let output = Output {
            stdout: Some(exit.stdout_length),
            stderr: Some(exit.stderr_length),
        };
        let exit = Exit { status, at };
        if let Some(console) = self.console(&name.container) {
            if name.exec.is_none() {
                self.console_exited(console, exit, output);
            }
        } else if id.container_id != self.id.as_str()
            || !self.forwards.ended(&id.exec_id, output.stdout.unwrap_or_default())
        {
            self.tell(Input::Exited(name, exit, output)).await;
        }
    }

    /// Queues the event for containerd.
    pub(in crate::sandbox) fn publish(&self, container: &Container, process: &Process, event: Event) {
        let container_id = container.id.to_string();
        let exec_id = process.name.exec_id().to_owned();
        let pid = self.pid_of(container);
        match event {
            Event::Created => self.publish_created(container, pid),
            Event::Added => {
                let added = TaskExecAdded {
                    container_id,
                    exec_id,
                    ..Default::default()
                };
                self.events.publish(TASK_EXEC_ADDED_EVENT_TOPIC, &added);
            }
            Event::Started if process.name.exec.is_some() => {
                let started = TaskExecStarted {
                    container_id,
                    exec_id,
                    pid,
                    ..Default::default()
                };
                self.events.publish(TASK_EXEC_STARTED_EVENT_TOPIC, &started);
            }
            Event::Started => {
                let started = TaskStart {
                    container_id,
                    pid,
                    ..Default::default()
                };
                self.events.publish(TASK_START_EVENT_TOPIC, &started);
            }
            Event::Paused => {
                let paused = TaskPaused {
                    container_id,
                    ..Default::default()
                };
                self.events.publish(TASK_PAUSED_EVENT_TOPIC, &paused);
            }
            Event::Resumed => {
                let resumed = TaskResumed {
                    container_id,
                    ..Default::default()
                };
                self.events.publish(TASK_RESUMED_EVENT_TOPIC, &resumed);
            }
            Event::OutOfMemory => {
                let oom = TaskOOM {
                    container_id,
                    ..Default::default()
                };
                self.events.publish(TASK_OOM_EVENT_TOPIC, &oom);
            }
            Event::Exited(exit) => {
                let exited = TaskExit {
                    // containerd's shims give the container's id for its first process.
                    id: match &process.name.exec {
                        Some(exec) => exec.to_string(),
                        None => container_id.clone(),
                    },
                    container_id,
                    pid,
                    exit_status: exit.status,
                    exited_at: Some(timestamp(exit.at)).into(),
                    ..Default::default()
                };
                self.events.publish(TASK_EXIT_EVENT_TOPIC, &exited);
            }
            Event::Deleted(exit) => {
                let deleted = TaskDelete {
                    container_id,
                    pid,
                    exit_status: exit.status,
                    exited_at: Some(timestamp(exit.at)).into(),
                    ..Default::default()
                };
                self.events.publish(TASK_DELETE_EVENT_TOPIC, &deleted);
            }
        }
    }

    fn publish_created(&self, container: &Container, pid: u32) {
        let stdio = &container.init.stdio;
        let io = TaskIO {
            stdin: stdio.stdin.clone(),
            stdout: stdio.stdout.clone(),
            stderr: stdio.stderr.clone(),
            terminal: stdio.terminal,
            ..Default::default()
        };
        let created = TaskCreate {
            container_id: container.id.to_string(),
            bundle: container.bundle.display().to_string(),
            rootfs: container.rootfs.clone(),
            io: Some(io).into(),
            pid,
            ..Default::default()
        };
        self.events.publish(TASK_CREATE_EVENT_TOPIC, &created);
    }
}

/// The process that the guest names, if it is a name.
fn named(id: &ProcessId) -> Option<ProcessName> {
    let exec = match id.exec_id.as_str() {
        "" => None,
        exec => Some(ExecId::new(exec).ok()?),
    };
    Some(ProcessName {
        container: ContainerId::new(&id.container_id).ok()?,
        exec,
    })
}

#[cfg(test)]
mod tests {
    use guest::agent_client::printable;
    use protobuf::Message as _;
    use protocol::agent::{Event as Report, HelloRequest, MemoryDemand, ProcessStarted};

    use super::*;
    use crate::sandbox::connections::host_service::Demand;

    fn is_clean(text: &str, longest: usize) {
        let control = |character: char| character.is_control() && character != '\n';
        assert!(text.len() <= longest && !text.contains(control), "{text:?}");
    }

    /// What the agent says by itself, and what is made of it.
    #[test]
    fn fuzz_agent_events() {
        fuzz::run("agent-events", |bytes| {
            match Report::parse_from_bytes(bytes).ok().and_then(|report| report.what) {
                Some(What::Exit(exit)) => {
                    if let Some(name) = exit.process.as_ref().and_then(named) {
                        is_clean(&name.to_string(), 1024);
                    }
                }
                Some(What::Oom(oom)) => drop(ContainerId::new(&oom.container_id)),
                Some(What::Fatal(reason)) => is_clean(&gave_up(&reason), 2100),
                _ => {}
            }
            if let Ok(hello) = HelloRequest::parse_from_bytes(bytes) {
                is_clean(&printable(&hello.kernel_release, 64), 64 + '…'.len_utf8());
            }
            if let Ok(demand) = MemoryDemand::parse_from_bytes(bytes) {
                let (answer, _) = tokio::sync::oneshot::channel();
                let extra = Demand::new(demand.extra_bytes, answer).extra;
                assert!(extra.0 == u32::MAX || extra.bytes() >= demand.extra_bytes);
            }
            let _ = ProcessStarted::parse_from_bytes(bytes);
        });
    }
}
