//! The VM as the sandbox sees it: it is launched, gives connections, ends, and can be stopped.
//!
//! The traits separate the sandbox from the hypervisor, so that the shim can be tested without QEMU. They know neither
//! QEMU's arguments nor the data on the connections.

use std::io;
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use config::Mebibytes;
use hypervisor::{CpuError, Disk, HotplugError, MemoryError, Sample};
use node::network::PodNetworkError;
use node::sizing::HostLimits;
use protocol::agent::Network;

pub use crate::connection::{Connection, GuestStream};

/// How a VM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// One sentence, for logs and messages.
    pub reason: String,
    /// The host's kernel killed it for want of memory.
    pub out_of_memory: bool,
}

/// Why a VM could not be launched.
#[derive(Debug, Clone, thiserror::Error)]
pub enum VmLaunchError {
    /// The configuration, or an annotation that changes it, says what cannot be: file, key, and what is allowed.
    #[error("cannot start the VM: {0}")]
    Configuration(String),
    /// What was tried and why it failed, causes included.
    #[error("cannot start the VM: {0}")]
    Failed(String),
}

/// A VM whose process runs.
#[async_trait]
pub trait RunningVm: Send + Sync {
    /// The VMM's process on the host.
    fn pid(&self) -> u32;
    /// Returns once the VM or a helper that it cannot do without is gone. Any number of tasks may wait.
    async fn ended(&self) -> Ending;
    /// The VMM's and its helpers' processes.
    fn pids(&self) -> Vec<u32> {
        vec![self.pid()]
    }
    /// The files into which a process writes 0 to be in the VM's cgroups on the host.
    fn cgroup_members(&self) -> Vec<PathBuf> {
        Vec::new()
    }
    /// The VMM's run state, or why it does not tell.
    async fn status(&self) -> Result<String, String> {
        Err("this VMM does not tell its state".to_owned())
    }
    /// Where the vCPUs are, or why that cannot be said.
    async fn sample(&self) -> Result<Sample, String> {
        Err("this VMM does not tell where its vCPUs are".to_owned())
    }
    /// The last lines that the guest wrote on its console; empty if there are none.
    async fn console_tail(&self) -> String;
    /// What the guest's network is to be when it boots; none if there is none yet.
    fn network(&self) -> Option<Network> {
        None
    }
    /// The network namespace that is the sandbox's on the host; none if it is the VMM's.
    fn network_namespace(&self) -> Option<Arc<OwnedFd>> {
        None
    }
    /// Makes the network what it is to be now, first when the runtime's hooks have run, and gives what the guest is to have;
    /// none if that is what it has, unless it is to be told `again`.
    ///
    /// # Errors
    /// The host's part of the network cannot be made.
    async fn refresh_network(&self, _again: bool) -> Result<Option<Network>, PodNetworkError> {
        Ok(None)
    }
    /// Waits for the network to change on the host, once it was refreshed. One task may wait; nothing is lost if it does not
    /// wait to the end.
    async fn network_changed(&self) {
        std::future::pending().await
    }
    /// Ends the VM and its helpers: by itself within `grace` if it is powering off, else by force. May be called
    /// again.
    async fn stop(&self, grace: Duration);
    /// Plugs in a disk. The answer is the serial number by which the guest finds it.
    ///
    /// # Errors
    /// There is no place for it, or the VMM refuses it.
    async fn attach_disk(&self, disk: Disk) -> Result<String, HotplugError>;
    /// Unplugs a disk; what the guest has flushed is on it then.
    ///
    /// # Errors
    /// The guest does not let go of it within some seconds: it stays, and this may be called again.
    async fn detach_disk(&self, serial: &str) -> Result<(), HotplugError>;
    /// Gives a disk so many bytes, and tells the guest. An image that is larger would be cut off.
    ///
    /// # Errors
    /// There is no such disk, or the VMM refuses.
    async fn resize_disk(&self, serial: &str, _bytes: u64) -> Result<(), HotplugError> {
        Err(HotplugError::Unknown(serial.to_owned()))
    }
    /// Gives the guest so many vCPUs, never fewer than at the boot.
    ///
    /// # Errors
    /// There is no place for them, or the guest does not let go of one within some seconds.
    async fn set_vcpus(&self, count: NonZeroU32) -> Result<(), CpuError>;
    /// Does what there is to do when vCPUs come that nobody waits for any more. Never returns.
    async fn follow_late_vcpus(&self) {
        std::future::pending().await
    }
    /// Asks the guest to have so much memory in all, never less than at the boot, and waits until it has taken what it lacks. The
    /// answer is what it has beyond, which it gives back when it can.
    ///
    /// # Errors
    /// There is no place for it, or the guest does not get on.
    async fn set_memory(&self, memory: Mebibytes) -> Result<Mebibytes, MemoryError>;
    /// Waits until what the guest has beyond what it was last asked to have is another amount than `before`, which was not
    /// nothing, for as long as that takes. The answer is that amount.
    ///
    /// # Errors
    /// The VM has ended.
    async fn surplus_other_than(&self, before: Mebibytes) -> Result<Mebibytes, MemoryError>;
    /// Limits what all of the VM's processes use on the host. What cannot be limited is logged.
    async fn limit_host(&self, _limits: HostLimits) {}
    /// The same, but allows no less memory than before.
    async fn raise_host(&self, _limits: HostLimits) {}
}

/// The connections that one VM dials.
#[async_trait]
pub trait Connections: Send {
    /// The next one. An error means that there will be no more.
    async fn accept(&mut self) -> io::Result<Connection>;
}

/// Starts the sandbox's VM. Called once.
#[async_trait]
pub trait Launcher: Send + Sync {
    /// Returns once the VMM runs, which is long before the guest is up.
    ///
    /// # Errors
    /// The VM cannot be started. Nothing of it is left then.
    async fn launch(&self) -> Result<(Box<dyn RunningVm>, Box<dyn Connections>), VmLaunchError>;
}
