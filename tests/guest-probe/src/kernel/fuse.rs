//! What the guest's FUSE does to a bind mount of a host directory.
//!
//! Issue 8040: it must outlive the place that it was bound from. The container's mount is a clone of an automount that the guest made below its virtio-fs mount. Once that automount is
//! gone from the guest's own mount namespace, nothing holds the directory entry it was mounted on, and the kernel forgets
//! the entry when memory is short. A kernel without the fix then tells virtiofsd to forget the directory, though the
//! container still has it.

use std::{
    fs::{self, File},
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::Path,
};

use nix::{
    errno::Errno,
    libc,
    mount::{MntFlags, MsFlags, mount, umount2},
    poll::{PollFd, PollFlags, poll},
    sched::{CloneFlags, setns},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};
use rustix::io::Errno as Fault;

use super::{peer::Peer, verdict::Verdict};
use crate::error::Result;

/// How often entries are dropped and the directory is read: FORGET reaches virtiofsd on a queue of its own, some time.
const ROUNDS: u32 = 100;
/// What the host makes in the directory once it has read `watching`, and how long that may go unnoticed.
const MADE: &str = "made-by-the-host";
const NOTICE_MS: u16 = 20_000;
/// One page in so many is enough to have all of them.
const STEP: usize = 4096;

/// With `echo 3 > /proc/sys/vm/drop_caches`, which does what a shortage of memory does, for certain.
pub(super) fn pruned(path: &str) -> Result<Verdict> {
    part(path)?;
    watch(path, drop_caches)
}

/// With a process that takes memory until it is killed: all that the guest has. The agent keeps containers from that by a
/// limit of their common cgroup, and a shortage in a cgroup does not touch entries that are not the cgroup's; so the process
/// leaves it.
pub(super) fn pruned_by_oom(path: &str) -> Result<Verdict> {
    part(path)?;
    Peer::start(|_| {
        // A process may not leave its cgroup namespace's root (cgroups(7), nsdelegate): it takes the guest's first.
        setns(File::open("/proc/1/ns/cgroup")?, CloneFlags::CLONE_NEWCGROUP)?;
        setns(File::open("/proc/1/ns/mnt")?, CloneFlags::CLONE_NEWNS)?;
        fs::write("/sys/fs/cgroup/cgroup.procs", "0")?;
        fs::write("/proc/self/oom_score_adj", "1000")?;
        exhaust()
    })?
    .killed()?;
    watch(path, || Ok(()))
}

/// Whether a watcher of the directory is told of what the host makes in it.
pub(super) fn host_change(path: &str) -> Result<Verdict> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC)?;
    inotify.add_watch(path, AddWatchFlags::IN_CREATE)?;
    println!("watching");
    let told = poll(&mut [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)], NOTICE_MS)? > 0;
    // The test proves nothing if the host made nothing.
    fs::metadata(Path::new(path).join(MADE))?;
    Ok(if told {
        Verdict::Right(format!("told of {MADE} in {path}"))
    } else {
        Verdict::Wrong(format!("{MADE} is in {path}, and its watcher was not told within 20 s"))
    })
}

/// Whether access lists count on the directory, which is a submount in the guest.
pub(super) fn submount_acl(path: &str) -> Result<Verdict> {
    let mut list = [0_u8; 256];
    match rustix::fs::getxattr(path, "system.posix_acl_access", &mut list) {
        Ok(_) | Err(Fault::NODATA) => Ok(Verdict::Right(format!("{path} can have an access list"))),
        Err(Fault::OPNOTSUPP) => Ok(Verdict::Wrong(format!("the access list of {path} is EOPNOTSUPP"))),
        Err(error) => Err(format!("the access list of {path}: {error}").into()),
    }
}

/// Whether what the host has mounted inside the directory is one file system, however often the directory itself is mounted.
pub(super) fn one_superblock(path: &str) -> Result<Verdict> {
    let nested = |directory: &Path| fs::metadata(directory.join("nested/."));
    let (directory, again) = (Path::new(path), Path::new("/again"));
    let first = nested(directory)?;
    if first.dev() == fs::metadata(directory)?.dev() {
        return Err(format!("nothing is mounted inside {path}").into());
    }
    fs::create_dir(again)?;
    mount(Some(directory), again, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    let second = nested(again)?;
    Ok(if first.dev() == second.dev() {
        Verdict::Right(format!(
            "what is mounted inside {path} is one file system in two mounts of it"
        ))
    } else {
        Verdict::Wrong(format!(
            "what is mounted inside {path} is a file system for each mount of it"
        ))
    })
}

/// Unmounts in the guest's own mount namespace what the container's `path` was cloned from.
fn part(path: &str) -> Result<()> {
    let dev = fs::metadata(path)?.dev();
    let device = format!("{}:{}", libc::major(dev), libc::minor(dev));
    Peer::start(|_| {
        // Needs the guest's PID namespace: its first process is the agent.
        setns(File::open("/proc/1/ns/mnt")?, CloneFlags::CLONE_NEWNS)?;
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let points: Vec<&str> = mounts
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>())
            .filter(|fields| fields.get(2) == Some(&device.as_str()))
            .filter_map(|fields| fields.get(4).copied())
            .collect();
        if points.is_empty() {
            return Err(format!("no mount of device {device} among the guest's:\n{mounts}").into());
        }
        for point in points {
            // The agent has the mount open, for what the host changes below it: it leaves the tree, and the agent keeps it.
            umount2(point, MntFlags::MNT_DETACH)?;
        }
        Ok(())
    })?
    .end()
}

fn watch(path: &str, between: impl Fn() -> io::Result<()>) -> Result<Verdict> {
    for round in 1..=ROUNDS {
        between()?;
        match fs::read_dir(path).and_then(|entries| entries.collect::<io::Result<Vec<_>>>()) {
            Ok(entries) if entries.is_empty() => return Err(format!("{path} is empty").into()),
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(Errno::EBADF as i32) => {
                return Ok(Verdict::Wrong(format!("{path} is EBADF at the {round}. look")));
            }
            Err(error) => return Err(format!("reading {path}: {error}").into()),
        }
    }
    Ok(Verdict::Right(format!("{path} could be read {ROUNDS} times")))
}

fn drop_caches() -> io::Result<()> {
    fs::write("/proc/sys/vm/drop_caches", "3")
}

/// Takes memory until there is none.
fn exhaust() -> Result<()> {
    let mut taken: Vec<Vec<u8>> = Vec::new();
    loop {
        let mut more = vec![0_u8; 4 << 20];
        for byte in more.iter_mut().step_by(STEP) {
            *byte = 1;
        }
        taken.push(more);
    }
}
