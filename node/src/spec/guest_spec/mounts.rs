//! The mounts of a container: which come from the host's files, which the guest makes itself, and which are not possible.

use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::Mount;

use super::{GuestSpec, GuestSpecError, Input, id_map};
use crate::host::owners::IdMap;

/// A directory, file or socket of the host that the container is to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindSource {
    /// Its place among the specification's mounts.
    pub position: usize,
    /// The path on the host.
    pub source: PathBuf,
    /// The path in the container, for messages.
    pub destination: PathBuf,
    /// Not to be written to, by nobody in the guest.
    pub read_only: bool,
    /// Nor what is mounted below it.
    pub read_only_below: bool,
    /// With everything that is mounted below it.
    pub recursive: bool,
    /// With what the host mounts below it later.
    pub receives: bool,
    /// What is mounted below it keeps attributes of its own: some are asked for, and not recursively.
    pub apart: bool,
    /// Its files belong to others in the container.
    pub id_map: Option<IdMap>,
    /// It is no path, but an overlay of directories of the host with these options.
    pub overlay: Option<Vec<String>>,
}

#[cfg(test)]
impl BindSource {
    /// A recursive bind that is read-only at its top, for tests.
    pub(crate) fn read_only(source: &Path, destination: &str) -> Self {
        Self {
            position: 3,
            source: source.to_owned(),
            destination: destination.into(),
            read_only: true,
            read_only_below: false,
            recursive: true,
            receives: false,
            apart: false,
            id_map: None,
            overlay: None,
        }
    }
}

/// Where a source is in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedBind {
    /// Its place among the specification's mounts.
    pub position: usize,
    /// The path of the source in the guest.
    pub source: PathBuf,
    /// What the host does not allow.
    pub options: HostOptions,
    /// What is mounted over parts of it, the upper parts first.
    pub over: Vec<Over>,
}

/// What is mounted over a part of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Over {
    /// The path of the part.
    pub at: PathBuf,
    /// The path of the source in the guest.
    pub source: PathBuf,
    /// The host has it read-only.
    pub read_only: bool,
    /// It is a mount of its own on the host: what that does not allow. Attributes that are not recursive are not for it.
    pub apart: Option<HostOptions>,
}

/// What the mount of a source does not allow on the host. A bind mount has it from its source (mount(8)), and a guest that is
/// told of a file only would not know.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HostOptions {
    /// It cannot be written to, whoever tries.
    pub read_only: bool,
    /// Set-id bits and file capabilities mean nothing.
    pub nosuid: bool,
    /// Device nodes cannot be opened.
    pub nodev: bool,
    /// Nothing can be executed.
    pub noexec: bool,
}

/// The file systems that the guest's kernel makes by itself, as far as it has them: no file of the host is needed for them.
const GUEST_FILE_SYSTEMS: [&str; 18] = [
    "proc",
    "sysfs",
    "tmpfs",
    "devpts",
    "mqueue",
    "cgroup",
    "cgroup2",
    "ramfs",
    "hugetlbfs",
    "bpf",
    "tracefs",
    "debugfs",
    "securityfs",
    "configfs",
    "fusectl",
    "binfmt_misc",
    "devtmpfs",
    "pstore",
];

/// A file system of directories of the host.
const OVERLAY: &str = "overlay";

/// Where the kernel's own files are: the guest's kernel has its own.
const KERNEL_DIRECTORIES: [&str; 3] = ["/proc", "/sys", "/dev"];

/// Where the host has its shared memory.
const HOST_SHM: &str = "/dev/shm";

/// What `/dev/shm` is mounted with.
const SHM_OPTIONS: [&str; 4] = ["nosuid", "noexec", "nodev", "mode=1777"];

/// Size of a `/dev/shm` of which the specification gives no size: Docker's and containerd's default.
const SHM_SIZE: &str = "size=65536k";

#[derive(Debug, Clone)]
struct Options(Vec<String>);

impl Options {
    fn has(&self, names: &[&str]) -> bool {
        self.0.iter().any(|option| names.contains(&option.as_str()))
    }

    /// Which of two that contradict each other is the last: the first name's?
    fn last(&self, yes: &str, no: &str) -> Option<bool> {
        let last = self.0.iter().rfind(|option| *option == yes || *option == no)?;
        Some(last == yes)
    }
}

impl GuestSpec {
    pub(super) fn mounts(&mut self, input: Input<'_>) -> Result<(), GuestSpecError> {
        let Some(mut mounts) = self.spec.mounts().clone() else {
            return Ok(());
        };
        for (position, mount) in mounts.iter_mut().enumerate() {
            self.mount(mount, position, input)?;
        }
        self.spec.set_mounts(Some(mounts));
        Ok(())
    }

    fn mount(&mut self, mount: &mut Mount, position: usize, input: Input<'_>) -> Result<(), GuestSpecError> {
        let options = Options(mount.options().clone().unwrap_or_default());
        let kind = mount.typ().clone().unwrap_or_default();
        if kind != "bind" && !options.has(&["bind", "rbind"]) {
            id_map::refuse(mount, "only a bind mount can have them")?;
            if kind == OVERLAY {
                self.overlay(mount, position, &options);
                return Ok(());
            }
            check_kind(mount, &kind)?;
            mount.set_options(Some(options.0.into_iter().map(on_the_guests_node).collect()));
            return Ok(());
        }
        check_propagation(mount, &options)?;
        let source = bind_source(mount)?;
        if source.starts_with(protocol::STORAGE_DIRECTORY) {
            // A storage of the guest's, by `crate::files::volumes`.
            return id_map::leave(mount, self.spec.linux().as_ref());
        }
        let id_map = id_map::take(mount, self.spec.linux().as_ref())?;
        let bound = self.binds.len();
        if source == Path::new(HOST_SHM) {
            self.own_shm(mount, &options);
        } else if KERNEL_DIRECTORIES.iter().any(|directory| source.starts_with(directory))
            && !input.host_files.contains(&source)
        {
            self.warnings.push(format!(
                "{} on {} is the guest's own",
                source.display(),
                mount.destination().display()
            ));
        } else {
            self.bind(mount, source, &options, (position, id_map.clone()));
        }
        if id_map.is_some() && self.binds.len() == bound {
            let reason =
                "uidMappings and gidMappings: its source is the guest's own, and only files of the host can have them";
            return Err(GuestSpecError::mount(mount, reason));
        }
        Ok(())
    }

    /// Puts the sources of bind mounts where they are in the guest.
    ///
    /// What the host does not allow comes before a mount's options: what the specification says of the same wins, but for what
    /// only the host can grant: writing.
    pub fn place(&mut self, binds: &[PlacedBind]) {
        let Some(mounts) = self.spec.mounts().clone() else {
            return;
        };
        let mut placed = Vec::with_capacity(mounts.len());
        for (position, mut mount) in mounts.into_iter().enumerate() {
            let Some(bind) = binds.iter().find(|bind| bind.position == position) else {
                placed.push(mount);
                continue;
            };
            let options = allowed(mount.options().clone().unwrap_or_default(), bind.options);
            mount.set_source(Some(bind.source.clone()));
            mount.set_options(Some(options.clone()));
            let destination = mount.destination().clone();
            placed.push(mount.clone());
            for part in &bind.over {
                let mut over = mount.clone();
                over.set_destination(destination.join(&part.at));
                over.set_source(Some(part.source.clone()));
                let options = match part.apart {
                    Some(host) => allowed(recursive_options(&options), host),
                    None => options.clone(),
                };
                let read_only = part.read_only.then(|| "ro".to_owned());
                over.set_options(Some(options.into_iter().chain(read_only).collect()));
                placed.push(over);
            }
        }
        self.spec.set_mounts(Some(placed));
    }

    /// The host's memory cannot be shared: the mount becomes one of the guest's own, with the attributes that it is to have.
    fn own_shm(&mut self, mount: &mut Mount, options: &Options) {
        self.warnings.push(format!(
            "{} is a tmpfs of the guest's own",
            mount.destination().display()
        ));
        mount.set_typ(Some("tmpfs".to_owned()));
        mount.set_source(Some(PathBuf::from("shm")));
        let size = options.0.iter().find(|option| option.starts_with("size="));
        let mut shm = SHM_OPTIONS.map(str::to_owned).to_vec();
        shm.push(size.map_or_else(|| SHM_SIZE.to_owned(), Clone::clone));
        let attributes = options.0.iter().filter(|option| {
            let option = option.as_str();
            let plain = option.strip_prefix('r').unwrap_or(option);
            [option, plain]
                .iter()
                .any(|word| RESTRICTIONS.contains(word) || LIFTS.contains(word))
        });
        shm.extend(attributes.cloned());
        mount.set_options(Some(shm));
    }

    /// An overlay of directories of the host, which the host mounts: it is shared like a directory.
    fn overlay(&mut self, mount: &mut Mount, position: usize, options: &Options) {
        let of_mount = |option: &&String| protocol::MOUNT_OPTIONS.contains(&option.as_str());
        let (attributes, layers): (Vec<_>, Vec<_>) = options.0.iter().partition(of_mount);
        self.binds.push(BindSource {
            position,
            source: PathBuf::from(OVERLAY),
            destination: mount.destination().clone(),
            read_only: options.last("ro", "rw") == Some(true),
            read_only_below: false,
            recursive: false,
            receives: false,
            apart: false,
            id_map: None,
            overlay: Some(layers.into_iter().cloned().collect()),
        });
        let bind = attributes.into_iter().cloned().chain(["bind".to_owned()]);
        let bind = bind.collect();
        mount.set_typ(Some("bind".to_owned())).set_options(Some(bind));
    }

    /// A file of the host: it comes by the shared directory.
    fn bind(&mut self, mount: &Mount, source: PathBuf, options: &Options, (position, id_map): (usize, Option<IdMap>)) {
        let recursive = options.has(&["rbind"]);
        // runc gives a mount what is for it alone, and then what is recursive.
        let everywhere = options.last("rro", "rrw");
        self.binds.push(BindSource {
            position,
            source,
            destination: mount.destination().clone(),
            read_only: everywhere.or(options.last("ro", "rw")) == Some(true),
            read_only_below: everywhere == Some(true),
            recursive,
            apart: recursive && options.has(&RESTRICTIONS),
            id_map,
            overlay: None,
            // Where nothing is said it is a slave, as with runc, whose root is one (its `rootfsPropagation`).
            receives: !options.has(&["private", "rprivate", "unbindable", "runbindable"]),
        });
    }
}

/// Options, with what the host does not allow.
fn allowed(asked: Vec<String>, host: HostOptions) -> Vec<String> {
    let words = [(host.nosuid, "nosuid"), (host.nodev, "nodev"), (host.noexec, "noexec")];
    let refused = words
        .iter()
        .filter(|(holds, _)| *holds)
        .map(|(_, word)| (*word).to_owned());
    refused
        .chain(asked)
        .chain(host.read_only.then(|| "ro".to_owned()))
        .collect()
}

/// Options of a mount that restrict it, and not what is mounted below. Each has a recursive one, with an r before it.
const RESTRICTIONS: [&str; 5] = ["ro", "nosuid", "nodev", "noexec", "nosymfollow"];

/// Options that lift one of them.
const LIFTS: [&str; 5] = ["rw", "suid", "dev", "exec", "symfollow"];

/// The options that are for what is mounted below, too.
fn recursive_options(options: &[String]) -> Vec<String> {
    let own = |option: &&String| !RESTRICTIONS.contains(&option.as_str()) && !LIFTS.contains(&option.as_str());
    options.iter().filter(own).cloned().collect()
}

fn check_propagation(mount: &Mount, options: &Options) -> Result<(), GuestSpecError> {
    if options.has(&["shared", "rshared"]) {
        let reason = "a guest cannot propagate mounts to the host (shared propagation)";
        return Err(GuestSpecError::mount(mount, reason));
    }
    Ok(())
}

/// A tmpfs's option with the guest's memory nodes in place of the host's (tmpfs(5), `mpol=MODE:NODES`): the guest has one, which is 0.
fn on_the_guests_node(option: String) -> String {
    match option.strip_prefix("mpol=").and_then(|policy| policy.split_once(':')) {
        Some((mode, _)) => format!("mpol={mode}:0"),
        None => option,
    }
}

fn check_kind(mount: &Mount, kind: &str) -> Result<(), GuestSpecError> {
    if GUEST_FILE_SYSTEMS.contains(&kind) {
        return Ok(());
    }
    let reason = format!("file system type {kind:?} of the host is not available in the guest");
    Err(GuestSpecError::mount(mount, reason))
}

fn bind_source(mount: &Mount) -> Result<PathBuf, GuestSpecError> {
    let source = mount.source().clone().unwrap_or_default();
    if !source.is_absolute() {
        let reason = format!("source {} is not an absolute path", source.display());
        return Err(GuestSpecError::mount(mount, reason));
    }
    // `crate::files::volumes` has resolved those that can be.
    if source.components().any(|part| part == Component::ParentDir) {
        let reason = format!("source {} cannot be resolved on the host", source.display());
        return Err(GuestSpecError::mount(mount, reason));
    }
    Ok(source)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{translate, translate_with};
    use super::*;
    use serde_json::json;

    fn mount(mount: impl Into<serde_json::Value>) -> Result<GuestSpec, GuestSpecError> {
        translate(json!({ "mounts": [mount.into()] }), "me")
    }

    #[test]
    fn shared_propagation_is_refused_for_what_is_the_hosts_and_for_nothing_else() {
        for word in ["shared", "rshared"] {
            let of =
                |kind| mount(json!({ "destination": "/data", "type": kind, "source": "/srv/data", "options": [word] }));
            assert!(of("tmpfs").is_ok() && of("proc").is_ok(), "{word}");
            let refused = of("bind").unwrap_err().to_string();
            assert!(refused.contains("shared propagation"), "{refused}");
        }
    }

    #[test]
    fn a_bind_mount_comes_from_the_shared_directory() {
        let guest = mount(json!({
            "destination": "/data", "type": "bind", "source": "/srv/data", "options": ["rbind", "ro"]
        }))
        .unwrap();
        let bind = &guest.binds[0];
        assert_eq!(
            (bind.source.as_path(), bind.read_only, bind.recursive),
            (Path::new("/srv/data"), true, true)
        );
    }

    #[test]
    fn a_source_is_put_in_its_place_with_what_covers_parts_of_it_and_what_the_host_does_not_allow() {
        let mut guest = mount(json!({
            "destination": "/data", "type": "bind", "source": "/srv/data", "options": ["rbind", "exec", "rw"]
        }))
        .unwrap();
        let options = HostOptions {
            read_only: true,
            nosuid: true,
            nodev: false,
            noexec: true,
        };
        guest.place(&[PlacedBind {
            position: 0,
            source: "/shared/1".into(),
            options,
            over: vec![
                Over {
                    at: "a/b".into(),
                    source: "/shared/2".into(),
                    read_only: true,
                    apart: None,
                },
                Over {
                    at: "c".into(),
                    source: "/shared/1/c".into(),
                    read_only: false,
                    apart: Some(HostOptions {
                        nodev: true,
                        ..HostOptions::default()
                    }),
                },
            ],
        }]);
        let mounts = guest.spec.mounts().clone().unwrap();
        let places: Vec<_> = mounts
            .iter()
            .map(|mount| (mount.destination().as_path(), mount.source().as_deref().unwrap()))
            .collect();
        let wanted = [
            ("/data", "/shared/1"),
            ("/data/a/b", "/shared/2"),
            ("/data/c", "/shared/1/c"),
        ];
        assert_eq!(places, wanted.map(|(at, source)| (Path::new(at), Path::new(source))));
        let options = mounts[0].options().clone().unwrap();
        assert_eq!(options, ["nosuid", "noexec", "rbind", "exec", "rw", "ro"]);
        assert_eq!(mounts[1].options().as_ref().unwrap().last().unwrap(), "ro");
        assert_eq!(mounts[2].options().clone().unwrap(), ["nodev", "rbind"]);
    }

    #[test]
    fn what_is_mounted_below_is_apart_where_attributes_are_asked_for_that_are_not_recursive() {
        for (options, apart) in [
            (&["rbind", "ro"] as &[&str], true),
            (&["rbind", "noexec", "rw"], true),
            (&["rbind", "rro"], false),
            (&["bind", "ro"], false),
            (&["rbind", "rw"], false),
        ] {
            let bind = json!({ "destination": "/data", "type": "bind", "source": "/srv/data", "options": options });
            assert_eq!(mount(bind).unwrap().binds[0].apart, apart, "{options:?}");
        }
    }

    #[test]
    fn a_mount_receives_what_the_host_mounts_unless_it_is_private() {
        for (options, receives) in [
            (["rbind", "ro"], true),
            (["rbind", "rslave"], true),
            (["bind", "slave"], true),
            (["rbind", "rprivate"], false),
            (["bind", "private"], false),
        ] {
            let guest = mount(json!({
                "destination": "/data", "type": "bind", "source": "/srv/data", "options": options
            }));
            assert_eq!(guest.unwrap().binds[0].receives, receives, "{options:?}");
        }
    }

    #[test]
    fn files_of_the_kernel_and_shared_memory_are_the_guests() {
        for source in ["/sys/fs/cgroup", "/proc/sys", "/dev/null"] {
            assert!(
                mount(json!({"destination": "/x", "type": "bind", "source": source}))
                    .unwrap()
                    .binds
                    .is_empty()
            );
        }
        let log = json!({ "mounts": [{"destination": "/x", "type": "bind", "source": "/dev/log"}] });
        let files = std::collections::BTreeSet::from([PathBuf::from("/dev/log")]);
        let guest = translate_with(log, "me", &files).unwrap();
        assert_eq!(guest.binds.len(), 1, "a socket of the host");
    }

    #[test]
    fn only_the_hosts_own_shared_memory_becomes_a_tmpfs_with_the_attributes_asked_for() {
        let shm = |options: &[&str]| {
            let guest = mount(json!({
                "destination": "/dev/shm", "type": "bind", "source": "/dev/shm", "options": options
            }));
            let guest = guest.unwrap();
            assert!(guest.binds.is_empty());
            let shm = guest.spec.mounts().clone().unwrap().remove(0);
            assert_eq!(shm.typ().as_deref(), Some("tmpfs"));
            shm.options().clone().unwrap().join(" ")
        };
        let fixed = "nosuid noexec nodev mode=1777";
        assert_eq!(shm(&["rbind"]), format!("{fixed} size=65536k"));
        assert_eq!(
            shm(&["bind", "size=1g", "ro", "rprivate"]),
            format!("{fixed} size=1g ro")
        );
        assert_eq!(shm(&["rbind", "rro"]), format!("{fixed} size=65536k rro"));
        // A directory of the host, or an emptyDir on a disk: `crate::files::volumes` takes what is in memory.
        let data =
            json!({ "destination": "/dev/shm", "type": "bind", "source": "/srv/data", "options": ["rbind", "ro"] });
        let guest = mount(data).unwrap();
        assert!(guest.binds[0].read_only && guest.warnings.iter().all(|warning| !warning.contains("shm")));
    }

    #[test]
    fn a_tmpfs_has_its_memory_on_the_node_that_the_guest_has() {
        for (asked, given) in [
            ("mpol=bind:0,2", "mpol=bind:0"),
            ("mpol=interleave=static:1-3", "mpol=interleave=static:0"),
            ("mpol=local", "mpol=local"),
            ("size=1g", "size=1g"),
        ] {
            let guest = mount(json!({ "destination": "/x", "type": "tmpfs", "options": [asked] })).unwrap();
            let mounts = guest.spec.mounts().clone().unwrap();
            assert_eq!(mounts[0].options().clone().unwrap(), [given]);
        }
    }

    #[test]
    fn an_overlay_is_mounted_by_the_host_and_bound() {
        let options = ["lowerdir=/a:/b", "ro", "nosuid", "index=off"];
        let guest = mount(json!({ "destination": "/d", "type": "overlay", "source": "overlay", "options": options }));
        let guest = guest.unwrap();
        let layers = ["lowerdir=/a:/b", "index=off"].map(str::to_owned);
        assert_eq!(guest.binds[0].overlay.as_deref(), Some(&layers[..]));
        assert!(guest.binds[0].read_only);
        let mounts = guest.spec.mounts().clone().unwrap();
        assert_eq!(mounts[0].typ().as_deref(), Some("bind"));
        assert_eq!(mounts[0].options().clone().unwrap(), ["ro", "nosuid", "bind"]);
    }

    #[test]
    fn what_a_guest_cannot_do_is_refused_with_the_place() {
        let refused = [
            json!({"destination": "/d", "type": "bind", "source": "/s", "options": ["rshared"]}),
            json!({"destination": "/d", "type": "ext4", "source": "/dev/sda"}),
            json!({"destination": "/d", "type": "bind", "source": "relative"}),
            json!({"destination": "/d", "type": "bind", "source": "/a/../proc"}),
        ];
        for refused in refused {
            assert!(mount(refused).unwrap_err().to_string().contains("/d"));
        }
    }
}
