//! One cgroup per sandbox on the host, in every usable hierarchy.
//!
//! It contains QEMU and its helpers, so that they can be found, killed and limited together. The limits are not decided
//! here.
//!
//! In v2 the processes are one level below the cgroup with the limits ([`MEMBERS`]), which enables its controllers for
//! them. systemd removes from a slice the controllers that no unit in it needs, and with them the limits of a cgroup that
//! systemd has not made. The kernel does not allow that for a controller that a child cgroup passes on (cgroup-v2.rst,
//! "Top-down Constraint").

mod allowance;
mod limits;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::host::mountinfo;
use crate::host::process::{self, ProcessRef};
use lifecycle::id::SandboxId;

pub use self::allowance::Allowance;
pub use self::limits::LimitError;

/// Controllers of v2 that have limits of ours, or figures that somebody reads.
const CONTROLLERS: [&str; 5] = ["cpuset", "cpu", "io", "memory", "pids"];

/// Where the processes are in v2, below the sandbox's cgroup.
const MEMBERS: &str = "vm";

/// Pause between two attempts to remove a cgroup whose processes are dead. See [`remove_directory`].
const REMOVE_INTERVAL: Duration = Duration::from_millis(5);
/// How long that is tried.
const REMOVE_LIMIT: Duration = Duration::from_secs(2);

/// The sandbox's cgroup directories.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostCgroup {
    directories: Vec<PathBuf>,
}

impl HostCgroup {
    /// Makes the cgroup beside where `cgroups_path` (`linux.cgroupsPath`) would be; one that is relative, or absent, begins where this process is, as with
    /// runc. What cannot be made is left out with a warning in the log. Blocks.
    #[must_use]
    pub fn create(cgroups_path: Option<&Path>, sandbox: &SandboxId) -> Self {
        let relative = relative_path(cgroups_path, sandbox);
        let hierarchies = mountinfo::read().unwrap_or_else(|error| {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "cannot list the cgroup hierarchies"
            );
            Vec::new()
        });
        let begins = match begins_at_root(cgroups_path) {
            true => Vec::new(),
            false => beginnings(&hierarchies, &own()),
        };
        let mut directories = Vec::new();
        for mounts in by_hierarchy(&hierarchies) {
            match make_in(&mounts, &begins, &relative) {
                Ok(directory) => directories.push(directory),
                Err((directory, error)) => tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    path = %directory.display(),
                    "the sandbox has no cgroup here"
                ),
            }
        }
        Self { directories }
    }

    /// The cgroup that was recorded in `sandbox.json`.
    #[must_use]
    pub fn recorded(directories: Vec<PathBuf>) -> Self {
        Self { directories }
    }

    /// The cgroup's directories, to be recorded in `sandbox.json`.
    #[must_use]
    pub fn directories(&self) -> &[PathBuf] {
        &self.directories
    }

    /// The files into which a child writes its pid (or 0) to join.
    #[must_use]
    pub fn procs_files(&self) -> Vec<PathBuf> {
        let members = self.directories.iter().map(|directory| members(directory));
        members.map(|directory| directory.join("cgroup.procs")).collect()
    }

    /// Kills every process in it but the caller, and those that they start meanwhile. Blocks until they are dead, at
    /// most until the deadline.
    pub fn kill_all(&self, deadline: Instant) {
        for file in self.procs_files() {
            loop {
                let pids = fs::read_to_string(&file).unwrap_or_default();
                let processes: Vec<ProcessRef> = pids
                    .lines()
                    .filter_map(|pid| pid.parse().ok())
                    .filter_map(ProcessRef::of)
                    .collect();
                let own = ProcessRef::own();
                if processes.iter().all(|process| Some(*process) == own) || Instant::now() >= deadline {
                    break;
                }
                process::kill_all(&processes, deadline);
            }
        }
    }

    /// Its directories that are still there.
    #[must_use]
    pub fn left(&self) -> Vec<PathBuf> {
        let left = self.directories.iter().filter(|directory| directory.exists());
        left.cloned().collect()
    }

    /// Removes it. It may be gone already. Blocks for at most about two seconds, for all hierarchies together.
    pub fn remove(&self) {
        let deadline = Instant::now() + REMOVE_LIMIT;
        for directory in &self.directories {
            let removed = remove_directory(&directory.join(MEMBERS), deadline)
                .and_then(|()| remove_directory(directory, deadline));
            if let Err(error) = removed {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    path = %directory.display(),
                    "cannot remove the sandbox's cgroup"
                );
            }
        }
    }
}

/// The cgroups of this process, as `/proc/self/cgroup` has them (cgroups(7)).
pub fn own() -> String {
    fs::read_to_string("/proc/self/cgroup").unwrap_or_default()
}

/// The `cgroup.procs` of cgroups that are given as in `/proc/self/cgroup`.
pub fn procs_of(cgroups: &str) -> Vec<PathBuf> {
    let hierarchies = mountinfo::read().unwrap_or_default();
    procs_in(&hierarchies, cgroups)
}

fn procs_in(hierarchies: &[mountinfo::MountLine], cgroups: &str) -> Vec<PathBuf> {
    let ordered: Vec<_> = by_hierarchy(hierarchies).into_iter().flatten().cloned().collect();
    let mut mounts: Vec<&mountinfo::MountLine> = Vec::new();
    let mut files = Vec::new();
    for (mount, below) in places_in(&ordered, cgroups) {
        if !mounts.iter().any(|other| is_same_hierarchy(other, mount)) {
            mounts.push(mount);
            files.push(mount.mountpoint.join(below).join("cgroup.procs"));
        }
    }
    files
}

/// The mounts of cgroup file systems, one list for each hierarchy, in the order in which a cgroup is to be tried there. A hierarchy may be mounted
/// several times: Cilium has the one of v2 at `/run/cilium/cgroupv2`, too, and a container's bind mount shows a part of one.
fn by_hierarchy(mounts: &[mountinfo::MountLine]) -> Vec<Vec<&mountinfo::MountLine>> {
    let mut all: Vec<Vec<&mountinfo::MountLine>> = Vec::new();
    for mount in mounts {
        if mount.kind != "cgroup" && mount.kind != "cgroup2" {
            continue;
        }
        match all.iter_mut().find(|list| is_same_hierarchy(list[0], mount)) {
            Some(list) => list.push(mount),
            None => all.push(vec![mount]),
        }
    }
    for list in &mut all {
        list.sort_by_key(|mount| {
            let whole = mount.root == Path::new("/");
            let usual = mount.mountpoint.starts_with("/sys/fs/cgroup");
            std::cmp::Reverse((!mount.read_only, whole, usual))
        });
    }
    all
}

/// Whether two mounts show the same cgroups. The kernel has one hierarchy of v2, and one of v1 for each set of controllers or name (cgroups(7)).
/// The device does not say it: it differs between cgroup namespaces.
fn is_same_hierarchy(one: &mountinfo::MountLine, other: &mountinfo::MountLine) -> bool {
    let names = |mount: &mountinfo::MountLine| -> BTreeSet<String> {
        let options = mount.super_options.split(',');
        options
            .filter(|option| !["rw", "ro"].contains(option))
            .map(str::to_owned)
            .collect()
    };
    one.kind == other.kind && (one.kind == "cgroup2" || names(one) == names(other))
}

/// Makes the sandbox's cgroup by the first of a hierarchy's mounts by which it can be made. The answer is its directory; the error that of the
/// first mount.
fn make_in(
    mounts: &[&mountinfo::MountLine],
    begins: &[(PathBuf, PathBuf)],
    relative: &Path,
) -> Result<PathBuf, (PathBuf, io::Error)> {
    let mut first = None;
    for mount in mounts {
        let begin = begins.iter().find(|(mountpoint, _)| *mountpoint == mount.mountpoint);
        // By a mount of a part, a path from the root would be another cgroup than by the first.
        if first.is_some() && begin.is_none() && mount.root != Path::new("/") {
            continue;
        }
        let relative = begin.map_or_else(|| relative.to_owned(), |(_, begin)| begin.join(relative));
        let directory = mount.mountpoint.join(&relative);
        let unified = mount.kind == "cgroup2";
        let cpuset = !unified && mount.super_options.split(',').any(|name| name == "cpuset");
        let deepest = if unified { relative.join(MEMBERS) } else { relative };
        // Something else may have been mounted over it since.
        let made = match mount.mountpoint.join("cgroup.procs").exists() {
            true => make(&mount.mountpoint, &deepest, cpuset, unified),
            false => Err(io::ErrorKind::NotFound.into()),
        };
        match made {
            Ok(()) => return Ok(directory),
            Err(error) => first = first.or(Some((directory, error))),
        }
    }
    Err(first.unwrap_or_else(|| (relative.to_owned(), io::ErrorKind::NotFound.into())))
}

/// Where a relative path begins in each hierarchy, for a process in these cgroups. In v2 that is beside its own, which has processes and so no
/// cgroups with controllers below it (runc's `fs2.defaultDirPath`).
fn beginnings(hierarchies: &[mountinfo::MountLine], cgroups: &str) -> Vec<(PathBuf, PathBuf)> {
    let is_plain = |path: &Path| path.components().all(|part| matches!(part, Component::Normal(_)));
    let begin = |(mount, below): (&mountinfo::MountLine, PathBuf)| {
        let begin = match mount.kind == "cgroup2" {
            true => below.parent().unwrap_or(Path::new("")).to_owned(),
            false => below,
        };
        // Outside of the process's cgroup namespace there are no names.
        is_plain(&begin).then(|| (mount.mountpoint.clone(), begin))
    };
    places_in(hierarchies, cgroups).filter_map(begin).collect()
}

/// The hierarchies of cgroups that are given as in `/proc/self/cgroup`, and where in each they are.
fn places_in<'a>(
    hierarchies: &'a [mountinfo::MountLine],
    cgroups: &'a str,
) -> impl Iterator<Item = (&'a mountinfo::MountLine, PathBuf)> {
    let of_line = move |line: &'a str| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let names = |options: &str| {
            let mut controllers = controllers.split(',');
            controllers.all(|controller| options.split(',').any(|option| option == controller))
        };
        let is_it = move |mount: &&mountinfo::MountLine| match controllers {
            "" => mount.kind == "cgroup2",
            _ => mount.kind == "cgroup" && names(&mount.super_options),
        };
        // A hierarchy of which only a part is mounted has its names from there on.
        let place = move |mount: &'a mountinfo::MountLine| {
            let below = Path::new(path).strip_prefix(&mount.root).ok()?;
            Some((mount, below.to_owned()))
        };
        Some(hierarchies.iter().filter(is_it).filter_map(place))
    };
    cgroups.lines().filter_map(of_line).flatten()
}

/// Moves this process. If one of the cgroups has gone it gets into the nearest above: it must not stay where it was, or that cannot be removed.
pub fn join(procs: &[PathBuf]) {
    for file in procs {
        let directories = file.ancestors().skip(1);
        let mut files = directories.map(|directory| directory.join("cgroup.procs"));
        // A directory without the file is gone, or is none of a hierarchy.
        if !files.any(|file| file.exists() && fs::write(file, "0").is_ok()) {
            tracing::debug!(file = %file.display(), "the shim does not join this cgroup, nor one above");
        }
    }
}

/// Where the processes of a sandbox are whose cgroup is `directory`.
fn members(directory: &Path) -> PathBuf {
    let below = directory.join(MEMBERS);
    if below.is_dir() { below } else { directory.to_owned() }
}

/// A dead process may hold its cgroup a moment longer than its parent or a pidfd can see it, and v1 announces the end of
/// that nowhere: there is no event to wait for.
fn remove_directory(directory: &Path, deadline: Instant) -> io::Result<()> {
    loop {
        match fs::remove_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                thread::sleep(REMOVE_INTERVAL);
            }
            result => return result,
        }
    }
}

/// Makes the directories from the hierarchy's root down. In a cpuset of v1 a new cgroup has no CPUs and no memory nodes,
/// and nobody can join it (cpuset(7)): it gets those of its parent.
///
/// In v2 a cgroup has the controllers that its parent hands down (cgroup-v2.rst, "Enabling and Disabling").
fn make(root: &Path, relative: &Path, cpuset: bool, unified: bool) -> io::Result<()> {
    let mut directory = root.to_owned();
    for component in relative.components() {
        let parent = directory.clone();
        if unified {
            hand_down(&parent);
        }
        directory.push(component);
        match fs::create_dir(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        for file in ["cpuset.cpus", "cpuset.mems"].iter().filter(|_| cpuset) {
            if fs::read_to_string(directory.join(file))?.trim().is_empty() {
                fs::write(directory.join(file), fs::read(parent.join(file))?)?;
            }
        }
    }
    Ok(())
}

/// Hands every controller that limits are for down to a cgroup's children. What cannot be handed down is missed, and told of,
/// when there is a limit for it.
fn hand_down(parent: &Path) {
    let words = |file| fs::read_to_string(parent.join(file)).unwrap_or_default();
    let (has, hands) = (words("cgroup.controllers"), words("cgroup.subtree_control"));
    let there = |words: &str, name: &str| words.split_whitespace().any(|word| word == name);
    for name in CONTROLLERS
        .iter()
        .filter(|name| there(&has, name) && !there(&hands, name))
    {
        if let Err(error) = fs::write(parent.join("cgroup.subtree_control"), format!("+{name}")) {
            tracing::debug!(%error, controller = name, path = %parent.display(), "a controller is not handed down");
        }
    }
}

/// Whether a path is one from the root of the hierarchies: an absolute one, or systemd's form.
fn begins_at_root(cgroups_path: Option<&Path>) -> bool {
    let text = cgroups_path.and_then(Path::to_str).unwrap_or_default();
    let parts: Vec<_> = text.split(':').collect();
    text.starts_with('/') || matches!(parts[..], [slice, _, _] if slice.is_empty() || slice.ends_with(".slice"))
}

/// Where the sandbox's cgroup is below where its path begins: in the parent of the container's, with Kata's name.
fn relative_path(cgroups_path: Option<&Path>, sandbox: &SandboxId) -> PathBuf {
    let text = cgroups_path.and_then(Path::to_str).unwrap_or_default();
    let parent = match text.split(':').collect::<Vec<_>>()[..] {
        // The slice that runc takes where none is named.
        ["", _prefix, _name] => PathBuf::from("system.slice"),
        [slice, _prefix, _name] if slice.ends_with(".slice") => slice_path(slice),
        // A name with colons, as for runc with cgroupfs.
        _ => Path::new(text).parent().unwrap_or(Path::new("")).to_owned(),
    };
    // Nothing but plain names: config.json may not lead us out of the hierarchy.
    let names = parent
        .components()
        .filter(|component| matches!(component, Component::Normal(_)));
    names.collect::<PathBuf>().join(format!("kata_{sandbox}"))
}

/// systemd.slice(5): `a-b.slice` is in `a.slice`. `-.slice` is the root.
fn slice_path(slice: &str) -> PathBuf {
    let name = slice.trim_end_matches(".slice");
    let mut path = PathBuf::new();
    for (end, _) in name
        .match_indices('-')
        .chain([(name.len(), "")])
        .filter(|(end, _)| *end > 0)
    {
        path.push(format!("{}.slice", &name[..end]));
    }
    if name == "-" { PathBuf::new() } else { path }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rustix::mount::{MountFlags, MountPropagationFlags};
    use std::process::Command;

    fn relative(path: &str) -> String {
        relative_path(Some(Path::new(path)), &SandboxId::new("id").unwrap())
            .display()
            .to_string()
    }

    #[test]
    fn what_cannot_be_removed_is_left() {
        let root = tempfile::tempdir().unwrap();
        let [empty, used] = ["empty", "used"].map(|name| root.path().join(name));
        fs::create_dir(&empty).unwrap();
        fs::create_dir_all(used.join("child")).unwrap();
        let cgroup = HostCgroup::recorded(vec![empty, used.clone(), root.path().join("gone")]);
        cgroup.remove();
        assert_eq!(cgroup.left(), [used]);
    }

    #[test]
    fn the_cgroup_is_beside_where_the_containers_would_be() {
        assert_eq!(relative("/default/id"), "default/kata_id");
        assert_eq!(
            relative("/kubepods/burstable/pod1/id"),
            "kubepods/burstable/pod1/kata_id"
        );
        assert_eq!(relative(""), "kata_id");
        assert_eq!(relative("../../id"), "kata_id");
    }

    #[test]
    fn a_systemd_slice_is_unfolded() {
        assert_eq!(
            relative("kubepods-burstable-pod1.slice:cri-containerd:id"),
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/kata_id"
        );
        assert_eq!(relative("system.slice:docker:id"), "system.slice/kata_id");
        assert_eq!(relative("-.slice:docker:id"), "kata_id");
        assert_eq!(relative(":docker:id"), "system.slice/kata_id");
    }

    #[test]
    fn a_name_with_colons_is_a_name() {
        assert_eq!(relative("a:b:c"), "kata_id");
        assert_eq!(relative("/x/a:b:c"), "x/kata_id");
        assert_eq!(relative("rel/a"), "rel/kata_id");
        let at_root = |path: &str| begins_at_root(Some(Path::new(path)));
        assert!(at_root("/x/a:b:c") && at_root("a.slice:b:c") && at_root(":b:c"));
        assert!(!at_root("a:b:c") && !at_root("rel/a") && !at_root("") && !begins_at_root(None));
    }

    #[test]
    fn a_relative_path_begins_where_the_process_is() {
        let line = |mountpoint: &str, kind: &str, options: &str| {
            let text = format!("1 2 0:3 / {mountpoint} rw - {kind} x rw,{options}\n");
            mountinfo::parse(text.as_bytes()).remove(0)
        };
        let mounts = [
            line("/cg/memory", "cgroup", "memory"),
            line("/cg/pids", "cgroup", "pids"),
            line("/cg/unified", "cgroup2", "nsdelegate"),
        ];
        let own = "4:memory:/system.slice/containerd.service\n3:pids:/../other\n0::/system.slice/containerd.service\n";
        let found = beginnings(&mounts, own);
        let expected = [
            ("/cg/memory", "system.slice/containerd.service"),
            ("/cg/unified", "system.slice"),
        ];
        assert_eq!(
            found,
            expected.map(|(mount, begin)| (PathBuf::from(mount), PathBuf::from(begin)))
        );
        assert_eq!(beginnings(&mounts[2..], "0::/\n")[0].1, PathBuf::new());
    }

    proptest! {
        #[test]
        fn no_path_leads_out_of_the_hierarchy(path in "[a.:/-]{0,30}") {
            let path = relative_path(Some(Path::new(&path)), &SandboxId::new("id").unwrap());
            prop_assert!(path.components().all(|component| matches!(component, Component::Normal(_))));
        }
    }

    #[test]
    fn a_process_finds_its_cgroups_below_where_their_hierarchies_are_mounted() {
        let line = |root: &str, mountpoint: &str, kind: &str, options: &str| {
            let text = format!("1 2 0:3 {root} {mountpoint} rw - {kind} x rw,{options}\n");
            mountinfo::parse(text.as_bytes()).remove(0)
        };
        let mounts = [
            line("/", "/sys/fs/cgroup/cpu,cpuacct", "cgroup", "cpu,cpuacct"),
            line("/part", "/sys/fs/cgroup/memory", "cgroup", "memory"),
            line("/", "/sys/fs/cgroup/unified", "cgroup2", "nsdelegate"),
        ];
        let found = procs_in(&mounts, "5:cpu,cpuacct:/a\n4:memory:/part/b\n3:pids:/c\n0::/d:e\n");
        let expected = [
            "/sys/fs/cgroup/cpu,cpuacct/a/cgroup.procs",
            "/sys/fs/cgroup/memory/b/cgroup.procs",
            "/sys/fs/cgroup/unified/d:e/cgroup.procs",
        ];
        assert_eq!(found, expected.map(PathBuf::from));
    }

    fn mount(root: &str, mountpoint: &str, flags: &str, kind: &str, options: &str) -> mountinfo::MountLine {
        let text = format!("1 2 0:3 {root} {mountpoint} {flags} - {kind} x rw,{options}\n");
        mountinfo::parse(text.as_bytes()).remove(0)
    }

    #[test]
    fn a_hierarchy_that_is_mounted_several_times_is_one() {
        let mounts = [
            mount("/kubepods/pod1", "/c/pod/cgroup", "rw", "cgroup2", "nsdelegate"),
            mount("/", "/run/cilium/cgroupv2", "rw", "cgroup2", "nsdelegate"),
            mount("/", "/sys/fs/cgroup/memory", "rw", "cgroup", "memory"),
            mount("/", "/proc", "rw", "proc", ""),
            mount("/", "/c/memory", "ro", "cgroup", "ro,memory"),
            mount("/", "/sys/fs/cgroup/pids", "rw", "cgroup", "pids"),
            mount("/", "/sys/fs/cgroup/unified", "rw", "cgroup2", "nsdelegate"),
        ];
        let order: Vec<Vec<_>> = by_hierarchy(&mounts)
            .into_iter()
            .map(|list| {
                list.into_iter()
                    .map(|mount| mount.mountpoint.to_str().unwrap())
                    .collect()
            })
            .collect();
        assert_eq!(
            order,
            [
                vec!["/sys/fs/cgroup/unified", "/run/cilium/cgroupv2", "/c/pod/cgroup"],
                vec!["/sys/fs/cgroup/memory", "/c/memory"],
                vec!["/sys/fs/cgroup/pids"],
            ]
        );
        let own = "3:memory:/a\n2:pids:/b\n0::/kubepods/pod1/c\n";
        let procs = ["memory/a", "pids/b", "unified/kubepods/pod1/c"];
        assert_eq!(
            procs_in(&mounts, own),
            procs.map(|path| Path::new("/sys/fs/cgroup").join(path).join("cgroup.procs"))
        );
    }

    #[test]
    fn by_a_second_mount_of_a_hierarchy_there_is_no_second_cgroup() {
        let id = SandboxId::new(&format!("twice{}", std::process::id())).unwrap();
        let place = tempfile::tempdir().unwrap();
        let twice = || {
            crate::host::sys::unshare_mount_namespace().unwrap();
            rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
            let before = HostCgroup::create(Some(Path::new("/x/y")), &id);
            // As Cilium does.
            rustix::mount::mount("none", place.path(), "cgroup2", MountFlags::empty(), None).unwrap();
            let cgroup = HostCgroup::create(Some(Path::new("/x/y")), &id);
            assert_eq!(cgroup, before);
            let below = |directory: &PathBuf| directory.starts_with(place.path());
            assert!(!cgroup.directories().iter().any(below), "{cgroup:?}");

            // The usual place shows something else from now on: what was mounted later is all that there is.
            let mounts = mountinfo::read().unwrap();
            for usual in mounts
                .iter()
                .filter(|mount| mount.kind == "cgroup2" && mount.mountpoint != place.path())
            {
                rustix::mount::mount("none", &usual.mountpoint, "tmpfs", MountFlags::empty(), None).unwrap();
            }
            let moved = HostCgroup::create(Some(Path::new("/x/y")), &id);
            assert_eq!(moved.directories().len(), before.directories().len());
            assert!(moved.directories().iter().any(below), "{moved:?}");
            moved.remove();
            cgroup.remove();
        };
        thread::scope(|scope| scope.spawn(twice).join().unwrap());
    }

    #[test]
    fn who_joins_a_cgroup_that_has_gone_gets_into_the_nearest_above() {
        let root = tempfile::tempdir().unwrap();
        let procs = root.path().join("cgroup.procs");
        fs::write(&procs, "").unwrap();
        join(&[root.path().join("gone/too/cgroup.procs")]);
        assert_eq!(fs::read_to_string(procs).unwrap(), "0");
    }

    #[test]
    fn v2_hands_down_what_there_is_and_is_not_handed_down_yet() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("cgroup.controllers"), "cpu memory hugetlb\n").unwrap();
        fs::write(root.path().join("cgroup.subtree_control"), "cpu\n").unwrap();
        make(root.path(), Path::new("a/kata_b/vm"), false, true).unwrap();
        assert!(root.path().join("a/kata_b/vm").is_dir());
        assert_eq!(members(&root.path().join("a/kata_b")), root.path().join("a/kata_b/vm"));
        assert_eq!(members(&root.path().join("a")), root.path().join("a"));
        let handed = fs::read_to_string(root.path().join("cgroup.subtree_control")).unwrap();
        assert_eq!(handed, "+memory");
        // There is nothing to be handed down in a hierarchy without controllers.
        assert!(!root.path().join("a/cgroup.subtree_control").exists());
    }

    #[test]
    fn what_joined_the_cgroup_is_killed_and_the_cgroup_removed() {
        let id = format!("test{}", std::process::id());
        let cgroup = HostCgroup::create(None, &SandboxId::new(&id).unwrap());
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        for file in cgroup.procs_files() {
            fs::write(file, child.id().to_string()).unwrap();
        }
        assert!(!cgroup.directories().is_empty(), "no usable cgroup hierarchy");
        cgroup.kill_all(Instant::now() + Duration::from_secs(5));
        assert!(!child.wait().unwrap().success());
        cgroup.remove();
        cgroup.remove();
        assert!(cgroup.directories().iter().all(|directory| !directory.exists()));
    }
}
