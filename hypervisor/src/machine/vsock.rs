//! The backend that connects guest and host, and the guest's address.
//!
//! vhost: the kernel's, with a CID that no other guest of the host has. vhost-user: a daemon for this VM alone, whose
//! host side are Unix sockets, so that the CID need not be unique.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;

use config::Vsock;
use nix::errno::Errno;
use rustix::rand::GetRandomFlags;

const DEVICE: &str = "/dev/vhost-vsock";

/// How many random CIDs are tried: with 2^32 of them a second try is already rare.
const CID_ATTEMPTS: u32 = 64;

/// The address of a guest (vsock(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cid(u32);

impl Cid {
    /// The guest behind a daemon of its own: any will do.
    pub(crate) const ALONE: Cid = Cid(3);

    /// None where the number is reserved: 0 to 2 are the hypervisor, the host itself and the host as guests see it,
    /// 2^32 - 1 is `VMADDR_CID_ANY`.
    pub(crate) fn new(number: u32) -> Option<Self> {
        (3..u32::MAX).contains(&number).then_some(Self(number))
    }

    pub(crate) fn number(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Cid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why the kernel's vsock cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what they are")]
pub enum VsockError {
    /// It is asked for, and the device cannot be opened.
    #[error(
        "vsock is configured as vhost, but {DEVICE} cannot be opened: load the module vhost_vsock, or set \
         hypervisor.qemu.vsock to \"auto\""
    )]
    Open(#[source] io::Error),
    /// The device refuses a CID for another reason than that it is taken.
    #[error("{DEVICE} does not accept CID {cid}")]
    SetCid {
        cid: u32,
        #[source]
        source: io::Error,
    },
    /// Every CID that was tried is taken.
    #[error("{DEVICE}: no free CID found in {CID_ATTEMPTS} attempts")]
    NoFreeCid,
    #[error("no random number for a CID")]
    Random(#[source] io::Error),
}

/// The back end of one VM.
#[derive(Debug)]
pub(crate) enum Backend {
    /// The kernel's; the CID is reserved as long as the device is open.
    Vhost { device: File, cid: Cid },
    /// The daemon's.
    VhostUser,
}

/// Picks the back end for this host.
pub(crate) fn choose(wanted: Vsock) -> Result<Backend, VsockError> {
    if wanted == Vsock::VhostUser {
        return Ok(Backend::VhostUser);
    }
    let device = match OpenOptions::new().read(true).write(true).open(DEVICE) {
        Ok(device) => device,
        Err(error) if wanted == Vsock::Vhost => return Err(VsockError::Open(error)),
        Err(error) => {
            tracing::debug!(%error, "{DEVICE} cannot be opened: vsock is served by the daemon");
            return Ok(Backend::VhostUser);
        }
    };
    let cid = reserve(random_cid, |cid| {
        crate::machine::sys::set_guest_cid(&device, cid.number())
    })?;
    Ok(Backend::Vhost { device, cid })
}

fn reserve(
    mut pick: impl FnMut() -> io::Result<Cid>,
    mut set: impl FnMut(Cid) -> nix::Result<()>,
) -> Result<Cid, VsockError> {
    for _ in 0..CID_ATTEMPTS {
        let cid = pick().map_err(VsockError::Random)?;
        match set(cid) {
            Ok(()) => return Ok(cid),
            Err(Errno::EADDRINUSE) => {}
            Err(errno) => {
                return Err(VsockError::SetCid {
                    cid: cid.number(),
                    source: errno.into(),
                });
            }
        }
    }
    Err(VsockError::NoFreeCid)
}

fn random_cid() -> io::Result<Cid> {
    loop {
        let mut bytes = [0; 4];
        rustix::rand::getrandom(&mut bytes, GetRandomFlags::empty())?;
        if let Some(cid) = Cid::new(u32::from_ne_bytes(bytes)) {
            return Ok(cid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_numbers_are_no_cids() {
        for number in [0, 1, 2, u32::MAX] {
            assert_eq!(Cid::new(number), None);
        }
        assert_eq!(Cid::new(3).map(Cid::number), Some(3));
    }

    #[test]
    fn a_taken_cid_is_passed_over() {
        let mut next = 10;
        let pick = || {
            next += 1;
            Ok(Cid(next))
        };
        let set = |cid: Cid| {
            if cid.number() < 13 {
                Err(Errno::EADDRINUSE)
            } else {
                Ok(())
            }
        };
        assert_eq!(reserve(pick, set).unwrap(), Cid(13));
    }

    #[test]
    fn a_refusal_names_the_cid() {
        let error = reserve(|| Ok(Cid(9)), |_| Err(Errno::EBADF)).unwrap_err();
        assert!(error.to_string().contains('9'), "{error}");
    }

    #[test]
    fn a_host_full_of_guests_is_an_error() {
        let error = reserve(|| Ok(Cid(9)), |_| Err(Errno::EADDRINUSE)).unwrap_err();
        assert!(matches!(error, VsockError::NoFreeCid));
    }
}
