//! The programs that a VM consists of.

use std::fmt;

/// A process that a VM consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChildName {
    /// The VM itself.
    Qemu,
    /// Serves the shared directory.
    Virtiofsd,
    /// Serves vsock.
    VsockDaemon,
}

impl ChildName {
    /// The name in messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ChildName::Qemu => "QEMU",
            ChildName::Virtiofsd => "virtiofsd",
            ChildName::VsockDaemon => "vhost-device-vsock",
        }
    }
}

impl fmt::Display for ChildName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
