//! QEMU as a user who owns nothing on the host and is in no group, with a root of its own: it inherits open descriptors for
//! what it needs, or finds it in that root ([`crate::process::qemu_root`]).
//!
//! This module does not start QEMU. QEMU inherits sockets, taps and vhost devices in any case; this module opens the
//! files that QEMU otherwise opens itself.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use rustix::rand::GetRandomFlags;

use crate::machine::accel::Accel;
use crate::machine::descriptor::number;

/// Numbers that nobody gives to a user: neither distributions nor systemd, whose container users end below
/// (systemd's UIDS-GIDS.md: "1879048192…2147483647 unused").
const FIRST: u32 = 0x7000_0000;
/// A power of two. With 2^28 of them two of a host's sandboxes hardly ever have the same.
const COUNT: u32 = 1 << 28;

/// Why QEMU cannot be another user.
#[derive(Debug, thiserror::Error)]
pub enum RootlessError {
    /// A file that it needs cannot be opened.
    #[error("rootless: {path:?} cannot be opened for QEMU")]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("rootless: no random number for a user")]
    Random(#[source] io::Error),
}

/// A user and group of the host that are nobody else's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct User(u32);

impl User {
    /// One that hardly any other process has.
    pub(crate) fn random() -> io::Result<Self> {
        let mut bytes = [0; 4];
        rustix::rand::getrandom(&mut bytes, GetRandomFlags::empty())?;
        Ok(Self::of(u32::from_ne_bytes(bytes)))
    }

    fn of(random: u32) -> Self {
        // The last two of the range are left alone: -1 and -2 of a signed number are special to some programs.
        Self(FIRST + (random % COUNT).min(COUNT - 3))
    }

    /// Of the user and of the group.
    pub(crate) fn number(self) -> u32 {
        self.0
    }
}

/// The user of one VM's QEMU, and what it inherits for it.
#[derive(Debug)]
pub(crate) struct Rootless {
    user: User,
    kvm: Option<OwnedFd>,
}

impl Rootless {
    /// Opens what it needs while we may.
    pub(crate) fn prepare(accel: Accel) -> Result<Self, RootlessError> {
        let kvm = match accel {
            Accel::Kvm => Some(open(Path::new("/dev/kvm"), OpenOptions::new().read(true).write(true))?),
            Accel::Tcg => None,
        };
        Ok(Self {
            user: User::random().map_err(RootlessError::Random)?,
            kvm: kvm.map(OwnedFd::from),
        })
    }

    pub(crate) fn user(&self) -> User {
        self.user
    }

    pub(crate) fn kvm(&self) -> Option<RawFd> {
        self.kvm.as_ref().map(|device| number(device.as_fd()))
    }

    /// What QEMU is to inherit.
    pub(crate) fn descriptors(self) -> impl Iterator<Item = OwnedFd> {
        self.kvm.into_iter()
    }
}

fn open(path: &Path, options: &OpenOptions) -> Result<File, RootlessError> {
    options.open(path).map_err(|source| RootlessError::Open {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_of_the_range_that_nobody_has() {
        for random in [0, 1, COUNT - 1, COUNT, u32::MAX] {
            let number = User::of(random).number();
            assert!((0x7000_0000..0x7fff_fffe).contains(&number), "{number:x}");
        }
    }
}
