//! Taps and macvtaps: the files that QEMU gets. The functions must be called in the pod's namespace.

use std::fs::{File, OpenOptions};
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use super::sys;

/// Makes taps (the kernel's tuntap.rst).
const TUN: &str = "/dev/net/tun";

/// The kernel's half of a virtio-net device.
const VHOST: &str = "/dev/vhost-net";

/// Which file could not be had.
pub(super) type Failed = (String, io::Error);

/// The name of the tap of the interface at this place: Kata's.
pub(super) fn name(place: usize) -> String {
    format!("tap{place}_kata")
}

pub(super) fn is_name(name: &str) -> bool {
    let place = name.strip_prefix("tap").and_then(|rest| rest.strip_suffix("_kata"));
    place.is_some_and(|place| place.bytes().all(|digit| digit.is_ascii_digit()))
}

/// Makes a tap that lives as long as one of its files is open.
pub(super) fn make(name: &str, queues: NonZeroUsize) -> Result<Arc<[OwnedFd]>, Failed> {
    let open = |_| {
        let file = open(TUN)?;
        sys::attach(&file, name, queues.get() > 1)?;
        Ok(OwnedFd::from(file))
    };
    (0..queues.get())
        .map(open)
        .collect::<io::Result<_>>()
        .map_err(|error| (TUN.to_owned(), error))
}

pub(super) fn open_macvtap(index: u32, name: &str, queues: NonZeroUsize) -> Result<Arc<[OwnedFd]>, Failed> {
    let device = format!("/dev/tap{index}");
    let open = |_| {
        let file = open(&device)?;
        sys::attach(&file, name, queues.get() > 1)?;
        Ok(OwnedFd::from(file))
    };
    let queues = (0..queues.get()).map(open).collect::<io::Result<_>>();
    queues.map_err(|error| (device.clone(), error))
}

/// The kernel's half for each queue; nothing where the kernel has none.
pub(super) fn vhost(queues: NonZeroUsize) -> Result<Arc<[OwnedFd]>, Failed> {
    let files: io::Result<_> = (0..queues.get()).map(|_| open(VHOST).map(OwnedFd::from)).collect();
    match files {
        // The node may be there while the module is not (ENODEV).
        Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV) => {
            Ok(Arc::new([]))
        }
        files => files.map_err(|error| (VHOST.to_owned(), error)),
    }
}

fn open(path: &str) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)
}
