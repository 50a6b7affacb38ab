//! The only place that reaps. PID 1 inherits every orphan of the guest, and other parts of the agent wait for some of
//! these processes. It knows only pids and exit statuses.
//!
//! A process can end before its launcher has learnt its pid. Therefore, while a launch is in progress, the statuses of
//! unknown pids are kept, and claimed by [`Reaper::register`].

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use crate::common::sys::{self, Child};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    /// The exit code, or 128 + the signal's number.
    pub(crate) status: u32,
    /// When it was reaped.
    pub(crate) at: SystemTime,
}

#[derive(Debug, Default)]
struct Children {
    waiting: HashMap<Pid, oneshot::Sender<Exit>>,
    /// Exits of unknown pids, kept while `launches` is not 0.
    unclaimed: HashMap<Pid, Exit>,
    launches: usize,
}

/// Reaps, and tells those who wait. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reaper(Arc<Mutex<Children>>);

/// Held from before a process is launched until it is registered.
#[derive(Debug)]
pub(crate) struct Launching(Reaper);

#[derive(Debug)]
pub(crate) struct Registered {
    /// None where the process has been reaped already.
    pub(crate) pidfd: Option<OwnedFd>,
    /// Resolves when it has been reaped.
    pub(crate) exit: oneshot::Receiver<Exit>,
}

impl Reaper {
    /// Starts to listen for SIGCHLD; reaping begins when [`Reaper::run`] is polled.
    ///
    /// # Errors
    /// The signal's handler cannot be installed.
    pub(crate) fn listen() -> io::Result<Signal> {
        signal(SignalKind::child())
    }

    /// Reaps whenever children have ended. Never returns.
    pub(crate) async fn run(self, mut children_ended: Signal) {
        loop {
            while self.reap() {
                tokio::task::yield_now().await;
            }
            if children_ended.recv().await.is_none() {
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Children> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that pids will appear that nobody knows yet.
    pub(crate) fn launching(&self) -> Launching {
        self.lock().launches += 1;
        Launching(self.clone())
    }

    /// Reaps every child that has ended. Under the lock, so that [`Reaper::register`] sees a pid either alive or
    /// among the unclaimed. Whether there may be more: programs that stop again and again are not to keep the agent from all else.
    fn reap(&self) -> bool {
        const AT_A_TIME: usize = 256;
        let mut children = self.lock();
        for _ in 0..AT_A_TIME {
            match sys::reap_one() {
                Ok(Some(Child::Ended(ended))) => {
                    let exit = Exit {
                        status: ended.status,
                        at: SystemTime::now(),
                    };
                    children.ended(ended.pid, exit);
                }
                Ok(Some(Child::Released)) => {}
                Ok(None) | Err(_) => return false,
            }
        }
        true
    }
}

impl Children {
    fn ended(&mut self, pid: Pid, exit: Exit) {
        match self.waiting.remove(&pid) {
            // The one who waited may have gone; then nobody needs the status.
            Some(waiting) => {
                let _ = waiting.send(exit);
            }
            None if self.launches > 0 => {
                self.unclaimed.insert(pid, exit);
            }
            None => {}
        }
    }
}

impl Launching {
    /// Claims a process of this launch.
    ///
    /// # Errors
    /// No pidfd can be had: out of descriptors.
    pub(crate) fn register(&self, pid: Pid) -> io::Result<Registered> {
        let (sender, exit) = oneshot::channel();
        let mut children = self.0.lock();
        // Nothing is reaped while we hold the lock: a pid that exists now is the process meant, alive or a zombie, and
        // an unclaimed status under its number is an older process's.
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => {
                children.unclaimed.remove(&pid);
                children.waiting.insert(pid, sender);
                Ok(Registered {
                    pidfd: Some(pidfd),
                    exit,
                })
            }
            Err(rustix::io::Errno::SRCH) => {
                let unclaimed = children.unclaimed.remove(&pid).ok_or(rustix::io::Errno::CHILD)?;
                let _ = sender.send(unclaimed);
                Ok(Registered { pidfd: None, exit })
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Launching {
    fn drop(&mut self) {
        let mut children = self.0.lock();
        children.launches -= 1;
        if children.launches == 0 {
            children.unclaimed = HashMap::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[allow(clippy::zombie_processes, reason = "the reaper under test waits for it")]
    fn spawn(script: &str) -> Pid {
        let child = Command::new("sh").args(["-c", script]).spawn().unwrap();
        Pid::from_raw(child.id().cast_signed()).unwrap()
    }

    /// nextest runs each test in a process of its own; with a plain `cargo test` two reapers would rob each other.
    #[tokio::test]
    async fn every_exit_reaches_the_one_who_waits_for_it() {
        let reaper = Reaper::default();
        let signals = Reaper::listen().unwrap();
        let launching = reaper.launching();

        let early = spawn("exit 7");
        while launching.0.lock().unclaimed.is_empty() {
            launching.0.reap();
            tokio::task::yield_now().await;
        }
        let early = launching.register(early).unwrap();
        assert!(early.pidfd.is_none());
        assert_eq!(early.exit.await.unwrap().status, 7);

        let late = launching.register(spawn("exec sleep 100")).unwrap();
        tokio::spawn(reaper.clone().run(signals));
        sys::send_signal(std::os::fd::AsFd::as_fd(late.pidfd.as_ref().unwrap()), libc::SIGKILL).unwrap();
        assert_eq!(late.exit.await.unwrap().status, 137);

        drop(launching);
        assert!(reaper.lock().unclaimed.is_empty() && reaper.lock().waiting.is_empty());
    }
}
