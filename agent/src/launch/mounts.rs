//! The mounts of a container, in the order of its specification.
//!
//! Sources of bind mounts are opened before the container's namespaces are made, with the guest's privileges and in
//! the guest's tree; everything is attached by descriptor to what [`Root`] resolved.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use oci_spec::runtime::{Mount, Spec};
use rustix::{
    fs::OFlags,
    mount::{
        FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, fsconfig_create, fsconfig_reconfigure,
        fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, fspick,
    },
};

use super::{
    fault::{Context, Fault, Result},
    kernel_mounts,
    options::{Attributes, Options},
    owners,
    tree::{self, Root},
};

const PROC_SUPER_MAGIC: i64 = 0x9fa0;

/// What may be mounted below /proc: what lxcfs provides, as runc has it. All else there could deceive a program.
const BELOW_PROC: [&str; 10] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

/// One mount whose source is at hand.
#[derive(Debug)]
pub(super) struct Prepared<'a> {
    mount: &'a Mount,
    options: Options,
    /// A bind's source, or a file system that only the guest may make, attached nowhere yet, with its attributes set.
    source: Option<OwnedFd>,
}

/// What mounts need to know of the container.
#[derive(Debug, Clone, Copy)]
pub(super) struct Surroundings<'a> {
    pub(super) bundle: &'a Path,
    /// Its own directory in the guest's cgroup tree.
    pub(super) cgroup: &'a Path,
    pub(super) cgroup_namespace: bool,
    /// sysfs shows a network, and is mounted by who owns it: in a user namespace that has the guest's network, nobody does.
    pub(super) sysfs_of_guest: bool,
}

/// Opens what the mounts need of the guest.
pub(super) fn prepare<'a>(spec: &'a Spec, around: Surroundings<'_>) -> Result<Vec<Prepared<'a>>> {
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    mounts.iter().map(|mount| prepare_one(mount, around)).collect()
}

fn prepare_one<'a>(mount: &'a Mount, around: Surroundings<'_>) -> Result<Prepared<'a>> {
    let Surroundings { bundle, cgroup, .. } = around;
    let mut options = Options::parse(mount.options().as_deref().unwrap_or_default());
    if !options.remount && (kind(mount) == "tmpfs" || is_on_dev(mount)) && !is_bind(mount) {
        options.defer_read_only();
    }
    let mapped = [mount.uid_mappings(), mount.gid_mappings()]
        .into_iter()
        .flatten()
        .any(|list| !list.is_empty());
    if mapped && !is_bind(mount) {
        return Err(refusal(
            mount,
            "uidMappings and gidMappings: only a bind mount can have them",
        ));
    }
    let source = match kind(mount) {
        _ if options.remount => None,
        "cgroup" if !around.cgroup_namespace => Some((cgroup.to_owned(), true)),
        "bind" => Some((bind_source(mount, bundle)?, options.bind.unwrap_or(false))),
        _ if options.bind.is_some() => Some((bind_source(mount, bundle)?, options.bind.unwrap_or(false))),
        _ => None,
    };
    let source = source.map(|(path, recursive)| {
        kernel_mounts::make(&path, recursive)
            .or_refuse(|| format!("cannot mount {} on {}", path.display(), mount.destination().display()))?;
        let clone = clone_source(&path, recursive)
            .or_refuse(|| format!("cannot mount {} on {}", path.display(), mount.destination().display()))?;
        if options.propagation.is_empty() {
            // What the container mounts below must not reach the guest.
            options.propagation.push((libc::MS_SLAVE, true));
        }
        owners::map(&clone, mount, options.maps_below)
            .and_then(|()| tree::apply(&clone, &options))
            .map_err(|why| refusal(mount, why))?;
        Ok(clone)
    });
    let mut source = source.transpose()?;
    if around.sysfs_of_guest && kind(mount) == "sysfs" && source.is_none() && !options.remount {
        let sysfs = file_system(mount, &options, None)?;
        tree::apply(&sysfs, &options).map_err(|why| refusal(mount, why))?;
        source = Some(sysfs);
    }
    Ok(Prepared { mount, source, options })
}

/// A mount of its own of a source. In what the host shares, and in storages, containers make links as they like: none is
/// followed. What is mounted inside a volume comes when it is looked at, with the attributes of the mount it is found in.
fn clone_source(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let volumes = Path::new(protocol::SHARE_MOUNTPOINT).join(protocol::VOLUMES);
    let storages = Path::new(protocol::STORAGE_DIRECTORY);
    if let Ok(inside) = path.strip_prefix(&volumes) {
        tree::clone_fd(tree::beneath(&volumes, inside)?, false)
    } else if let Ok(inside) = path.strip_prefix(storages) {
        tree::clone_fd(tree::beneath(storages, inside)?, recursive)
    } else {
        tree::clone_path(path, recursive)
    }
}

/// Whether a mount binds something: by its type, or by its options.
pub(super) fn is_bind(mount: &Mount) -> bool {
    let by_option = |option: &String| matches!(option.as_str(), "bind" | "rbind");
    kind(mount) == "bind" || mount.options().iter().flatten().any(by_option)
}

/// Whether a mount is what the container has as /dev.
pub(super) fn is_on_dev(mount: &Mount) -> bool {
    tree::components(mount.destination()) == ["dev"]
}

/// The type of a mount. cgroup is cgroup2: the guest has no other.
fn kind(mount: &Mount) -> &str {
    match mount.typ().as_deref() {
        Some("cgroup" | "cgroup2") => "cgroup",
        Some(other) if !other.is_empty() && other != "none" => other,
        _ => "bind",
    }
}

fn bind_source(mount: &Mount, bundle: &Path) -> Result<PathBuf> {
    let source = mount
        .source()
        .as_ref()
        .ok_or_else(|| refusal(mount, "a bind mount without a source"))?;
    Ok(bundle.join(source))
}

fn refusal(mount: &Mount, why: impl std::fmt::Display) -> Fault {
    Fault::Refused(format!(
        "cannot mount {} on {}: {why}",
        kind(mount),
        mount.destination().display()
    ))
}

/// Carries the mounts out below the container's root.
///
/// The answer is what is to become read-only once the container's files are in place ([`seal`]): nodes and links are still to
/// be made in its /dev, and mount points in a tmpfs.
pub(super) fn carry_out(root: Root<'_>, mounts: &[Prepared<'_>]) -> Result<Vec<OwnedFd>> {
    let mut to_seal = Vec::new();
    for prepared in mounts {
        let what = || {
            format!(
                "cannot mount {} on {}",
                kind(prepared.mount),
                prepared.mount.destination().display()
            )
        };
        match &prepared.source {
            Some(source) => bind(root, prepared, source)?,
            None if prepared.options.remount => remount(root, prepared).or_refuse(what)?,
            None => {
                let target = target_directory(root, prepared.mount)?;
                let mount = file_system(prepared.mount, &prepared.options, Some(&target))?;
                if prepared.options.copy_up {
                    copy_up(&target.directory, &mount).or_refuse(what)?;
                }
                tree::apply(&mount, &prepared.options).or_refuse(what)?;
                tree::attach(&mount, &target.directory).or_refuse(what)?;
                if prepared.options.seal {
                    to_seal.push(mount);
                }
            }
        }
    }
    Ok(to_seal)
}

pub(super) fn seal(mounts: &[OwnedFd]) -> Result<()> {
    let read_only = Attributes {
        set: libc::MOUNT_ATTR_RDONLY,
        clear: 0,
    };
    mounts
        .iter()
        .try_for_each(|mount| tree::change(mount, read_only, false))
        .or_refuse(|| "cannot make a mount read-only")
}

fn bind(root: Root<'_>, prepared: &Prepared<'_>, source: &OwnedFd) -> Result<()> {
    let destination = prepared.mount.destination();
    let what = || format!("cannot mount {} on {}", kind(prepared.mount), destination.display());
    let target = if tree::is_directory(source).or_refuse(what)? {
        root.directory(destination)
    } else {
        root.file(destination)
    };
    let target = target.or_refuse(|| format!("cannot make the mount point {}", destination.display()))?;
    guard_proc(&target, prepared.mount, Some(source))?;
    tree::attach(source, &target)
        .map_err(|error| match error.raw_os_error() {
            // A directory on a file, or the reverse: the kernel's word for a mount by a descriptor is another one than mount(2)'s, which Docker looks for.
            Some(libc::EINVAL) => io::Error::from_raw_os_error(libc::ENOTDIR),
            _ => error,
        })
        .or_refuse(what)
}

/// Changes what is mounted at the destination: the mount's attributes alone where it is a bind, as mount(8) has it, and
/// the file system's parameters, too, where it is not.
fn remount(root: Root<'_>, prepared: &Prepared<'_>) -> io::Result<()> {
    let options = &prepared.options;
    let target = root.find(prepared.mount.destination())?;
    if options.bind.is_none() && !(options.data.is_empty() && options.superblock.is_empty()) {
        let context = fspick(
            &target,
            "",
            FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH,
        )?;
        for flag in &options.superblock {
            fsconfig_set_flag(&context, *flag)?;
        }
        for parameter in &options.data {
            match parameter.split_once('=') {
                Some((key, value)) => fsconfig_set_string(&context, key, value),
                None => fsconfig_set_flag(&context, parameter.as_str()),
            }?;
        }
        fsconfig_reconfigure(&context)?;
    }
    tree::apply(&target, options)
}

/// A directory to be covered.
struct Target {
    directory: OwnedFd,
    /// It was not there before.
    made: bool,
}

fn target_directory(root: Root<'_>, mount: &Mount) -> Result<Target> {
    let destination = mount.destination();
    // A link of the image would put them where nothing is masked (CVE-2019-19921, CVE-2023-27561); in runc's words.
    if matches!(kind(mount), "proc" | "sysfs") {
        let ordinary = root.is_ordinary_directory(destination);
        if !ordinary.or_refuse(|| format!("cannot examine the mount point {}", destination.display()))? {
            return Err(refusal(mount, "it must be mounted on an ordinary directory"));
        }
    }
    let made = root.find(destination).is_err();
    let directory = root
        .directory(destination)
        .or_refuse(|| format!("cannot make the mount point {}", destination.display()))?;
    if kind(mount) != "proc" {
        guard_proc(&directory, mount, None)?;
    }
    Ok(Target { directory, made })
}

/// Refuses to cover /proc, unless by another proc, or a part of it.
fn guard_proc(target: &OwnedFd, mount: &Mount, source: Option<&OwnedFd>) -> Result<()> {
    let is_proc = |fd: &OwnedFd| {
        let magic = tree::magic(fd).or_fail(|| "cannot examine a mount")?;
        Ok::<_, Fault>(magic == PROC_SUPER_MAGIC)
    };
    let names = tree::components(mount.destination());
    if names == ["proc"] {
        let by_proc = source.map(is_proc).transpose()?.unwrap_or(false);
        return by_proc
            .then_some(())
            .ok_or_else(|| refusal(mount, "it is not of type proc"));
    }
    let inside = names.first().is_some_and(|first| first == "proc") || is_proc(target)?;
    let destination: PathBuf = Path::new("/").join(names.iter().collect::<PathBuf>());
    if inside && !BELOW_PROC.iter().any(|allowed| destination == Path::new(allowed)) {
        return Err(refusal(mount, "it is inside /proc"));
    }
    Ok(())
}

/// A new mount of a file system, attached nowhere yet.
fn file_system(mount: &Mount, options: &Options, target: Option<&Target>) -> Result<OwnedFd> {
    let name = if kind(mount) == "cgroup" {
        "cgroup2"
    } else {
        kind(mount)
    };
    let fail = |why: rustix::io::Errno| refusal(mount, super::fault::reason(&why.into()));
    let context = fsopen(name, FsOpenFlags::FSOPEN_CLOEXEC).map_err(fail)?;
    let explain = |why: rustix::io::Errno| match complaint(&context) {
        Some(text) => refusal(mount, text),
        None => fail(why),
    };
    if let Some(source) = mount.source() {
        fsconfig_set_string(&context, "source", source.as_path()).map_err(explain)?;
    }
    for flag in &options.superblock {
        fsconfig_set_flag(&context, *flag).map_err(|why| refusal(mount, format_args!("{flag}: {}", explain(why))))?;
    }
    // Options of the hierarchies of cgroup v1 ("memory", "xattr", …) mean nothing to v2.
    let data = if name == "cgroup2" { &[][..] } else { &options.data[..] };
    for parameter in data {
        match parameter.split_once('=') {
            Some((key, value)) => fsconfig_set_string(&context, key, value),
            None => fsconfig_set_flag(&context, parameter.as_str()),
        }
        .map_err(|why| refusal(mount, format_args!("{parameter}: {}", explain(why))))?;
    }
    if let ("tmpfs", Some(Target { directory, made: false })) = (name, target)
        && !data.iter().any(|parameter| parameter.starts_with("mode="))
    {
        // The directory that is covered passes its mode on; where there was none everybody may write (1777), as with runc.
        let mode = rustix::fs::fstat(directory).map_err(fail)?.st_mode & 0o7777;
        fsconfig_set_string(&context, "mode", format!("{mode:o}")).map_err(explain)?;
    }
    fsconfig_create(&context).map_err(explain)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).map_err(explain)
}

/// What the file system has to say about its parameters: the kernel puts it into the context.
fn complaint(context: &OwnedFd) -> Option<String> {
    let mut text = vec![0; 1024];
    let length = rustix::io::read(context, &mut text).ok()?;
    let text = String::from_utf8_lossy(&text[..length]);
    text.strip_prefix("e ").map(|text| text.trim_end().to_owned())
}

/// Copies a directory of the image into the tmpfs that will cover it.
fn copy_up(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    use rustix::fs::{Mode, openat};
    let readable = openat(
        from,
        ".",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    for entry in rustix::fs::Dir::read_from(&readable)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        copy_entry(readable.as_fd(), to.as_fd(), name)?;
    }
    Ok(())
}

fn copy_entry(
    from: std::os::fd::BorrowedFd<'_>,
    to: std::os::fd::BorrowedFd<'_>,
    name: &std::ffi::CStr,
) -> io::Result<()> {
    use rustix::fs::{AtFlags, FileType, Mode, chownat, mkdirat, mknodat, openat, readlinkat, statat, symlinkat};
    use rustix::process::{Gid, Uid};
    let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
    let open = |dir, flags| openat(dir, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, mode);
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            mkdirat(to, name, mode)?;
            copy_up(
                &open(from, OFlags::PATH | OFlags::DIRECTORY)?,
                &open(to, OFlags::RDONLY | OFlags::DIRECTORY)?,
            )?;
        }
        FileType::RegularFile => {
            let source = open(from, OFlags::RDONLY | OFlags::NONBLOCK)?;
            let copy = open(to, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)?;
            io::copy(&mut std::fs::File::from(source), &mut std::fs::File::from(copy))?;
        }
        FileType::Symlink => symlinkat(readlinkat(from, name, Vec::new())?, to, name)?,
        kind => mknodat(to, name, kind, mode, stat.st_rdev)?,
    }
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    // A change of owner takes the set-id bits off; a symbolic link has no mode of its own.
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        rustix::fs::chmodat(to, name, mode, AtFlags::empty())?;
    }
    Ok(())
}
