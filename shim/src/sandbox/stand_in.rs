//! A stand-in: a process whose pid on the host stands for exactly one container of a pod.
//!
//! CRI names the PID namespace of another container by that container's pid (`/proc/PID/ns/pid`, for `kubectl debug
//! --target`), so the VMM's pid cannot be reported for all of them. The stand-in does nothing. It is in the pod's network
//! namespace, which is the one that a client expects behind the pid. Killing it ends nothing else. A thread of the shim
//! would not do, because a signal to a thread's number goes to the whole process (kill(2)), and would end the shim and
//! the pod.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::thread;

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use crate::sys;

/// The pid; it ends with this. It is nobody else's before: a process that was killed stays a zombie until then.
#[derive(Debug)]
pub(super) struct StandIn {
    pid: Pid,
    /// Closed by the shim's end, whichever way that comes.
    _until: OwnedFd,
}

impl StandIn {
    /// Starts one in the network namespace of the VMM.
    ///
    /// # Errors
    /// There can be no more processes or descriptors.
    pub(super) fn new(vmm: u32) -> io::Result<Self> {
        let network = File::open(format!("/proc/{vmm}/ns/net"));
        if let Err(error) = &network {
            tracing::debug!(%error, vmm, "a container's pid is not in the pod's network namespace");
        }
        let network = network.ok();
        let (ended, until) = pipe_with(PipeFlags::CLOEXEC)?;
        let pid = sys::spawn_idle(&ended, network.as_ref().map(AsFd::as_fd), c"container")?;
        let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::NotFound)?;
        Ok(Self { pid, _until: until })
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        let pid = self.pid;
        // It is a child that was not waited for: the number is its own.
        let _ = kill_process(pid, Signal::KILL);
        // On a thread of its own: a process that the kernel is slow to end holds nobody up. Where there can be none, it stays a
        // zombie until the shim ends.
        let reap = move || while matches!(waitpid(Some(pid), WaitOptions::empty()), Err(Errno::INTR)) {};
        let _ = thread::Builder::new().spawn(reap);
    }
}

/// The pid in `/proc/PID/ns/pid`; none in a path of another form.
pub(super) fn pid_in(path: &Path) -> Option<u32> {
    let pid = path.to_str()?.strip_prefix("/proc/")?.strip_suffix("/ns/pid")?;
    pid.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_is_a_live_pid_of_its_own_until_it_is_dropped() {
        let own = std::process::id();
        let (one, two) = (StandIn::new(own).unwrap(), StandIn::new(own).unwrap());
        assert_ne!(one.pid(), two.pid());
        let network = format!("/proc/{}/ns/net", one.pid());
        let link = |path: &str| std::fs::read_link(path).unwrap();
        assert_eq!(link(&network), link("/proc/self/ns/net"));
        drop(one);
        // Its end takes its time.
        while Path::new(&network).exists() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn who_kills_it_kills_nothing_else_and_its_pid_stays_its_own() {
        let stand_in = StandIn::new(std::process::id()).unwrap();
        let status = format!("/proc/{}/status", stand_in.pid());
        kill_process(stand_in.pid, Signal::KILL).unwrap();
        while !std::fs::read_to_string(&status).unwrap().contains("State:\tZ") {
            tokio::task::yield_now().await;
        }
        drop(stand_in);
        while Path::new(&status).exists() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_vmm_that_is_gone_is_no_obstacle() {
        assert!(StandIn::new(u32::MAX).is_ok());
    }

    #[test]
    fn only_a_process_of_the_hosts_proc_is_understood() {
        assert_eq!(pid_in(Path::new("/proc/4711/ns/pid")), Some(4711));
        for other in ["/proc/x/ns/pid", "/run/pin/pid", "/proc/1/ns/net", "/proc/-1/ns/pid"] {
            assert_eq!(pid_in(Path::new(other)), None);
        }
    }
}
