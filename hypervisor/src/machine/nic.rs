//! Network devices: the caller's description of each, and the descriptors that QEMU inherits.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use crate::machine::descriptor::number;
use crate::machine::mac_address::MacAddress;
use crate::machine::spec::NicDevice;

/// One network device of a VM.
#[derive(Debug, Clone)]
pub struct Nic {
    /// The MAC address that the guest finds.
    pub mac: MacAddress,
    /// The queues of one tap or macvtap, opened with `IFF_VNET_HDR`; at least one.
    pub taps: Arc<[OwnedFd]>,
    /// `/dev/vhost-net`, opened once for each queue; empty if QEMU is to move the frames itself.
    pub vhost: Arc<[OwnedFd]>,
}

/// Duplicates for QEMU, and the devices that name them.
pub(crate) fn devices(nics: &[Nic]) -> io::Result<(Vec<NicDevice>, Vec<OwnedFd>)> {
    let mut pass = Vec::new();
    let mut duplicates = |originals: &[OwnedFd]| {
        let first = pass.len();
        for original in originals {
            pass.push(original.try_clone()?);
        }
        Ok::<_, io::Error>(pass[first..].iter().map(|fd| number(fd.as_fd())).collect())
    };
    let mut devices = Vec::with_capacity(nics.len());
    for nic in nics {
        devices.push(NicDevice {
            mac: nic.mac,
            taps: duplicates(&nic.taps)?,
            vhost: duplicates(&nic.vhost)?,
        });
    }
    Ok((devices, pass))
}
