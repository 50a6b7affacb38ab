//! The device nodes and links of a container's /dev (OCI runtime specification, config-linux.md "Default Devices" and
//! "Default filesystems").

use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, Spec};
use rustix::{
    fs::{AtFlags, FileType, Gid, Mode, Uid, makedev},
    io::Errno,
};

use super::{
    fault::{Context, Fault, Result},
    mounts,
    tree::{self, Root},
};

/// Path, major and minor of what every container has.
const DEFAULT: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/tty", 5, 0),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
];

/// What a container that may use every device has besides, where the guest has it: a privileged one of Kubernetes, whose runtime
/// class leaves the host's devices out (`privileged_without_host_devices`).
const PRIVILEGED: [&str; 5] = ["/dev/fuse", "/dev/kmsg", LOOP_CONTROL, "/dev/net/tun", "/dev/ppp"];
/// Gives the number of a loop device that is free (loop(4)).
const LOOP_CONTROL: &str = "/dev/loop-control";

/// How many loop devices such a container has nodes of, as many as a host makes at its start (drivers/block/loop.c). The devices are
/// the guest's, which makes them when they are asked for.
const LOOPS: u32 = 8;
/// Documentation/admin-guide/devices.txt.
const LOOP_MAJOR: u32 = 7;

const LINKS: [(&str, &str); 5] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
];

struct Node<'a> {
    path: &'a Path,
    kind: FileType,
    number: u64,
    mode: Mode,
    owner: (u32, u32),
}

/// Makes the nodes. Where nodes cannot be made, in a user namespace, the guest's own are bound.
pub(super) fn make(root: Root<'_>, spec: &Spec, in_user_namespace: bool) -> Result<()> {
    // A /dev that comes from elsewhere is left as it is.
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    if mounts
        .iter()
        .any(|mount| mounts::is_on_dev(mount) && mounts::is_bind(mount))
    {
        return Ok(());
    }
    let listed = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.devices().as_deref())
        .unwrap_or_default();
    // What the specification mounts there is what is to be there, as with runc.
    let mounted = |path: &Path| {
        let mut mounts = spec.mounts().iter().flatten();
        mounts.any(|mount| mount.destination() == path)
    };
    for (path, major, minor) in DEFAULT {
        if mounted(Path::new(path)) {
            continue;
        }
        if listed.iter().all(|device| device.path() != Path::new(path)) {
            let node = Node {
                path: Path::new(path),
                kind: FileType::CharacterDevice,
                number: makedev(major, minor),
                mode: Mode::from_raw_mode(0o666),
                owner: (0, 0),
            };
            make_node(root, &node, in_user_namespace)?;
        }
    }
    if may_use_all(spec) {
        for path in PRIVILEGED {
            if let Some(node) = of_guest(path)
                && !mounted(Path::new(path))
                && listed.iter().all(|device| device.path() != Path::new(path))
            {
                make_node(root, &node, in_user_namespace)?;
            }
        }
        // Nobody can mount a file system of a device in a user namespace.
        if of_guest(LOOP_CONTROL).is_some() && !in_user_namespace {
            make_loops(root, |path| {
                mounted(path) || listed.iter().any(|device| device.path() == path)
            })?;
        }
    }
    let listed = listed.iter().filter(|device| device.path() != Path::new("/dev/ptmx"));
    for device in listed.filter(|device| !mounted(device.path())) {
        make_node(root, &node(device)?, in_user_namespace)?;
    }
    link(root)
}

/// Makes the nodes of the guest's loop devices, but for those that are `taken`.
fn make_loops(root: Root<'_>, taken: impl Fn(&Path) -> bool) -> Result<()> {
    for number in 0..LOOPS {
        let path = PathBuf::from(format!("/dev/loop{number}"));
        if taken(&path) {
            continue;
        }
        let node = Node {
            path: &path,
            kind: FileType::BlockDevice,
            number: makedev(LOOP_MAJOR, number),
            mode: Mode::from_raw_mode(0o660),
            owner: (0, 0),
        };
        make_node(root, &node, false)?;
    }
    Ok(())
}

/// Whether the last rule about all devices allows them.
fn may_use_all(spec: &Spec) -> bool {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let rules = resources
        .and_then(|resources| resources.devices().as_deref())
        .unwrap_or_default();
    let of_all = |rule: &&LinuxDeviceCgroup| {
        rule.typ().is_none_or(|typ| typ == LinuxDeviceType::A)
            && [rule.major(), rule.minor()]
                .into_iter()
                .flatten()
                .all(|number| number < 0)
            && rule
                .access()
                .as_ref()
                .is_none_or(|access| access.contains('r') && access.contains('w'))
    };
    rules.iter().rfind(of_all).is_some_and(LinuxDeviceCgroup::allow)
}

/// A character device of the guest, as it has it.
fn of_guest(path: &str) -> Option<Node<'_>> {
    let stat = rustix::fs::stat(path).ok()?;
    (FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice).then(|| Node {
        path: Path::new(path),
        kind: FileType::CharacterDevice,
        number: stat.st_rdev,
        mode: Mode::from_raw_mode(stat.st_mode & 0o777),
        owner: (0, 0),
    })
}

fn node(device: &LinuxDevice) -> Result<Node<'_>> {
    let number = |value: i64| {
        u32::try_from(value).map_err(|why| Fault::refused(format_args!("device {}", device.path().display()), why))
    };
    let kind = match device.typ() {
        LinuxDeviceType::B => FileType::BlockDevice,
        LinuxDeviceType::P => FileType::Fifo,
        LinuxDeviceType::C | LinuxDeviceType::U => FileType::CharacterDevice,
        LinuxDeviceType::A => return Err(Fault::Refused(format!("device {}: no type", device.path().display()))),
    };
    let number = match kind {
        FileType::Fifo => 0,
        _ => makedev(number(device.major())?, number(device.minor())?),
    };
    Ok(Node {
        path: device.path(),
        kind,
        number,
        mode: Mode::from_raw_mode(device.file_mode().unwrap_or(0o666) & 0o7777),
        owner: (device.uid().unwrap_or(0), device.gid().unwrap_or(0)),
    })
}

fn make_node(root: Root<'_>, node: &Node<'_>, in_user_namespace: bool) -> Result<()> {
    let what = || format!("cannot make the device {}", node.path.display());
    if in_user_namespace && node.kind != FileType::Fifo {
        return bind_node(root, node).or_refuse(what);
    }
    let (parent, name) = root.parent(node.path).or_refuse(what)?;
    match rustix::fs::mknodat(&parent, &name, node.kind, node.mode, node.number) {
        // What is there stays, as with runc: the image's own node, or one that a mount has put there.
        Err(Errno::EXIST) => return Ok(()),
        Err(Errno::PERM) => return bind_node(root, node).or_refuse(what),
        made => made.or_refuse(what)?,
    }
    let (uid, gid) = (Uid::from_raw(node.owner.0), Gid::from_raw(node.owner.1));
    rustix::fs::chownat(&parent, &name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        .and_then(|()| rustix::fs::chmodat(&parent, &name, node.mode, AtFlags::empty()))
        .or_refuse(what)
}

fn bind_node(root: Root<'_>, node: &Node<'_>) -> std::io::Result<()> {
    let own = guests_node(node)?;
    let target = root.file(node.path)?;
    tree::attach(&tree::clone_path(&own, false)?, &target)
}

/// Where the guest has a device: by its number, since a container may call it otherwise, and call another one so.
fn guests_node(node: &Node<'_>) -> std::io::Result<PathBuf> {
    let kind = if node.kind == FileType::BlockDevice {
        "block"
    } else {
        "char"
    };
    let (major, minor) = (rustix::fs::major(node.number), rustix::fs::minor(node.number));
    let none = |_| std::io::Error::other(format!("the guest has no {kind} device {major}:{minor}"));
    let uevent = std::fs::read_to_string(format!("/sys/dev/{kind}/{major}:{minor}/uevent")).map_err(none)?;
    let name = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    let path = Path::new("/dev").join(name.unwrap_or_default());
    let stat = rustix::fs::stat(&path)?;
    if FileType::from_raw_mode(stat.st_mode) == node.kind && stat.st_rdev == node.number {
        Ok(path)
    } else {
        Err(std::io::Error::other(format!(
            "{} is not {major}:{minor}",
            path.display()
        )))
    }
}

fn link(root: Root<'_>) -> Result<()> {
    let core = Path::new("/proc/kcore")
        .exists()
        .then_some(("/dev/core", "/proc/kcore"));
    for (path, target) in LINKS.into_iter().chain(core) {
        let (parent, name) = root
            .parent(Path::new(path))
            .or_refuse(|| format!("cannot make the link {path}"))?;
        tree::symlink(target, &parent, &name).or_refuse(|| format!("cannot make the link {path}"))?;
    }
    Ok(())
}
