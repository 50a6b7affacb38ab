//! Deletions: of containers and of execs, in the guest and on the host.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use containerd_shim_protos::events::task::TaskDelete;
use containerd_shim_protos::topics::TASK_DELETE_EVENT_TOPIC;
use ttrpc::Code;

use super::process::{Exit, Phase, Process, ProcessName};
use super::verbs::{SIGKILL, failed};
use super::{Container, Sandbox};
use crate::agent_client::AgentError;
use crate::error::{Error, chain};
use crate::events::timestamp;

/// For a process that was never started to die of SIGKILL.
const KILL: Duration = Duration::from_secs(10);

impl Sandbox {
    /// Forgets a process that does not run. The answer is its pid and its exit.
    ///
    /// # Errors
    /// There is no such process, it runs, or what it held cannot be freed.
    pub async fn delete(self: &Arc<Self>, name: &ProcessName) -> Result<(u32, Exit), Error> {
        let (container, process) = self.process(name)?;
        let sandbox = Arc::clone(self);
        let work = tokio::spawn(async move {
            let _changes = container.changes.lock().await;
            // Another deletion may have been faster, and the name may be somebody else's by now.
            if !sandbox
                .process(&process.name)
                .is_ok_and(|(_, now)| Arc::ptr_eq(&now, &process))
            {
                return Err(Error::NotFound {
                    subject: process.name.to_string(),
                });
            }
            match process.phase() {
                Phase::Created | Phase::Stopped(_) => {}
                phase => return Err(process.not_allowed("delete", phase)),
            }
            if process.name.exec.is_some() {
                sandbox.delete_exec(&container, &process).await
            } else {
                sandbox.delete_container(&container).await
            }
        });
        work.await.unwrap_or_else(|_| {
            Err(Error::Interrupted {
                subject: name.to_string(),
            })
        })
    }

    async fn delete_exec(&self, container: &Container, process: &Process) -> Result<(u32, Exit), Error> {
        let exit = match process.phase() {
            Phase::Stopped(exit) => exit,
            // Never started: the guest does not know it.
            _ => Exit {
                status: 0,
                at: std::time::SystemTime::now(),
            },
        };
        self.forget_in_guest(container, process).await?;
        if let Some(exec) = &process.name.exec {
            container.execs().remove(exec);
        }
        Ok((self.pid_of(container), exit))
    }

    async fn delete_container(self: &Arc<Self>, container: &Container) -> Result<(u32, Exit), Error> {
        let process = &container.init;
        if process.phase() == Phase::Created
            && let Ok(agent) = self.agent("delete", "the container")
        {
            // It waits at its gate for a start that will not come.
            if let Err(error) = self.kill_surely(&agent, &process.name, true).await {
                tracing::debug!(container = %container.id, %error, "there is nothing to kill");
            }
            // Its exit is reported as any other; if it is not, the deletion in the guest says why.
            let _ = tokio::time::timeout(KILL, process.stopped()).await;
        }
        // It unmounts what is on disks: they are clean when they are unplugged, and that is before the answer.
        self.forget_in_guest(container, process).await?;
        self.sizes.forget(&container.id);
        self.settle();
        self.release_disks(&container.id).await;
        process.drop_streams();
        self.host.detach(&container.id).await.map_err(|source| Error::Host {
            operation: "unmount the files of",
            subject: process.name.to_string(),
            source,
        })?;
        let pid = self.pid_of(container);
        let exit = match process.phase() {
            Phase::Stopped(exit) => exit,
            _ => {
                let exit = Exit {
                    status: 128 + SIGKILL,
                    at: std::time::SystemTime::now(),
                };
                // Wakes who waits.
                process.set_phase(Phase::Stopped(exit));
                exit
            }
        };
        // OCI runtime spec, lifecycle: one that fails is logged, and the deletion goes on.
        if let Err(error) = self.host.run_poststop_hooks(&container.id).await {
            tracing::warn!(container = %container.id, error = chain(&error), "a poststop hook failed");
        }
        self.slots().remove(&container.id);
        let event = TaskDelete {
            container_id: container.id.to_string(),
            pid,
            exit_status: exit.status,
            exited_at: Some(timestamp(exit.at)).into(),
            ..Default::default()
        };
        self.events.publish(TASK_DELETE_EVENT_TOPIC, &event);
        Ok((pid, exit))
    }

    async fn forget_in_guest(&self, container: &Container, process: &Process) -> Result<(), Error> {
        // Without a VM there is nothing to forget.
        let Ok(agent) = self.agent("delete", "the process") else {
            return Ok(());
        };
        let source = match agent.delete(&process.name.to_agent()).await {
            Ok(_)
            | Err(AgentError::Refused {
                code: Code::NOT_FOUND, ..
            }) => return Ok(()),
            // The VM has just ended: the same.
            Err(AgentError::Broken(_)) => return Ok(()),
            Err(source) => source,
        };
        // A container that has stopped must be deletable, but neither an exec nor a neighbour that may be well is worth the VM:
        // those are told to try again. So is whoever deletes the last one, once: what is on its disks may be saved yet.
        let hangs = matches!(source, AgentError::TimedOut(_));
        let again = container.undeletable.swap(true, Ordering::AcqRel);
        if process.name.exec.is_none() && self.slots().len() == 1 && (hangs || again) {
            self.give_up(format!("{source} (deletion of {})", process.name)).await;
            return Ok(());
        }
        Err(failed("delete", &process.name)(source))
    }
}
