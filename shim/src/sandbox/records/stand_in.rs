//! A stand-in: a process whose pid on the host stands for a sandbox, or for exactly one container of a pod.
//!
//! CRI names the PID namespace of another container by that container's pid (`/proc/PID/ns/pid`, for `kubectl debug
//! --target`), so one pid cannot be reported for all of them. Clients also use the pid: `nerdctl cp` writes below
//! `/proc/PID/root`, which for the VMM would be the host's root. The stand-in does nothing, and its root is empty and
//! read-only. It is in the pod's network namespace and in the sandbox's cgroup, which a client expects behind the pid.
//! Killing it ends nothing of the shim. A thread of the shim would not do, because a signal to a thread's number goes to the
//! whole process (kill(2)), and would end the shim and the pod. The owner of the stand-in sees to the end of what it stands
//! for ([`StandIn::killed`]). `ps` shows it as [`sys::STAND_IN`] with the container's id.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use node::sys::{self, Idle};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, kill_process, pidfd_open, waitpid};

/// The pid; it ends with this. It is nobody else's before: a process that was killed stays a zombie until then.
#[derive(Debug)]
pub(in crate::sandbox) struct StandIn {
    pid: Pid,
    /// Closed by the shim's end, whichever way that comes.
    _until: UnixStream,
}

impl StandIn {
    /// Starts one for the container with this id, in the sandbox's network namespace, which is the VMM's if none is given, and in the cgroups that have these files (`cgroup.procs`). Waits until its root is
    /// empty: a matter of milliseconds.
    ///
    /// # Errors
    /// There can be no more processes or descriptors, or the process could not leave the host's file systems.
    pub(in crate::sandbox) fn new(
        container: &str,
        vmm: u32,
        network: Option<Arc<OwnedFd>>,
        cgroups: &[PathBuf],
    ) -> io::Result<Self> {
        let of_vmm = || File::open(format!("/proc/{vmm}/ns/net")).map(|file| Arc::new(OwnedFd::from(file)));
        let network = network.map_or_else(of_vmm, Ok);
        if let Err(error) = &network {
            tracing::debug!(%error, vmm, "a container's pid is not in the pod's network namespace");
        }
        let network = network.ok();
        let opened = cgroups.iter().map(|file| File::options().write(true).open(file));
        let cgroups: Vec<OwnedFd> = opened.filter_map(Result::ok).map(OwnedFd::from).collect();
        // As `docker ps` shortens an id; with the prefix it is what a name can have (proc_pid_comm(5)).
        let name = CString::new(format!("vm:{container:.12}"))?;
        let (mut until, other) = UnixStream::pair()?;
        let other = OwnedFd::from(other);
        let pid = sys::spawn_idle(&Idle {
            until: &other,
            network: network.as_ref().map(AsFd::as_fd),
            cgroups: &cgroups,
            name: &name,
            command_line: format!("{}\0{container}", sys::STAND_IN).as_bytes(),
        })?;
        let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::NotFound)?;
        // So that its end, should it come at once, is the end of the stream.
        drop(other);
        let ready = until.read_exact(&mut [0]);
        let stand_in = Self { pid, _until: until };
        ready.map_err(|error| io::Error::new(error.kind(), "it cannot be given a root of its own"))?;
        Ok(stand_in)
    }

    pub(in crate::sandbox) fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Completes when it has ended: somebody has killed it, unless this is dropped first.
    ///
    /// # Errors
    /// There can be no more descriptors.
    pub(in crate::sandbox) fn killed(&self) -> io::Result<impl Future<Output = ()> + use<>> {
        // A pidfd is readable once the process is dead (pidfd_open(2)).
        let pidfd = sys::watch(pidfd_open(self.pid, PidfdFlags::empty())?)?;
        Ok(async move {
            if pidfd.readable().await.is_err() {
                std::future::pending().await
            }
        })
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[tokio::test]
    async fn each_is_a_live_pid_of_its_own_until_it_is_dropped() {
        let own = std::process::id();
        let (one, two) = (
            StandIn::new("one", own, None, &[]).unwrap(),
            StandIn::new("two", own, None, &[]).unwrap(),
        );
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
        let stand_in = StandIn::new("one", std::process::id(), None, &[]).unwrap();
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

    /// What `nerdctl cp` and `nsenter` do with a pid.
    #[tokio::test]
    async fn its_root_is_empty_and_cannot_be_written_to() {
        let stand_in = StandIn::new("one", std::process::id(), None, &[]).unwrap();
        let root = PathBuf::from(format!("/proc/{}/root", stand_in.pid()));
        assert_eq!(std::fs::read_dir(&root).unwrap().count(), 0);
        for name in ["new", "../new", "proc/../../new"] {
            let refused = std::fs::write(root.join(name), "").unwrap_err();
            assert!(
                matches!(
                    refused.kind(),
                    io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::NotFound
                ),
                "{name}: {refused}"
            );
        }
        let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", stand_in.pid())).unwrap();
        assert_eq!(mounts.lines().count(), 1, "{mounts}");
        for kind in ["mnt", "uts", "ipc"] {
            let link = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/{kind}")).unwrap();
            assert_ne!(link(&stand_in.pid().to_string()), link("self"), "{kind}");
        }
    }

    /// What `docker top` and `ps` print, which show the shim's own command line for a child that has none.
    #[tokio::test]
    async fn its_command_line_and_its_name_have_the_containers_id() {
        let stand_in = StandIn::new("3f2a9c81b0aa77", std::process::id(), None, &[]).unwrap();
        let file = |name: &str| std::fs::read_to_string(format!("/proc/{}/{name}", stand_in.pid())).unwrap();
        let command_line = file("cmdline");
        assert_eq!(
            command_line.trim_end_matches('\0'),
            "tatami-container\x003f2a9c81b0aa77"
        );
        assert_eq!(file("comm"), "vm:3f2a9c81b0aa\n");
        let own = std::fs::read_to_string("/proc/self/cmdline").unwrap();
        assert!(!own.contains("tatami-container"), "{own}");
    }

    #[tokio::test]
    async fn it_is_heard_of_when_somebody_kills_it() {
        let stand_in = StandIn::new("one", std::process::id(), None, &[]).unwrap();
        let killed = stand_in.killed().unwrap();
        kill_process(stand_in.pid, Signal::KILL).unwrap();
        killed.await;
    }

    #[tokio::test]
    async fn a_vmm_that_is_gone_is_no_obstacle() {
        assert!(StandIn::new("one", u32::MAX, None, &[]).is_ok());
    }
}
