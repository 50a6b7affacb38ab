//! Mounts something over a part of a running container's volume: in the container's mount namespace, by a thread that enters it.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    thread,
};

use nix::sched::{CloneFlags, setns, unshare};
use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatVfsMountFlags, StatxFlags, openat2, statx},
    mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree},
};

use super::sys;

/// A file as this kernel knows it.
type Identity = (u32, u32, u64);

/// Mounts `source` over `place` in the namespace, for reading alone, if `shown` is what is there. Whether `source` is there then: it may
/// have been before. The paths of `source` and `shown` are the guest's own.
pub(super) fn cover(namespace: &OwnedFd, place: &Path, shown: &Path, source: &Path) -> io::Result<bool> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(CWD, source, flags)?;
    let source = identity(&tree)?;
    let shown = identity(&rustix::fs::open(shown, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)?;
    // A thread of its own: it is lost to the namespace.
    thread::scope(|scope| {
        let enter = || -> io::Result<bool> {
            unshare(CloneFlags::CLONE_FS)?;
            setns(namespace.as_fd(), CloneFlags::CLONE_NEWNS)?;
            let root = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
            let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
            let there = openat2(&root, place, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)?;
            match identity(&there)? {
                covered if covered == source => return Ok(true),
                other if other != shown => return Ok(false),
                _ => {}
            }
            sys::restrict(&tree, restrictions(&there)?)?;
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
            move_mount(&tree, "", &there, "", flags)?;
            Ok(true)
        };
        let entered = thread::Builder::new().spawn_scoped(scope, enter)?;
        let joined = entered.join();
        joined.unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
    })
}

fn identity(file: &OwnedFd) -> io::Result<Identity> {
    let known = statx(
        file,
        "",
        AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC,
        StatxFlags::INO,
    )?;
    Ok((known.stx_dev_major, known.stx_dev_minor, known.stx_ino))
}

/// What the mount that is there does not allow, the new one does not either.
fn restrictions(there: &OwnedFd) -> io::Result<u64> {
    let flags = rustix::fs::fstatvfs(there)?.f_flag;
    let words = [
        (StatVfsMountFlags::NOSUID, libc::MOUNT_ATTR_NOSUID),
        (StatVfsMountFlags::NODEV, libc::MOUNT_ATTR_NODEV),
        (StatVfsMountFlags::NOEXEC, libc::MOUNT_ATTR_NOEXEC),
    ];
    let there = words.iter().filter(|(flag, _)| flags.contains(*flag));
    Ok(there.fold(libc::MOUNT_ATTR_RDONLY, |all, (_, attribute)| all | attribute))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
    use std::{fs, fs::File};

    #[test]
    fn a_part_is_covered_once_and_what_else_is_there_stays() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let test = || {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
            for name in ["part", "volume", "other"] {
                fs::create_dir(at(name)).unwrap();
                mount("tmpfs", at(name), "tmpfs", MountFlags::empty(), None).unwrap();
                fs::write(at(name).join("name"), name).unwrap();
            }
            let namespace: OwnedFd = File::open("/proc/thread-self/ns/mnt").unwrap().into();
            let mounts = || fs::read_to_string("/proc/thread-self/mounts").unwrap().lines().count();
            let before = mounts();
            assert!(!cover(&namespace, &at("part"), &at("other"), &at("volume")).unwrap());
            assert_eq!(mounts(), before);
            let part: OwnedFd = File::open(at("part")).unwrap().into();
            let shown = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&part));
            // The second time it is there already.
            for _ in 0..2 {
                assert!(cover(&namespace, &at("part"), Path::new(&shown), &at("volume")).unwrap());
                assert_eq!(mounts(), before + 1);
            }
            assert_eq!(fs::read_to_string(at("part/name")).unwrap(), "volume");
            assert!(fs::write(at("part/name"), "").is_err());
        };
        thread::scope(|scope| scope.spawn(test).join().unwrap());
    }
}
