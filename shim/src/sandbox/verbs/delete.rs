//! The steps of a deletion: in the guest, of disks, of mounts; and the hooks that follow.

use std::time::{Duration, Instant};

use base::chain;
use guest::agent_client::AgentError;
use guest::streams::OutputLengths;
use lifecycle::{Answer, Exit, Failure, Fault, Output, Request};

use crate::sandbox::Sandbox;
use crate::sandbox::driver::message::Payload;
use crate::sandbox::driver::fault::{Done, failure};
use crate::sandbox::error::{Error, Shared};
use crate::sandbox::records::container::Container;
use crate::sandbox::records::process::{Process, ProcessName};
use crate::sandbox::verbs::failed;

impl Sandbox {
    /// Forgets a process that does not run. The answer is its pid and its exit. Whoever asks while it is being done gets the same answer.
    ///
    /// # Errors
    /// There is no such process, it runs, or what it held cannot be freed: then it can be asked for again.
    pub async fn delete(&self, name: &ProcessName) -> Result<(u32, Exit), Shared> {
        let (container, process) = self.process(name)?;
        match self.ask(Request::Delete(name.clone()), Payload::Nothing).await {
            Answer::Deleted(exit) => {
                // The shim may end once this is answered, and the program with it.
                process.end_logger().await;
                Ok((self.pid_of(&container), exit))
            }
            refused => Err(self.refused(refused)),
        }
    }

    /// Has the guest forget a container or an exec. It unmounts what is on disks, which are clean then; that takes as long as there is
    /// to write, and goes on as long as something is written.
    pub(in crate::sandbox) async fn delete_in_guest(&self, name: &ProcessName) -> Done {
        let agent = self.agent("delete", &name.to_string()).map_err(failure)?;
        let limit = self.timeouts.no_progress();
        let mut patience = Patience::new(Instant::now(), limit, self.timeouts.deletion());
        loop {
            let (error, progress) = match agent.delete(&name.to_agent()).await {
                Ok(answer) if answer.finished => return Ok(()),
                Ok(answer) => (AgentError::TimedOut(limit), Some(answer.progress)),
                Err(error @ AgentError::TimedOut(_)) => (error, None),
                Err(error) => return Err(failure(failed("delete", name)(error))),
            };
            if !patience.goes_on(Instant::now(), progress) {
                return Err(Failure {
                    fault: Fault::Stalled,
                    error: failed("delete", name)(error).into(),
                });
            }
        }
    }

    /// Removes a container's mounts.
    pub(in crate::sandbox) async fn detach(&self, container: &crate::id::ContainerId) -> Result<(), Error> {
        let detached = self.host.detach(container).await;
        detached.map_err(|source| Error::Host {
            operation: "unmount the files of",
            subject: format!("container {container}"),
            source,
        })
    }

    /// OCI runtime spec, lifecycle: a poststop hook that fails is logged, and the deletion goes on.
    pub(in crate::sandbox) async fn run_stop_hooks(&self, container: &Container) {
        if let Err(error) = self.host.run_poststop_hooks(&container.id).await {
            tracing::warn!(container = %container.id, error = chain(&error), "a poststop hook failed");
        }
    }

    /// Passes on what is left of a process's output.
    pub(in crate::sandbox) async fn finish_streams(&self, process: &Process, output: Output) {
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
            if let Some(logger) = streams.finish(lengths).await {
                process.set_logger(logger);
            }
        }
    }
}

/// How long the guest is waited for: as long as it gets on, and not for ever, since its word is all there is for that.
struct Patience {
    began: Instant,
    /// What the guest said last, and since when.
    last: (Option<u64>, Instant),
    idle: Duration,
    total: Duration,
}

impl Patience {
    fn new(now: Instant, idle: Duration, total: Duration) -> Self {
        Self {
            began: now,
            last: (None, now),
            idle,
            total,
        }
    }

    /// Whether to go on, after an answer or without one.
    fn goes_on(&mut self, now: Instant, progress: Option<u64>) -> bool {
        if progress.is_some() && progress != self.last.0 {
            self.last = (progress, now);
        }
        now.duration_since(self.last.1) < self.idle && now.duration_since(self.began) < self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_waited_for_while_it_gets_on_and_not_for_ever() {
        let (idle, total) = (Duration::from_secs(2), Duration::from_secs(10));
        let began = Instant::now();
        let after = |seconds| began + Duration::from_secs(seconds);
        let mut gets_on = Patience::new(began, idle, total);
        assert!((1..10).all(|second| gets_on.goes_on(after(second), Some(second))));
        assert!(!gets_on.goes_on(after(10), Some(10)));
        let mut stands_still = Patience::new(began, idle, total);
        assert!(stands_still.goes_on(after(1), Some(7)) && stands_still.goes_on(after(2), Some(7)));
        assert!(stands_still.goes_on(after(2), None) && !stands_still.goes_on(after(3), Some(7)));
    }
}
