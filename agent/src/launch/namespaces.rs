//! The namespaces of a container: created or joined; an exec joins those of the container's first process.
//!
//! The kernel's rules decide the order (namespaces(7), user_namespaces(7)). The guest's namespaces are joined while the
//! child still has the guest's privileges. The user namespace follows. Namespaces that are created after it belong to it.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::{AsFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use nix::{
    sched::{CloneFlags, setns, unshare},
    sys::wait::{WaitStatus, waitpid},
    unistd::{ForkResult, Pid},
};
use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespaceType, Spec};
use rustix::{
    io::Errno,
    process::{DumpableBehavior, set_dumpable_behavior},
    thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};

use super::{
    fault::{Context, Fault, Result},
    sys,
};

/// Where the agent has mounted the guest's cgroups.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Which namespaces the container has for itself.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Fresh {
    /// Its own, or one that it joins: not the guest's.
    pub(super) user: bool,
    pub(super) uts: bool,
    pub(super) network: bool,
}

/// Joins and makes the namespaces of a new container, but for the PID namespace: that begins with the next fork.
pub(super) fn make(
    spec: &Spec,
    join: &[(LinuxNamespaceType, OwnedFd)],
    cgroup: &OwnedFd,
    agent_cgroup: &OwnedFd,
) -> Result<Fresh> {
    let listed = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.namespaces().as_deref())
        .unwrap_or_default();
    // A container has a mount namespace of its own in any case: its root could not be made without.
    let mut new = CloneFlags::CLONE_NEWNS;
    let mut joined = Vec::new();
    for namespace in listed
        .iter()
        .filter(|listed| join.iter().all(|(kind, _)| *kind != listed.typ()))
    {
        match namespace.path() {
            None => new |= flag(namespace.typ()),
            Some(path) => {
                let fd = File::open(path).or_refuse(|| format!("cannot open the namespace {}", path.display()))?;
                joined.push((namespace.typ(), OwnedFd::from(fd)));
            }
        }
    }
    let mut all: Vec<_> = joined.iter().chain(join).collect();
    all.sort_by_key(|(kind, _)| *kind == LinuxNamespaceType::User);
    let user = new.contains(CloneFlags::CLONE_NEWUSER) || all.iter().any(|(kind, _)| *kind == LinuxNamespaceType::User);
    for (kind, fd) in all {
        if *kind == LinuxNamespaceType::Mount {
            return Err(Fault::Refused(
                "a container cannot share the mount namespace of another".to_owned(),
            ));
        }
        setns(fd, flag(*kind)).or_refuse(|| format!("cannot join the {kind} namespace"))?;
        if *kind == LinuxNamespaceType::User {
            become_its_root()?;
        }
    }
    if new.contains(CloneFlags::CLONE_NEWUSER) {
        enter_user_namespace(spec.linux().as_ref())?;
    }
    if new.contains(CloneFlags::CLONE_NEWCGROUP) {
        unshare_cgroup(cgroup, agent_cgroup)?;
    }
    let rest = new - CloneFlags::CLONE_NEWUSER - CloneFlags::CLONE_NEWCGROUP;
    unshare(rest).or_refuse(|| "cannot make the container's namespaces")?;
    if new.contains(CLONE_NEWTIME) {
        set_clocks(spec.linux().as_ref())?;
    }
    Ok(Fresh {
        user,
        uts: new.contains(CloneFlags::CLONE_NEWUTS),
        network: new.contains(CloneFlags::CLONE_NEWNET),
    })
}

/// Whether [`make`] makes a network namespace, and does not join one.
pub(super) fn makes_network(spec: &Spec, join: &[(LinuxNamespaceType, OwnedFd)]) -> bool {
    let is_network = |kind| kind == LinuxNamespaceType::Network;
    let linux = spec.linux().as_ref();
    let listed = linux
        .and_then(|linux| linux.namespaces().as_deref())
        .unwrap_or_default();
    listed.iter().any(|one| is_network(one.typ()) && one.path().is_none())
        && !join.iter().any(|(kind, _)| is_network(*kind))
}

fn flag(kind: LinuxNamespaceType) -> CloneFlags {
    match kind {
        LinuxNamespaceType::Mount => CloneFlags::CLONE_NEWNS,
        LinuxNamespaceType::Cgroup => CloneFlags::CLONE_NEWCGROUP,
        LinuxNamespaceType::Uts => CloneFlags::CLONE_NEWUTS,
        LinuxNamespaceType::Ipc => CloneFlags::CLONE_NEWIPC,
        LinuxNamespaceType::User => CloneFlags::CLONE_NEWUSER,
        LinuxNamespaceType::Pid => CloneFlags::CLONE_NEWPID,
        LinuxNamespaceType::Network => CloneFlags::CLONE_NEWNET,
        LinuxNamespaceType::Time => CLONE_NEWTIME,
    }
}

/// The root of a cgroup namespace is the cgroup of who makes it: the child visits the container's for that moment.
fn unshare_cgroup(cgroup: &OwnedFd, agent_cgroup: &OwnedFd) -> Result<()> {
    enter_cgroup(cgroup)?;
    let unshared = unshare(CloneFlags::CLONE_NEWCGROUP).or_refuse(|| "cannot make the container's cgroup namespace");
    enter_cgroup(agent_cgroup)?;
    unshared
}

/// Moves the calling process into a cgroup. The kernel judges by who opened the file (cgroups(7)), not by who writes.
pub(super) fn enter_cgroup(procs: &OwnedFd) -> Result<()> {
    write_self(procs).or_fail(|| "cannot move the process into its cgroup")
}

fn write_self(procs: &OwnedFd) -> rustix::io::Result<()> {
    rustix::io::write(procs, b"0").map(drop)
}

/// The same for an exec: where the container's cgroup takes no processes, because the container has passed controllers on to
/// cgroups below it (as systemd does) or has made threaded ones, it is the one that its first process is in.
pub(super) fn enter_cgroup_or(procs: &OwnedFd, of_init: Option<&OwnedFd>) -> Result<()> {
    match (write_self(procs), of_init) {
        (Err(Errno::BUSY | Errno::OPNOTSUPP), Some(of_init)) => enter_cgroup(of_init),
        (entered, _) => entered.or_fail(|| "cannot move the process into its cgroup"),
    }
}

/// `cgroup.procs` of the cgroup that the container's first process has moved to; none where it is still in the container's own.
/// Must come before the container's namespaces are joined.
pub(super) fn cgroup_of_init(init: &OwnedFd, container: &Path) -> Result<Option<OwnedFd>> {
    let path = format!("/proc/{}/cgroup", pid_of(init)?);
    let text = std::fs::read_to_string(&path).or_refuse(|| "the container has ended")?;
    let Some(below) = moved_to(&text, container) else {
        return Ok(None);
    };
    let procs = File::options().write(true).open(below.join("cgroup.procs"));
    // It may have moved on, and the container's own cgroup may do: this one is not needed until that has said no.
    Ok(procs.ok().map(OwnedFd::from))
}

/// The directory of the cgroup that /proc/PID/cgroup names (cgroups(7)), if it is one below the container's.
fn moved_to(text: &str, container: &Path) -> Option<PathBuf> {
    let named = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let path = Path::new(CGROUPS).join(named);
    let plain = path.components().all(|part| !matches!(part, Component::ParentDir));
    (plain && path != container && path.starts_with(container)).then_some(path)
}

/// A new user namespace, with its maps written by a helper that stays in the old one.
fn enter_user_namespace(linux: Option<&Linux>) -> Result<()> {
    let maps = |select: fn(&Linux) -> &Option<Vec<LinuxIdMapping>>| {
        linux
            .and_then(|linux| select(linux).as_deref())
            .map(map_lines)
            .unwrap_or_default()
    };
    let (uid_map, gid_map) = (maps(Linux::uid_mappings), maps(Linux::gid_mappings));
    let (begin, begun) = nix::unistd::pipe().or_fail(|| "cannot make a pipe")?;
    let owner = Pid::this();
    let fork = sys::fork().or_fail(|| "cannot start the helper that writes the id maps")?;
    let ForkResult::Parent { child: helper } = fork else {
        drop(begun);
        let written = File::from(begin).read_exact(&mut [0]).is_ok()
            && std::fs::write(format!("/proc/{owner}/uid_map"), &uid_map).is_ok()
            && std::fs::write(format!("/proc/{owner}/gid_map"), &gid_map).is_ok();
        std::process::exit(if written { 0 } else { 1 });
    };
    drop(begin);
    unshare(CloneFlags::CLONE_NEWUSER).or_refuse(|| "cannot make the container's user namespace")?;
    File::from(begun)
        .write_all(b"!")
        .or_fail(|| "the helper that writes the id maps ended")?;
    if waitpid(helper, None) != Ok(WaitStatus::Exited(helper, 0)) {
        return Err(Fault::Refused(format!(
            "cannot map the ids of the user namespace: uidMappings {uid_map:?}, gidMappings {gid_map:?}"
        )));
    }
    become_its_root()
}

/// Root of the user namespace that was made or joined: what the child was outside has no name here.
fn become_its_root() -> Result<()> {
    let (uid, gid) = (rustix::process::Uid::ROOT, rustix::process::Gid::ROOT);
    set_thread_groups(&[])
        .and_then(|()| set_thread_res_gid(gid, gid, gid))
        .and_then(|()| set_thread_res_uid(uid, uid, uid))
        .or_refuse(|| "the user namespace maps nobody to root")?;
    // A change of ids hides a process's files in /proc from itself, and they are needed once more.
    set_dumpable_behavior(DumpableBehavior::Dumpable).or_fail(|| "cannot make the process dumpable")
}

/// The lines of uid_map and gid_map (user_namespaces(7)).
pub(super) fn map_lines(mappings: &[LinuxIdMapping]) -> String {
    mappings
        .iter()
        .map(|map| format!("{} {} {}\n", map.container_id(), map.host_id(), map.size()))
        .collect()
}

/// Where the clocks of the time namespace begin (time_namespaces(7)).
fn set_clocks(linux: Option<&Linux>) -> Result<()> {
    let Some(offsets) = linux.and_then(|linux| linux.time_offsets().as_ref()) else {
        return Ok(());
    };
    let lines: String = offsets
        .iter()
        .map(|(clock, by)| format!("{clock} {} {}\n", by.secs().unwrap_or(0), by.nanosecs().unwrap_or(0)))
        .collect();
    std::fs::write("/proc/self/timens_offsets", &lines).or_refuse(|| format!("cannot set the clocks {lines:?}"))
}

/// Joins all namespaces of a running container that are not the agent's own.
pub(super) fn join(init: &OwnedFd) -> Result<()> {
    let pid = pid_of(init)?;
    let mut flags = CloneFlags::empty();
    for (name, flag) in NAMED {
        let inode = |path: String| rustix::fs::stat(path).map(|stat| stat.st_ino);
        let theirs = inode(format!("/proc/{pid}/ns/{name}")).or_refuse(|| "the container has ended")?;
        if inode(format!("/proc/self/ns/{name}")).or_fail(|| "cannot read the agent's namespaces")? != theirs {
            flags |= flag;
        }
    }
    setns(init.as_fd(), flags).or_refuse(|| "cannot join the container's namespaces")?;
    if flags.contains(CloneFlags::CLONE_NEWUSER) {
        become_its_root()?;
    }
    Ok(())
}

/// The process that a pidfd names, as the agent numbers it (pidfd_open(2), fdinfo).
fn pid_of(pidfd: &OwnedFd) -> Result<Pid> {
    use std::os::fd::AsRawFd;
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))
        .or_fail(|| "cannot read what the container's pidfd names")?;
    let pid = info
        .lines()
        .find_map(|line| line.strip_prefix("Pid:"))
        .and_then(|pid| pid.trim().parse().ok());
    match pid {
        Some(pid) if pid > 0 => Ok(Pid::from_raw(pid)),
        _ => Err(Fault::Refused("the container has ended".to_owned())),
    }
}

const NAMED: [(&str, CloneFlags); 8] = [
    ("user", CloneFlags::CLONE_NEWUSER),
    ("mnt", CloneFlags::CLONE_NEWNS),
    ("pid", CloneFlags::CLONE_NEWPID),
    ("uts", CloneFlags::CLONE_NEWUTS),
    ("ipc", CloneFlags::CLONE_NEWIPC),
    ("net", CloneFlags::CLONE_NEWNET),
    ("cgroup", CloneFlags::CLONE_NEWCGROUP),
    ("time", CLONE_NEWTIME),
];

/// nix has no name for it.
const CLONE_NEWTIME: CloneFlags = CloneFlags::from_bits_retain(0x80);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_cgroup_below_the_containers_own_is_one_that_init_moved_to() {
        let container = Path::new("/sys/fs/cgroup/containers/box");
        let moved = |text: &str| moved_to(text, container);
        assert_eq!(
            moved("0::/containers/box/init.scope\n"),
            Some(container.join("init.scope"))
        );
        for elsewhere in [
            "0::/containers/box\n",
            "0::/containers/boxer/init\n",
            "0::/containers/box/../other\n",
            "0::/agent\n",
            "1:name=systemd:/containers/box/x\n",
            "",
        ] {
            assert_eq!(moved(elsewhere), None, "{elsewhere}");
        }
    }
}
