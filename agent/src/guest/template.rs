//! The guest of a template: waits for the device that a copy of the VM is given.
//!
//! Nothing that must be unique may be made before that: whatever the guest's memory holds then is the same in all copies.

use std::io;

use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_LOCAL};

use crate::common::sys;
use crate::guest::uevents::Uevents;

/// Prints that it waits, and returns when there is a vsock device.
///
/// # Errors
/// The kernel does not announce devices, or has no vsock at all.
pub(crate) async fn wait_for_device() -> io::Result<()> {
    let uevents = Uevents::listen()?;
    // Stderr is the console. The line is what the host waits for before it saves the VM.
    eprintln!("{}", protocol::TEMPLATE_WAITS);
    while !has_address(sys::local_cid()?) {
        // One of them comes when the driver has taken the device.
        uevents.next().await?;
    }
    Ok(())
}

/// Whether it is the address of a device (vsock(7)): the kernel has these two without one.
fn has_address(cid: u32) -> bool {
    ![VMADDR_CID_ANY, VMADDR_CID_LOCAL].contains(&cid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_device_gives_an_address() {
        assert!(has_address(3) && has_address(1 << 20));
        assert!(!has_address(VMADDR_CID_ANY) && !has_address(1));
    }
}
