//! Makes an exported mount writable or read-only while it is in use.
//!
//! A mount's attributes do not propagate (mount_namespaces(7)). virtiofsd's mount namespace has a copy of each mount, and
//! a thread enters that namespace and changes the copy. The server process is found as the descendant of the shim whose
//! mount namespace contains the mount. A server that starts meanwhile copies the mounts with their attributes at that
//! time.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::mirror::mount_id;
use super::registry::Place;
use crate::host::mountinfo::{self, MountLine};
use crate::host::openat_beneath;
use crate::host::process;
use crate::host::sys::{self, SetAttr};

/// Makes the mount at `place` below `root`, the shared directory, read-only or writable, with all that is mounted inside it but
/// for what is not among `lift`, which stays read-only if it is. Fails if a file there is open for writing and it is to become read-only: with all
/// that can be changed changed.
pub(super) fn set(root: &Path, place: &Path, writable: bool, lift: &[Place]) -> io::Result<()> {
    let mut done = change(&mountinfo::read()?, &root.join(place), writable, lift);
    for server in servers()? {
        // It sees the shared directory as its root.
        let place = Path::new("/").join(place);
        let mounts = mountinfo::of(server)?;
        if !mounts.iter().any(|line| line.mountpoint == place) {
            continue;
        }
        let namespace = File::open(format!("/proc/{server}/ns/mnt"))?;
        // A thread of its own: it is lost to the namespace.
        let changed = thread::scope(|scope| {
            let enter = || -> io::Result<()> {
                sys::unshare_working_directory()?;
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))?;
                change(&mounts, &place, writable, lift)
            };
            let thread = thread::Builder::new().spawn_scoped(scope, enter)?;
            thread
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
        });
        done = done.and(changed);
    }
    done
}

/// Changes the mount at `path`, and those inside it, in the calling thread's namespace.
fn change(mounts: &[MountLine], path: &Path, writable: bool, lift: &[Place]) -> io::Result<()> {
    let change = if writable { SetAttr::Writable } else { SetAttr::ReadOnly };
    let (mut seen, mut found, mut failed) = (false, false, None);
    for line in mounts {
        let Ok(inside) = line.mountpoint.strip_prefix(path) else {
            continue;
        };
        let top = inside.as_os_str().is_empty();
        let listed = || lift.iter().any(|of| (of.device, &of.path) == (line.device, &line.root));
        // The first one there is the volume; what the host has mounted over all of it since is not.
        let own = top && !seen;
        seen |= top;
        if writable && !own && !listed() {
            found |= top;
            continue;
        }
        let opened = openat_beneath::open(path, inside).and_then(|opened| Ok((mount_id(&opened)?, opened)));
        match opened {
            Ok((id, opened)) if id == line.id => {
                found |= top;
                if let Err(error) = sys::mount_setattr(opened.as_fd(), change) {
                    failed.get_or_insert(error);
                }
            }
            // Another one is mounted over it, or the guest has moved the directory that it is on.
            Ok(_) => {}
            Err(error) if top => return Err(error),
            Err(error) => tracing::warn!(place = %line.mountpoint.display(), %error, "a mount stays as it is"),
        }
    }
    match (failed, found) {
        (Some(error), _) => Err(error),
        (None, true) => Ok(()),
        (None, false) => Err(io::ErrorKind::NotFound.into()),
    }
}

/// Descendants of this process that have another mount namespace than the calling thread, one for each.
fn servers() -> io::Result<Vec<i32>> {
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt"));
    let mut seen = BTreeSet::from([namespace("thread-self")?]);
    let mut found = Vec::new();
    for pid in process::descendants()? {
        // What has ended meanwhile serves nobody.
        if namespace(&pid.to_string()).is_ok_and(|own| seen.insert(own)) {
            found.push(pid);
        }
    }
    Ok(found)
}
