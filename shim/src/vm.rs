//! The VM as the sandbox sees it: something that is launched, gives connections, ends, and can be stopped.
//!
//! The traits are the seam between the sandbox and the hypervisor, so that the shim is tested without QEMU. They know
//! neither QEMU's arguments nor what is said on the connections.

use std::io;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};

/// The raw bytes of one connection that the guest has dialled.
pub trait GuestStream: AsyncRead + AsyncWrite + Send + Sync + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin + 'static> GuestStream for T {}

/// One connection that the guest has dialled.
pub type Connection = Box<dyn GuestStream>;

/// Why a VM is no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// One sentence, for logs and messages.
    pub reason: String,
    /// The host's kernel killed it for want of memory.
    pub out_of_memory: bool,
}

/// Why a VM could not be launched.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot start the VM: {message}")]
pub struct LaunchError {
    /// What was tried and why it failed, causes included.
    pub message: String,
}

/// A VM whose process runs.
#[async_trait]
pub trait Machine: Send + Sync {
    /// The VMM's process on the host.
    fn pid(&self) -> u32;
    /// Returns once the VM or a helper that it cannot do without is gone. Any number of tasks may wait.
    async fn ended(&self) -> Ending;
    /// The last lines that the guest wrote on its console; empty if there are none.
    async fn console_tail(&self) -> String;
    /// Ends the VM and its helpers: by itself within `grace` if it is powering off, else by force. May be called
    /// again.
    async fn stop(&self, grace: Duration);
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
    async fn launch(&self) -> Result<(Box<dyn Machine>, Box<dyn Connections>), LaunchError>;
}
