//! Finds, by the tag of a node, what its containers left on the machine. Changes nothing but in [`remove`].

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{Error, Result, image::sha256, wait};

const SHIM: &str = "containerd-shim-kata-v2";

#[derive(Debug, Clone)]
pub struct Process {
    pub pid: u32,
    /// Its command line, words apart by blanks.
    pub command: String,
}

impl Process {
    /// The path of its program, as its command line has it.
    pub fn program(&self) -> &str {
        self.command.split(' ').next().unwrap_or_default()
    }
}

/// The processes whose command line or cgroup names `tag`. The test's own children, containerd and `ctr`, are not
/// among them, nor is what a shim has just forked and what still looks like the shim.
pub fn processes(tag: &str) -> Vec<Process> {
    let own = std::process::id();
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        // One that has ended and that init has yet to reap holds nothing any more.
        .filter(|pid| *pid != own && parent(*pid) != Some(own) && !status(*pid, "State:").starts_with('Z'))
        .filter_map(|pid| {
            let command = command(pid)?;
            if is_forked(pid, &command) {
                return None;
            }
            let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            (command.contains(tag) || cgroup.contains(tag)).then_some(Process { pid, command })
        })
        .collect()
}

/// Its command line, words apart by blanks.
fn command(pid: u32) -> Option<String> {
    let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    Some(String::from_utf8_lossy(&command).replace('\0', " "))
}

/// Whether it is a shim's child that has yet to run its own program: until then it has the shim's command line, in whatever cgroup it is by then.
fn is_forked(pid: u32, own: &str) -> bool {
    let is_shim = own.split(' ').next().is_some_and(|program| program.ends_with(SHIM));
    is_shim && parent(pid).and_then(command).is_some_and(|parent| parent == own)
}

/// The pid of a process's parent; none if the process is gone.
pub fn parent(pid: u32) -> Option<u32> {
    status(pid, "PPid:").parse().ok()
}

/// Waits until none of these processes is there, those included that they start until then.
pub fn await_ends(tag: &str, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        let alive = processes(tag);
        if alive.is_empty() {
            return Ok(());
        }
        for process in alive {
            let left = deadline.saturating_duration_since(Instant::now());
            wait::gone(process.pid, left)
                .map_err(|error| Error::unexpected(format!("{error}: {}", process.command)))?;
        }
    }
}

/// A line of /proc/PID/status; empty if the process is gone.
fn status(pid: u32, key: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix(key))
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// Everything that names `tag`, one line each: processes, mounts, cgroups, runtime directories, sockets, FIFOs.
/// `state` is containerd's state directory, whose own mounts count.
pub fn all(tag: &str, state: &Path) -> Vec<String> {
    let mut left: Vec<_> = processes(tag)
        .into_iter()
        .map(|process| format!("process {} {}", process.pid, process.command))
        .collect();
    left.extend(
        mounts(tag)
            .into_iter()
            .map(|mount| format!("mount {}", mount.display())),
    );
    left.extend(
        cgroups(tag)
            .into_iter()
            .map(|cgroup| format!("cgroup {}", cgroup.display())),
    );
    left.extend(
        runtime_dirs(tag)
            .into_iter()
            .map(|dir| format!("directory {}", dir.display())),
    );
    left.extend(fifos(tag).into_iter().map(|fifo| format!("fifo {}", fifo.display())));
    left.extend(
        sockets(tag, state)
            .into_iter()
            .map(|socket| format!("socket {}", socket.display())),
    );
    left
}

/// What a directory holds, one line each. A directory that is not there holds nothing.
pub fn entries(dir: &Path) -> Vec<String> {
    list(dir).into_iter().map(|path| path.display().to_string()).collect()
}

/// Removes Kata's directories of direct-assigned volumes, if no volume is in them.
pub fn remove_direct_volumes() {
    let place = Path::new("/run/kata-containers/shared/direct-volumes");
    for directory in place.ancestors().take(3) {
        if fs::remove_dir(directory).is_err() {
            break;
        }
    }
}

/// The runtimes' directories that name `tag`.
pub fn runtime_dirs(tag: &str) -> Vec<PathBuf> {
    ["/run/tatami", "/run/containerd/runc", "/run/vc/sbs", "/run/kata"]
        .iter()
        .flat_map(|dir| list(Path::new(dir)))
        .filter(|path| names(path, tag))
        // runc keeps the directory of a namespace for ever; only what is in it counts.
        .flat_map(|path| {
            if path.starts_with("/run/containerd/runc") {
                list(&path)
            } else {
                vec![path]
            }
        })
        .collect()
}

fn mounts(tag: &str) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut points: Vec<_> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|point| point.contains(tag))
        .map(PathBuf::from)
        .collect();
    // The last mounted comes off first.
    points.reverse();
    points
}

/// The cgroups that name `tag`, innermost first. The parent that `ctr` names after the namespace is shared by the
/// node's containers and is nobody's to remove, so only what is below it counts.
pub(crate) fn cgroups(tag: &str) -> Vec<PathBuf> {
    let mut found = tagged_cgroups(tag);
    found.retain(|path| path.file_name().is_none_or(|name| name != tag));
    found
}

fn tagged_cgroups(tag: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(dir) = todo.pop() {
        for path in list(&dir)
            .into_iter()
            .filter(|path| path.is_dir() && !path.is_symlink())
        {
            if path.to_string_lossy().contains(tag) {
                found.push(path.clone());
            }
            todo.push(path);
        }
    }
    found.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    found
}

fn fifos(tag: &str) -> Vec<PathBuf> {
    list(Path::new("/run/containerd/fifo"))
        .into_iter()
        .flat_map(|dir| list(&dir))
        .filter(|fifo| names(fifo, tag))
        .collect()
}

/// containerd's helper library puts a shim's socket below `/run/containerd/s`, named by the SHA-256 of
/// `<address of containerd>/<namespace>/<id>`.
fn sockets(tag: &str, state: &Path) -> Vec<PathBuf> {
    let Some(dir) = state.parent() else { return Vec::new() };
    let ids: BTreeSet<String> = list(dir)
        .iter()
        .filter_map(|path| Some(path.file_name()?.to_str()?.strip_suffix(".json")?.to_owned()))
        .map(|name| format!("{tag}-{name}"))
        .collect();
    ids.iter()
        .map(|id| sha256(format!("{}/c.sock/{tag}/{id}", dir.display()).as_bytes()))
        .map(|name| Path::new("/run/containerd/s").join(name))
        .filter(|socket| socket.exists())
        .collect()
}

/// The runtimes' directories of one sandbox of CRI. Ours shows the first 24 characters of the id.
pub fn sandbox_dirs(id: &str) -> Vec<PathBuf> {
    let short = &id[..id.len().min(24)];
    let ours = list(Path::new("/run/tatami"));
    let others = ["/run/containerd/runc/k8s.io", "/run/vc/sbs", "/run/kata"];
    let others = others.iter().flat_map(|dir| list(Path::new(dir)));
    ours.into_iter()
        .filter(|path| names(path, short))
        .chain(others.filter(|path| names(path, id)))
        .collect()
}

/// What is left of one sandbox of CRI, one line each: its runtime's directories and its shim's socket.
pub fn of_sandbox(id: &str, address: &Path, namespace: &str) -> Vec<String> {
    let socket = sha256(format!("{}/{namespace}/{id}", address.display()).as_bytes());
    let socket = Path::new("/run/containerd/s").join(socket);
    sandbox_dirs(id)
        .into_iter()
        .chain(socket.exists().then_some(socket))
        .map(|path| path.display().to_string())
        .collect()
}

/// What CNI keeps of the network `name` outside of every test's directory.
pub fn cni_notes(name: &str) -> Vec<PathBuf> {
    let notes = list(Path::new("/var/lib/cni/results"));
    notes.into_iter().filter(|path| names(path, name)).collect()
}

/// Removes by force what names `tag`, after a test that failed half-way.
pub fn remove(tag: &str) {
    let found = processes(tag);
    for process in &found {
        if let Ok(pid) = i32::try_from(process.pid) {
            // It has ended by itself if this fails; so with all that follows.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    for process in &found {
        let _ = wait::gone(process.pid, Duration::from_secs(10));
    }
    for mount in mounts(tag) {
        let _ = umount2(&mount, MntFlags::MNT_DETACH);
    }
    for cgroup in tagged_cgroups(tag) {
        let _ = fs::remove_dir(cgroup);
    }
    for dir in runtime_dirs(tag) {
        let _ = fs::remove_dir_all(dir);
    }
    let _ = fs::remove_dir_all(Path::new("/run/containerd/runc").join(tag));
    for fifo in fifos(tag) {
        let _ = fs::remove_file(&fifo);
        if let Some(dir) = fifo.parent() {
            let _ = fs::remove_dir(dir);
        }
    }
}

fn names(path: &Path, tag: &str) -> bool {
    path.file_name()
        .is_some_and(|name| name.to_string_lossy().contains(tag))
}

fn list(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir)
        .map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
        .unwrap_or_default()
}
