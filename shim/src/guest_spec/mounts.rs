//! The mounts of a container: what comes from the host's files, what the guest makes by itself, what cannot be had.

use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::Mount;

use super::{GuestSpec, GuestSpecError, Input};
use crate::share;

/// A directory, file or socket of the host that the container is to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindSource {
    /// Its number among the container's bind mounts: its name in the shared directory.
    pub number: usize,
    /// The path on the host.
    pub source: PathBuf,
    /// The path in the container, for messages.
    pub destination: PathBuf,
    /// Not to be written to, by nobody in the guest.
    pub read_only: bool,
    /// With everything that is mounted below it.
    pub recursive: bool,
    /// With what the host mounts below it later.
    pub receives: bool,
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

/// The file systems that the guest's kernel makes by itself: no file of the host is needed for them.
const GUEST_FILE_SYSTEMS: [&str; 11] = [
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
];

/// Where the kernel's own files are: the guest's kernel has its own.
const KERNEL_DIRECTORIES: [&str; 3] = ["/proc", "/sys", "/dev"];

/// What `/dev/shm` is mounted with.
const SHM_OPTIONS: [&str; 4] = ["nosuid", "noexec", "nodev", "mode=1777"];

/// Size of a `/dev/shm` of which the specification gives no size: Docker's and containerd's default.
const SHM_SIZE: &str = "size=65536k";

/// The options of one mount.
#[derive(Debug, Clone)]
struct Options(Vec<String>);

impl Options {
    fn has(&self, names: &[&str]) -> bool {
        self.0.iter().any(|option| names.contains(&option.as_str()))
    }
}

impl GuestSpec {
    pub(super) fn mounts(&mut self, input: Input<'_>) -> Result<(), GuestSpecError> {
        let Some(mut mounts) = self.spec.mounts().clone() else {
            return Ok(());
        };
        for mount in &mut mounts {
            self.mount(mount, input)?;
        }
        self.spec.set_mounts(Some(mounts));
        Ok(())
    }

    fn mount(&mut self, mount: &mut Mount, input: Input<'_>) -> Result<(), GuestSpecError> {
        let options = Options(mount.options().clone().unwrap_or_default());
        check_propagation(mount, &options)?;
        let kind = mount.typ().clone().unwrap_or_default();
        if kind != "bind" && !options.has(&["bind", "rbind"]) {
            return check_kind(mount, &kind);
        }
        let source = bind_source(mount)?;
        if source.starts_with(protocol::STORAGE_DIRECTORY) {
            // A storage of the guest's, by `crate::volumes`.
        } else if mount.destination() == Path::new("/dev/shm") || source == Path::new("/dev/shm") {
            self.own_shm(mount, &options);
        } else if KERNEL_DIRECTORIES.iter().any(|directory| source.starts_with(directory)) {
            self.warnings.push(format!(
                "{} on {} is the guest's own",
                source.display(),
                mount.destination().display()
            ));
        } else {
            self.bind(mount, source, &options, input);
        }
        Ok(())
    }

    /// Adds what the host does not allow to a bind mount's options. What the specification says of the same comes later and
    /// wins, but for what only the host can grant: writing.
    pub fn keep(&mut self, bind: &BindSource, input: Input<'_>, host: HostOptions) {
        let words = [(host.nosuid, "nosuid"), (host.nodev, "nodev"), (host.noexec, "noexec")];
        let source = share::guest_bind(input.container, bind.number);
        let Some(mounts) = self.spec.mounts_mut() else { return };
        for mount in mounts
            .iter_mut()
            .filter(|mount| mount.source().as_ref() == Some(&source))
        {
            let mut options: Vec<String> = words
                .iter()
                .filter(|(holds, _)| *holds)
                .map(|(_, word)| (*word).to_owned())
                .collect();
            options.extend(mount.options().clone().unwrap_or_default());
            options.extend(host.read_only.then(|| "ro".to_owned()));
            mount.set_options(Some(options));
        }
    }

    /// The host's memory cannot be shared: the mount becomes one of the guest's own.
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
        mount.set_options(Some(shm));
    }

    /// A file of the host: it comes by the shared directory.
    fn bind(&mut self, mount: &mut Mount, source: PathBuf, options: &Options, input: Input<'_>) {
        let number = self.binds.len();
        self.binds.push(BindSource {
            number,
            source,
            destination: mount.destination().clone(),
            read_only: options.has(&["ro", "rro"]),
            recursive: options.has(&["rbind"]),
            // Where nothing is said it is a slave, as with runc, whose root is one (its `rootfsPropagation`).
            receives: !options.has(&["private", "rprivate", "unbindable", "runbindable"]),
        });
        mount.set_source(Some(share::guest_bind(input.container, number)));
    }
}

fn refused(mount: &Mount, reason: String) -> GuestSpecError {
    GuestSpecError::Mount {
        destination: mount.destination().clone(),
        reason,
    }
}

fn check_propagation(mount: &Mount, options: &Options) -> Result<(), GuestSpecError> {
    if options.has(&["shared", "rshared"]) {
        let reason = "a guest cannot propagate mounts to the host (shared propagation)";
        return Err(refused(mount, reason.to_owned()));
    }
    Ok(())
}

fn check_kind(mount: &Mount, kind: &str) -> Result<(), GuestSpecError> {
    if GUEST_FILE_SYSTEMS.contains(&kind) {
        return Ok(());
    }
    let reason = format!("file system type {kind:?} of the host is not available in the guest");
    Err(refused(mount, reason))
}

fn bind_source(mount: &Mount) -> Result<PathBuf, GuestSpecError> {
    let source = mount.source().clone().unwrap_or_default();
    if !source.is_absolute() || source.components().any(|part| part == Component::ParentDir) {
        let reason = format!("source {} is not a plain absolute path", source.display());
        return Err(refused(mount, reason));
    }
    Ok(source)
}

#[cfg(test)]
mod tests {
    use super::super::tests::translate;
    use super::*;
    use crate::id::{ContainerId, SandboxId};
    use serde_json::json;

    fn mount(mount: impl Into<serde_json::Value>) -> Result<GuestSpec, GuestSpecError> {
        translate(json!({ "mounts": [mount.into()] }), "me")
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
        let mounts = guest.spec.mounts().clone().unwrap();
        assert_eq!(
            mounts[0].source().as_deref(),
            Some(Path::new("/run/tatami/shared/me/mounts/0"))
        );
    }

    #[test]
    fn what_the_host_does_not_allow_is_not_allowed_in_the_guest_unless_the_specification_says_so() {
        let mut guest = mount(json!({
            "destination": "/data", "type": "bind", "source": "/srv/data", "options": ["rbind", "exec", "rw"]
        }))
        .unwrap();
        let (container, sandbox) = (ContainerId::new("me").unwrap(), SandboxId::new("me").unwrap());
        let input = Input {
            container: &container,
            sandbox: &sandbox,
            disable_guest_seccomp: false,
        };
        let host = HostOptions {
            read_only: true,
            nosuid: true,
            nodev: false,
            noexec: true,
        };
        let bind = guest.binds[0].clone();
        guest.keep(&bind, input, host);
        let options = guest.spec.mounts().clone().unwrap()[0].options().clone().unwrap();
        assert_eq!(options, ["nosuid", "noexec", "rbind", "exec", "rw", "ro"]);
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
        let guest = mount(json!({
            "destination": "/dev/shm", "type": "bind", "source": "/run/pod/shm", "options": ["rbind"]
        }))
        .unwrap();
        assert!(guest.binds.is_empty());
        let shm = guest.spec.mounts().clone().unwrap().remove(0);
        assert_eq!(shm.typ().as_deref(), Some("tmpfs"));
        assert_eq!(
            shm.options().as_ref().unwrap().last().map(String::as_str),
            Some("size=65536k")
        );
        let guest = mount(json!({
            "destination": "/dev/shm", "type": "bind", "source": "/run/pod/shm", "options": ["bind", "size=1g"]
        }))
        .unwrap();
        let shm = guest.spec.mounts().clone().unwrap().remove(0);
        assert_eq!(
            shm.options().as_ref().unwrap().last().map(String::as_str),
            Some("size=1g")
        );
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
