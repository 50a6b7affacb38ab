//! The ioctls of taps.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

mod ioctl {
    // _IOW('T', 202, int), include/uapi/linux/if_tun.h: the structure's size is not the number's.
    nix::ioctl_write_ptr_bad!(
        tun_set_iff,
        nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
        libc::ifreq
    );
}

/// Makes the file one queue of the tap `name`, with the frames' offloads in front of them (`IFF_VNET_HDR`): the kernel's
/// tuntap.rst. A macvtap's file is one already; only its flags are set.
pub(super) fn attach(file: &File, name: &str, multi_queue: bool) -> io::Result<()> {
    // SAFETY: ifreq is plain data for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let queues = if multi_queue { libc::IFF_MULTI_QUEUE } else { 0 };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | queues;
    // The flags are the low 16 bits of an int; the highest of them is the sign of a short.
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: `request` is a valid ifreq with a terminated name.
    unsafe { ioctl::tun_set_iff(file.as_raw_fd(), &raw const request) }?;
    Ok(())
}
