//! The seed of the guest's random number generator.
//!
//! All copies of a template have the generator's state in their memory. With the host's bytes in it, each goes its own way.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsFd;

use crate::common::sys;

/// Mixes the bytes into the kernel's generator, credits them, and has the generator use them at once: without that, it would go on with what it
/// has for up to a minute (random(4)). No bytes: nothing is done.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn reseed(bytes: &[u8]) -> io::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    let device = OpenOptions::new().write(true).open("/dev/urandom")?;
    sys::add_entropy(device.as_fd(), bytes)?;
    sys::reseed(device.as_fd())
}
