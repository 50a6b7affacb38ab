//! The steps of a deletion: in the guest, of disks, of mounts; and the hooks that follow.

use std::time::{Duration, Instant};

use base::chain;
use guest::agent_client::{AgentError, printable};
use guest::streams::OutputLengths;
use lifecycle::{Answer, Exit, Failure, Fault, Output, Request};

use crate::sandbox::Sandbox;
use crate::sandbox::driver::fault::{Done, failure};
use crate::sandbox::driver::message::Payload;
use crate::sandbox::error::{Error, Shared};
use crate::sandbox::records::container::Container;
use crate::sandbox::records::process::{Process, ProcessName};
use crate::sandbox::verbs::failed;

/// Bytes of what the guest says that it waits for.
const LONGEST_REASON: usize = 256;

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
    /// to write, and goes on as long as something is written. An agent that answers neither this nor a ping is not waited for.
    pub(in crate::sandbox) async fn delete_in_guest(&self, name: &ProcessName) -> Done {
        let agent = self.agent("delete", &name.to_string()).map_err(failure)?;
        let limit = self.timeouts.no_progress();
        let began = Instant::now();
        let mut patience = Patience::new(began, limit, self.timeouts.deletion());
        let mut waits_for = "its agent".to_owned();
        loop {
            let progress = match agent.delete(&name.to_agent()).await {
                Ok(answer) if answer.finished => return Ok(()),
                Ok(answer) => {
                    waits_for = printable(&answer.waits_for, LONGEST_REASON);
                    Some(answer.progress)
                }
                Err(AgentError::TimedOut(_)) => {
                    if let Err(error) = self.ping().await {
                        tracing::error!(process = %name, error = chain(&error), "the guest's agent answers neither a deletion nor a ping");
                        let silent = AgentError::TimedOut(Duration::from_secs(began.elapsed().as_secs()));
                        return Err(failure(failed("delete", name)(silent)));
                    }
                    None
                }
                Err(error) => return Err(failure(failed("delete", name)(error))),
            };
            let now = Instant::now();
            if !patience.goes_on(now, progress) {
                let error = Error::Stalled {
                    subject: name.to_string(),
                    waits_for,
                    seconds: patience.stands_still(now).as_secs(),
                };
                return Err(Failure {
                    fault: Fault::Stalled,
                    error: error.into(),
                });
            }
            if patience.is_slow(now) {
                let seconds = patience.stands_still(now).as_secs();
                tracing::warn!(process = %name, waits_for, seconds, "a deletion in the guest gets on no further");
            }
        }
    }

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
    /// When it was last said to be slow, or got on.
    told: Instant,
    idle: Duration,
    total: Duration,
}

impl Patience {
    fn new(now: Instant, idle: Duration, total: Duration) -> Self {
        Self {
            began: now,
            last: (None, now),
            told: now,
            idle,
            total,
        }
    }

    /// Whether to go on, after an answer or without one.
    fn goes_on(&mut self, now: Instant, progress: Option<u64>) -> bool {
        if progress.is_some() && progress != self.last.0 {
            self.last = (progress, now);
            self.told = now;
        }
        self.stands_still(now) < self.idle && now.duration_since(self.began) < self.total
    }

    /// Time since the last progress.
    fn stands_still(&self, now: Instant) -> Duration {
        now.duration_since(self.last.1)
    }

    /// Whether that is worth a line in the log: each quarter of the longest time.
    fn is_slow(&mut self, now: Instant) -> bool {
        let slow = now.duration_since(self.told) >= self.idle / 4;
        if slow {
            self.told = now;
        }
        slow
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

    #[test]
    fn a_deletion_that_stands_still_is_told_of_from_time_to_time() {
        let began = Instant::now();
        let after = |seconds| began + Duration::from_secs(seconds);
        let mut patience = Patience::new(began, Duration::from_secs(120), Duration::from_secs(3600));
        assert!(patience.goes_on(after(20), Some(1)));
        let told: Vec<u64> = (21..140).filter(|second| patience.is_slow(after(*second))).collect();
        assert_eq!(told, [50, 80, 110]);
        assert_eq!(patience.stands_still(after(140)).as_secs(), 120);
    }
}
