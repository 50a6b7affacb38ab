//! A pid on the host that stands for one container of a pod and for no other.
//!
//! CRI names the PID namespace of another container by that container's pid (`/proc/PID/ns/pid`, for `kubectl debug
//! --target`), so the VMM's own pid will not do for all of them. What stands in is a thread of the shim, which does
//! nothing: its number is a pid for as long as the thread lives (proc(5)), and it is in the pod's network namespace, where
//! whoever enters by the pid expects to be.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::mpsc;
use std::thread;

use rustix::thread::{LinkNameSpaceType, gettid, move_into_link_name_space};
use tokio::sync::oneshot;

/// Bytes of a stack on which nothing is done.
const STACK: usize = 64 << 10;

/// The pid; it ends with this.
#[derive(Debug)]
pub(super) struct StandIn {
    pid: u32,
    /// Dropped to end the thread.
    _end: mpsc::Sender<()>,
}

impl StandIn {
    /// Starts one in the network namespace of the VMM.
    ///
    /// # Errors
    /// There can be no more threads.
    pub(super) async fn new(vmm: u32) -> io::Result<Self> {
        let (end, ended) = mpsc::channel::<()>();
        let (tell, told) = oneshot::channel();
        thread::Builder::new()
            .name("container".to_owned())
            .stack_size(STACK)
            .spawn(move || {
                if let Err(error) = enter_network_of(vmm) {
                    // Only who looks for the network by this pid misses it.
                    tracing::debug!(%error, vmm, "a container's pid is not in the pod's network namespace");
                }
                // Nobody waits any more, or nobody needs it any more: both are its end.
                if tell.send(gettid()).is_ok() {
                    let _ = ended.recv();
                }
            })?;
        let pid = told.await.map_err(io::Error::other)?;
        let pid = u32::try_from(pid.as_raw_nonzero().get()).map_err(io::Error::other)?;
        Ok(Self { pid, _end: end })
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }
}

fn enter_network_of(vmm: u32) -> io::Result<()> {
    let namespace = File::open(format!("/proc/{vmm}/ns/net"))?;
    Ok(move_into_link_name_space(
        namespace.as_fd(),
        Some(LinkNameSpaceType::Network),
    )?)
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
        let (one, two) = (StandIn::new(own).await.unwrap(), StandIn::new(own).await.unwrap());
        assert_ne!(one.pid(), two.pid());
        let network = format!("/proc/{}/ns/net", one.pid());
        let link = |path: &str| std::fs::read_link(path).unwrap();
        assert_eq!(link(&network), link("/proc/self/ns/net"));
        drop(one);
        // The thread ends by itself, in its own time.
        while Path::new(&network).exists() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_vmm_that_is_gone_is_no_obstacle() {
        assert!(StandIn::new(u32::MAX).await.is_ok());
    }

    #[test]
    fn only_a_process_of_the_hosts_proc_is_understood() {
        assert_eq!(pid_in(Path::new("/proc/4711/ns/pid")), Some(4711));
        for other in ["/proc/x/ns/pid", "/run/pin/pid", "/proc/1/ns/net", "/proc/-1/ns/pid"] {
            assert_eq!(pid_in(Path::new(other)), None);
        }
    }
}
