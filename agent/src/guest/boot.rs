//! Sets up the bare guest: root, file systems, loopback, the agent's own cgroup. It knows no sandbox.

use std::ffi::CStr;
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::mount::{MountFlags, mount, mount_bind, mount_move};
use rustix::net::{AddressFamily, SocketType, socket};
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::cgroup;
use crate::common::sys;
use crate::guest::modules::HELPER;
use crate::guest::pause;

#[derive(Debug, thiserror::Error)]
pub(crate) enum EarlyBootError {
    #[error("boot: {step} {on}")]
    Step {
        step: &'static str,
        on: String,
        #[source]
        source: io::Error,
    },
    /// The cgroup tree cannot be laid out.
    #[error("boot: cgroups")]
    Cgroup(#[from] cgroup::Error),
}

#[allow(clippy::needless_pass_by_value, reason = "a path's Display is a temporary")]
fn step<T, E: Into<io::Error>>(
    step: &'static str,
    on: impl fmt::Display,
    result: Result<T, E>,
) -> Result<T, EarlyBootError> {
    result.map_err(|error| EarlyBootError::Step {
        step,
        on: on.to_string(),
        source: error.into(),
    })
}

/// Where the root that containers can pivot away from is put together.
const NEW_ROOT: &str = "/newroot";

struct Mount {
    kind: &'static str,
    /// Below the root, without the first slash.
    target: &'static str,
    flags: MountFlags,
    data: &'static CStr,
}

const SECURE: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// In the order in which they are mounted.
const MOUNTS: &[Mount] = &[
    Mount {
        kind: "proc",
        target: "proc",
        flags: SECURE,
        data: c"",
    },
    Mount {
        kind: "sysfs",
        target: "sys",
        flags: SECURE,
        data: c"",
    },
    Mount {
        kind: "devtmpfs",
        target: "dev",
        flags: MountFlags::NOSUID,
        data: c"mode=0755",
    },
    Mount {
        kind: "devpts",
        target: "dev/pts",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        data: c"ptmxmode=0666,mode=0620,gid=5",
    },
    Mount {
        kind: "tmpfs",
        target: "dev/shm",
        flags: SECURE,
        data: c"mode=1777",
    },
    Mount {
        kind: "tmpfs",
        target: "run",
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
        data: c"mode=0755",
    },
    Mount {
        kind: "tmpfs",
        target: "tmp",
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
        data: c"mode=1777",
    },
    Mount {
        kind: "cgroup2",
        target: "sys/fs/cgroup",
        flags: SECURE,
        data: c"nsdelegate,memory_recursiveprot",
    },
];

/// Everything that comes before the host is dialled.
///
/// # Errors
/// The kernel lacks a file system or a controller that containers need.
pub(crate) fn boot() -> Result<(), EarlyBootError> {
    new_root()?;
    enter_root()?;
    cgroup::lay_out()?;
    step(
        "set",
        "oom_score_adj",
        std::fs::write("/proc/self/oom_score_adj", "-1000"),
    )?;
    raise_descriptors()?;
    allow_mounts()?;
    loopback()?;
    step("make", "the root of the sandbox's process", pause::prepare())
}

/// Mounts the tmpfs that becomes the root, and everything in it.
fn new_root() -> Result<(), EarlyBootError> {
    let root = Path::new(NEW_ROOT);
    step("create", NEW_ROOT, std::fs::create_dir_all(root))?;
    step(
        "mount",
        "tmpfs",
        mount("tmpfs", root, "tmpfs", MountFlags::NODEV, c"mode=0755"),
    )?;
    for Mount {
        kind,
        target,
        flags,
        data,
    } in MOUNTS
    {
        let path = root.join(target);
        step("create", path.display(), std::fs::create_dir_all(&path))?;
        step("mount", path.display(), mount(*kind, &path, *kind, *flags, *data))?;
    }
    link_helper(root)?;
    keep_programs(root)
}

/// The kernel finds this program under the name by which it has modules loaded: its threads are in the root of the first
/// process, which the old one is not part of any longer.
fn link_helper(root: &Path) -> Result<(), EarlyBootError> {
    let helper = root.join(HELPER.trim_start_matches('/'));
    let directory = helper.parent().unwrap_or(root);
    step("create", directory.display(), std::fs::create_dir_all(directory))?;
    step(
        "link",
        helper.display(),
        std::os::unix::fs::symlink("/proc/1/exe", &helper),
    )
}

/// The programs of the debug console, where the image has them (guest-kernel/debug-console), stay in reach.
fn keep_programs(root: &Path) -> Result<(), EarlyBootError> {
    let programs = Path::new("/bin");
    if !programs.is_dir() {
        return Ok(());
    }
    let target = root.join("bin");
    step("create", target.display(), std::fs::create_dir_all(&target))?;
    step("bind", target.display(), mount_bind(programs, &target))
}

/// Moves to the new root. The root of an initramfs cannot be pivoted away from (pivot_root(2)), a mount on top of it
/// can; the old root stays below and holds nothing but `/init`.
fn enter_root() -> Result<(), EarlyBootError> {
    step("enter", NEW_ROOT, rustix::process::chdir(NEW_ROOT))?;
    step("move", NEW_ROOT, mount_move(".", "/"))?;
    step("chroot", NEW_ROOT, rustix::process::chroot("."))?;
    step("enter", "/", rustix::process::chdir("/"))
}

/// As many descriptors as the kernel allows at all (fs.nr_open): a process of a container costs the agent about ten, and
/// the kernel gives its first process 1024. Containers get their own limit when they are launched.
fn raise_descriptors() -> Result<(), EarlyBootError> {
    const MOST: &str = "/proc/sys/fs/nr_open";
    let most = step("read", MOST, std::fs::read_to_string(MOST))?;
    let most = step("parse", MOST, most.trim().parse().map_err(io::Error::other))?;
    let limit = Rlimit {
        current: Some(most),
        maximum: Some(most),
    };
    step("raise", "RLIMIT_NOFILE", setrlimit(Resource::Nofile, limit))
}

/// A mount that is attached nowhere yet has a mount namespace of its own (open_tree(2) with OPEN_TREE_CLONE), and all that a
/// container is to have are made before the first is attached. The kernel allows half as many as there may be threads, in a
/// small guest 900; this is as many as fs.mount-max allows mounts.
fn allow_mounts() -> Result<(), EarlyBootError> {
    const MOST: &str = "/proc/sys/user/max_mnt_namespaces";
    step("raise", MOST, std::fs::write(MOST, "100000"))
}

/// Containers of a pod reach each other by it, whatever network the sandbox has.
fn loopback() -> Result<(), EarlyBootError> {
    let any = step("open", "socket", socket(AddressFamily::INET, SocketType::DGRAM, None))?;
    step("bring up", "lo", sys::interface_up(any.as_fd(), "lo"))
}

/// The value of `key=value` on the kernel's command line.
pub(crate) fn parameter<'a>(cmdline: &'a str, key: &str) -> Option<&'a str> {
    cmdline
        .split_ascii_whitespace()
        .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

fn command_line() -> Result<String, EarlyBootError> {
    const FILE: &str = "/proc/cmdline";
    step("read", FILE, std::fs::read_to_string(FILE))
}

/// Whether the VM was booted to be copied, without a vsock device.
///
/// # Errors
/// The command line cannot be read.
pub(crate) fn is_template() -> Result<bool, EarlyBootError> {
    Ok(has_word(&command_line()?, protocol::TEMPLATE_PARAMETER))
}

/// Whether the VM was booted before anybody needs it.
///
/// # Errors
/// The command line cannot be read.
pub(crate) fn is_to_rehearse() -> Result<bool, EarlyBootError> {
    Ok(has_word(&command_line()?, protocol::REHEARSAL_PARAMETER))
}

fn has_word(cmdline: &str, wanted: &str) -> bool {
    cmdline.split_ascii_whitespace().any(|word| word == wanted)
}

/// The host's port: the kernel's command line names it; or it is the protocol's, by the guest's CID if the VM is a copy of a template.
///
/// # Errors
/// The command line cannot be read, or names no port; or the guest has no CID.
pub(crate) fn host_port() -> Result<u32, EarlyBootError> {
    if is_template()? {
        let cid = step("ask for", "the CID", sys::local_cid())?;
        return Ok(protocol::port_by_cid(cid));
    }
    match parameter(&command_line()?, protocol::PORT_PARAMETER) {
        None => Ok(protocol::DEFAULT_HOST_PORT),
        Some(port) => step(
            "parse",
            protocol::PORT_PARAMETER,
            port.parse().map_err(io::Error::other),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_found_whole() {
        let line = "quiet tatami.rehearsals tatami.rehearsal.no tatami.template\n";
        assert!(has_word(line, "tatami.template") && has_word(line, "quiet"));
        assert!(!has_word(line, "tatami.rehearsal"));
    }

    #[test]
    fn a_parameter_is_found_by_its_whole_name() {
        let line = "quiet not.tatami.port=7 tatami.port=2048 tatami.portal=9\n";
        assert_eq!(parameter(line, "tatami.port"), Some("2048"));
        assert_eq!(parameter("quiet", "tatami.port"), None);
        assert_eq!(parameter("tatami.port", "tatami.port"), None);
    }
}
