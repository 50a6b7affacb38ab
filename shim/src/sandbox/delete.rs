//! The steps of a deletion: in the guest, of disks, of mounts; and the hooks that follow.

use std::time::Instant;

use lifecycle::{Answer, Exit, Failure, Fault, Output, Request};

use super::driver::Payload;
use super::process::{Process, ProcessName};
use super::verbs::failed;
use super::work::{Done, failure};
use super::{Container, Sandbox};
use crate::agent_client::AgentError;
use crate::error::{Error, Shared, chain};
use crate::streams::OutputLengths;

impl Sandbox {
    /// Forgets a process that does not run. The answer is its pid and its exit. Whoever asks while it is being done gets the same answer.
    ///
    /// # Errors
    /// There is no such process, it runs, or what it held cannot be freed: then it can be asked for again.
    pub async fn delete(&self, name: &ProcessName) -> Result<(u32, Exit), Shared> {
        let (container, _) = self.process(name)?;
        match self.ask(Request::Delete(name.clone()), Payload::Nothing).await {
            Answer::Deleted(exit) => Ok((self.pid_of(&container), exit)),
            refused => Err(self.refused(refused)),
        }
    }

    /// Has the guest forget a container or an exec. It unmounts what is on disks, which are clean then; that takes as long as there is
    /// to write, and goes on as long as something is written.
    pub(super) async fn delete_in_guest(&self, name: &ProcessName) -> Done {
        let agent = self.agent("delete", &name.to_string()).map_err(failure)?;
        let limit = self.timeouts.no_progress();
        let mut last = (None, Instant::now());
        loop {
            let error = match agent.delete(&name.to_agent()).await {
                Ok(answer) if answer.finished => return Ok(()),
                Ok(answer) if last.0 != Some(answer.progress) => {
                    last = (Some(answer.progress), Instant::now());
                    continue;
                }
                Ok(_) => AgentError::TimedOut(limit),
                Err(error @ AgentError::TimedOut(_)) => error,
                Err(error) => return Err(failure(failed("delete", name)(error))),
            };
            if last.1.elapsed() >= limit {
                return Err(Failure {
                    fault: Fault::Stalled,
                    error: failed("delete", name)(error).into(),
                });
            }
        }
    }

    /// Removes a container's mounts.
    pub(super) async fn detach(&self, container: &crate::id::ContainerId) -> Result<(), Error> {
        let detached = self.host.detach(container).await;
        detached.map_err(|source| Error::Host {
            operation: "unmount the files of",
            subject: format!("container {container}"),
            source,
        })
    }

    /// OCI runtime spec, lifecycle: a poststop hook that fails is logged, and the deletion goes on.
    pub(super) async fn run_stop_hooks(&self, container: &Container) {
        if let Err(error) = self.host.run_poststop_hooks(&container.id).await {
            tracing::warn!(container = %container.id, error = chain(&error), "a poststop hook failed");
        }
    }

    /// Passes on what is left of a process's output.
    pub(super) async fn finish_streams(&self, process: &Process, output: Output) {
        let known = output.stdout.is_some() || output.stderr.is_some();
        let patience = match known || self.is_ready() {
            true => self.timeouts.patience(),
            false => self.timeouts.last_output(),
        };
        if let Some(streams) = process.drop_streams() {
            let lengths = OutputLengths {
                stdout: output.stdout,
                stderr: output.stderr,
                patience,
            };
            streams.finish(lengths).await;
        }
    }
}
