//! QEMU as a user who owns nothing on the host and is in no group: it inherits open descriptors for everything that it
//! needs.
//!
//! This module does not start QEMU. QEMU inherits sockets, taps and vhost devices in any case; this module opens the
//! files that QEMU otherwise opens itself.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::rand::GetRandomFlags;

use crate::accel::Accel;
use crate::sys::number;

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
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file that it needs is not for everybody.
    #[error(
        "rootless: the user that QEMU runs as may not read {path:?} (mode {mode:o}): let all read it, or set \
         hypervisor.qemu.rootless to false"
    )]
    Private {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The kernel gives no random numbers.
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
    kernel: OwnedFd,
    initrd: OwnedFd,
    kvm: Option<OwnedFd>,
}

impl Rootless {
    /// Opens everything while we may.
    pub(crate) fn prepare(kernel: &Path, initrd: &Path, accel: Accel) -> Result<Self, RootlessError> {
        let kvm = match accel {
            Accel::Kvm => Some(open(Path::new("/dev/kvm"), OpenOptions::new().read(true).write(true))?),
            Accel::Tcg => None,
        };
        Ok(Self {
            user: User::random().map_err(RootlessError::Random)?,
            kernel: public(kernel)?,
            initrd: public(initrd)?,
            kvm: kvm.map(OwnedFd::from),
        })
    }

    pub(crate) fn user(&self) -> User {
        self.user
    }

    /// By which QEMU opens it anew: the way to the file may be barred to its user, the file is not.
    pub(crate) fn kernel(&self) -> PathBuf {
        path_of(&self.kernel)
    }

    /// The same of the initrd.
    pub(crate) fn initrd(&self) -> PathBuf {
        path_of(&self.initrd)
    }

    pub(crate) fn kvm(&self) -> Option<RawFd> {
        self.kvm.as_ref().map(|device| number(device.as_fd()))
    }

    /// What QEMU is to inherit.
    pub(crate) fn descriptors(self) -> impl Iterator<Item = OwnedFd> {
        [self.kernel, self.initrd].into_iter().chain(self.kvm)
    }
}

/// QEMU's name for what it has inherited (proc(5), `/proc/self/fd`).
fn path_of(file: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", number(file.as_fd())).into()
}

fn open(path: &Path, options: &OpenOptions) -> Result<File, RootlessError> {
    options.open(path).map_err(|source| RootlessError::Open {
        path: path.to_owned(),
        source,
    })
}

/// A file that everybody may read.
fn public(path: &Path) -> Result<OwnedFd, RootlessError> {
    let file = open(path, OpenOptions::new().read(true))?;
    let metadata = file.metadata().map_err(|source| RootlessError::Open {
        path: path.to_owned(),
        source,
    })?;
    if metadata.mode() & 0o004 == 0 {
        return Err(RootlessError::Private {
            path: path.to_owned(),
            mode: metadata.mode() & 0o7777,
        });
    }
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn users_are_of_the_range_that_nobody_has() {
        for random in [0, 1, COUNT - 1, COUNT, u32::MAX] {
            let number = User::of(random).number();
            assert!((0x7000_0000..0x7fff_fffe).contains(&number), "{number:x}");
        }
    }

    #[test]
    fn a_kernel_that_only_root_may_read_is_named_with_its_mode_and_the_key() {
        let dir = tempfile::tempdir().unwrap();
        let (kernel, initrd) = (dir.path().join("kernel"), dir.path().join("initrd"));
        for file in [&kernel, &initrd] {
            fs::write(file, "x").unwrap();
            fs::set_permissions(file, Permissions::from_mode(0o644)).unwrap();
        }
        assert!(Rootless::prepare(&kernel, &initrd, Accel::Tcg).unwrap().kvm().is_none());
        fs::set_permissions(&initrd, Permissions::from_mode(0o640)).unwrap();
        let said = Rootless::prepare(&kernel, &initrd, Accel::Tcg).unwrap_err().to_string();
        let words = ["initrd", "640", "hypervisor.qemu.rootless"];
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
    }
}
