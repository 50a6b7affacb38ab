//! What the caller of [`crate::boot`] decides.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base::scale::Scale;
use base::spawn::Score;

use crate::machine::nic::Nic;

/// What the caller decides about one VM. The rest is configuration.
#[derive(Debug, Clone)]
pub struct VmRequest {
    /// Names the VM in process lists and logs.
    pub id: String,
    /// Where sockets and the console's file go; exists, is private, and belongs to this VM alone.
    pub run_dir: PathBuf,
    /// What the guest sees as its shared directory. For mounts made below it later to be seen, it has to be on a
    /// shared mount before the boot.
    pub shared_dir: PathBuf,
    /// The tag under which the guest mounts it.
    pub share_tag: String,
    /// The network namespace that QEMU runs in.
    pub netns: NetworkNamespace,
    /// Its network devices.
    pub nics: Vec<Nic>,
    /// The `cgroup.procs` files into which QEMU and the helpers move before they start.
    pub cgroup_procs: Vec<PathBuf>,
    /// Their score for the host's OOM killer.
    pub score: Score,
    /// Timeout for QEMU to make its devices and answer, in time that it has had ([`crate::process::vm_time`]).
    pub start_timeout: Duration,
    /// The factor for all other time-outs.
    pub scale: Scale,
    /// Kernel parameters, before those of the configuration.
    pub kernel_params: Vec<String>,
    /// The host's port that the guest dials where the port is not picked by the kernel.
    pub host_port: u32,
    /// The kernel parameter that tells the guest the port.
    pub port_parameter: String,
}

/// The network namespace that QEMU runs in.
#[derive(Debug, Clone, Default)]
pub enum NetworkNamespace {
    /// A new one, in which there is nothing.
    #[default]
    Empty,
    /// The one that the descriptor stands for (network_namespaces(7)).
    Of(Arc<OwnedFd>),
}
