//! The system calls and instructions that need `unsafe`: the vhost-vsock ioctl, and CPUID.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::AsRawFd;

mod ioctl {
    // _IOW(VHOST_VIRTIO, 0x60, __u64), include/uapi/linux/vhost.h
    nix::ioctl_write_ptr!(vhost_vsock_set_guest_cid, 0xAF, 0x60, u64);
}

/// Gives the device behind `/dev/vhost-vsock` its guest's CID; EADDRINUSE if another guest has it.
pub(crate) fn set_guest_cid(device: &File, cid: u32) -> nix::Result<()> {
    let cid = u64::from(cid);
    // SAFETY: the ioctl reads one u64 through the pointer, which is valid for the call.
    unsafe { ioctl::vhost_vsock_set_guest_cid(device.as_raw_fd(), &raw const cid) }.map(drop)
}

/// The frequency of the time stamp counter in kHz, if CPUID tells it.
///
/// Leaf 0x15 is Intel's (SDM, CPUID), leaf 0x40000010 that of hypervisors (VMware's interface, offered by KVM's users).
#[cfg(target_arch = "x86_64")]
pub(crate) fn tsc_khz() -> Option<u32> {
    use std::arch::x86_64::{__cpuid, __cpuid_count};

    let basic = __cpuid(0).eax;
    if basic >= 0x15 {
        let leaf = __cpuid_count(0x15, 0);
        if leaf.eax != 0 && leaf.ebx != 0 && leaf.ecx != 0 {
            let hertz = u64::from(leaf.ecx) * u64::from(leaf.ebx) / u64::from(leaf.eax);
            return u32::try_from(hertz / 1000).ok();
        }
    }
    let in_a_guest = __cpuid(1).ecx & (1 << 31) != 0;
    if in_a_guest && __cpuid(0x4000_0000).eax >= 0x4000_0010 {
        let khz = __cpuid(0x4000_0010).eax;
        return (khz != 0).then_some(khz);
    }
    None
}

/// Other architectures have no such counter.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn tsc_khz() -> Option<u32> {
    None
}
