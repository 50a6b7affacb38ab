//! The daemons beside QEMU: virtiofsd serves the shared directory, vhost-device-vsock carries the guest's connections.

pub(crate) mod virtiofsd;
pub(crate) mod vsock_daemon;
