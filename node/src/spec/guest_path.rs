//! Where the guest has what the host shares with it.

use std::path::{Path, PathBuf};

use lifecycle::id::ContainerId;

/// A container's rootfs in the guest.
pub(crate) fn guest_rootfs(container: &ContainerId) -> PathBuf {
    Path::new(protocol::SHARE_MOUNTPOINT)
        .join(container.as_str())
        .join("rootfs")
}
