//! Tells QEMU, and through QEMU the guest, that a disk has a new size. QEMU enlarges an image. A block device must
//! already have the new size, and QEMU only reads it again.

use serde_json::json;

use super::{Hotplug, HotplugError};

impl Hotplug {
    /// Gives a disk so many bytes.
    ///
    /// QEMU cuts an image off that is larger: that is the caller's to bar.
    pub(crate) async fn resize(&self, serial: &str, bytes: u64) -> Result<(), HotplugError> {
        let disk = || serial.to_owned();
        let found = self.state().disks.get(serial).copied();
        let (names, _) = found.ok_or_else(|| HotplugError::Unknown(disk()))?;
        let arguments = json!({ "node-name": names.id(), "size": bytes });
        let resized = self.qmp.execute("block_resize", arguments).await;
        resized
            .map(drop)
            .map_err(|source| HotplugError::Resize { disk: disk(), source })
    }
}
