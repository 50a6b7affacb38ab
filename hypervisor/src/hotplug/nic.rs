//! What another crate plugs network devices with. Afterwards only QEMU has a tap's files: the tap ends with the device.

use super::{DeviceManager, HotplugError};
use crate::machine::nic::Nic;

/// Plugs network devices into one VM. Clones share it.
#[derive(Debug, Clone)]
pub struct NicHotplug(pub(crate) DeviceManager);

impl NicHotplug {
    /// Plugs a device. The answer is its name. The guest finds it later, by its MAC address.
    ///
    /// # Errors
    /// All places are taken, or QEMU refuses it or does not answer; what is left of it then goes when QEMU answers.
    pub async fn attach(&self, nic: Nic) -> Result<String, HotplugError> {
        self.0.attach_nic(nic).await
    }

    /// Unplugs it. When it returns QEMU has closed its tap.
    ///
    /// # Errors
    /// There is no such device, or the guest has not let go of it within ten seconds: it stays plugged in, and this may be
    /// called again.
    pub async fn detach(&self, id: &str) -> Result<(), HotplugError> {
        self.0.detach_nic(id).await
    }
}
