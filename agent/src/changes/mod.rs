//! Changes that the host has made to what it shares: the guest's kernel tells them to whoever watches.
//!
//! A container's bind mounts are held open from before its first process on, so that what is told here reaches the very
//! files that the container has, whatever is mounted over them later. The kernel's side is the patch
//! `guest-kernel/patches/0200-fuse-tell-watchers-of-changes-on-the-host.patch`.

mod sys;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use oci_spec::runtime::Spec;
use protocol::agent::HostChange;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use crate::ids::ContainerId;

/// The sources of a container's bind mounts that come from the host.
#[derive(Debug, Default)]
pub(crate) struct Sources(HashMap<u32, OwnedFd>);

impl Sources {
    /// Opens what the specification binds. What cannot be opened is left to the launch, which says so.
    pub(crate) fn open(id: &ContainerId, spec: &Spec) -> Self {
        let mounts = Path::new(protocol::SHARE_MOUNTPOINT).join(id.as_str()).join("mounts");
        let sources = spec.mounts().iter().flatten().filter_map(|mount| {
            let source = mount.source().as_deref()?;
            let number = source.strip_prefix(&mounts).ok()?.to_str()?.parse().ok()?;
            Some((number, hold(source).ok()?))
        });
        Self(sources.collect())
    }

    /// Tells one change. What is not there, or not any longer, has nobody who watches it.
    ///
    /// # Errors
    /// ENOTTY or ENOSYS: the kernel cannot.
    pub(crate) fn tell(&self, change: &HostChange) -> io::Result<()> {
        let Some(source) = self.0.get(&change.mount) else {
            return Ok(());
        };
        let path = if change.directory.is_empty() {
            Path::new(".")
        } else {
            Path::new(OsStr::from_bytes(&change.directory))
        };
        let file = match beneath(source, path, change.directory.is_empty()) {
            Ok(file) => file,
            Err(Errno::NOSYS) => return Err(Errno::NOSYS.into()),
            Err(_) => return Ok(()),
        };
        match sys::tell(&file, change.mask, change.cookie, &change.name) {
            Err(error) if unsupported(&error) => Err(error),
            Err(error) => {
                tracing::debug!(mount = change.mount, ?path, %error, "a change of the host's is not told");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }
}

/// Whether the error means that this kernel is without the patch.
pub(crate) fn unsupported(error: &io::Error) -> bool {
    // virtiofsd answers an ioctl that it does not know with ENOSYS or ENOTTY.
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOTTY | Errno::NOSYS | Errno::OPNOTSUPP)
    )
}

/// Opens a mount's root as such: nothing is opened at the host.
fn hold(source: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    // A directory is a mount of its own that the first look at it mounts. O_PATH alone does not look (the kernel's
    // follow_automount), and what it gave would not be what the container has.
    match rustix::fs::open(source, flags | OFlags::DIRECTORY, Mode::empty()) {
        Err(Errno::NOTDIR) => rustix::fs::open(source, flags, Mode::empty()),
        held => held,
    }
}

/// Opens a directory below a mount, or the mount's root, which can be a file.
fn beneath(source: &OwnedFd, path: &Path, root: bool) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    if root {
        // The same file once more, readable: "." does not exist in one that is no directory.
        let number = std::os::fd::AsRawFd::as_raw_fd(source);
        return rustix::fs::openat(CWD, format!("/proc/self/fd/{number}"), flags, Mode::empty());
    }
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    openat2(source, path, flags | OFlags::DIRECTORY, Mode::empty(), resolve)
}
