//! From the OCI specification that containerd wrote for the host to the one that the guest carries out.
//!
//! Pure: no file is opened. What the host has to do (bind sources) is part of the answer.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxResources, Mount, Spec};

use crate::id::{ContainerId, SandboxId};
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
}

/// What to know besides the specification.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// The container.
    pub container: &'a ContainerId,
    /// The sandbox it belongs to; its first container has the same id.
    pub sandbox: &'a SandboxId,
    /// Kata's `disable_guest_seccomp`.
    pub disable_guest_seccomp: bool,
}

/// The answer.
#[derive(Debug, Clone, PartialEq)]
pub struct GuestSpec {
    /// For the guest: `root.path` and the sources of bind mounts are where [`crate::share::SharedTree`] puts them.
    pub spec: Spec,
    /// OCI type of a namespace to the container whose namespace is joined.
    pub join_namespaces: BTreeMap<String, String>,
    /// What the host has to attach.
    pub binds: Vec<BindSource>,
    /// What was left out, and why. One sentence each.
    pub warnings: Vec<String>,
}

/// Why a specification cannot be carried out in a guest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GuestSpecError {
    /// There is no `process`, `root` or `linux`.
    #[error("config.json has no {0}")]
    Missing(&'static str),
    /// A mount that cannot be made in the guest.
    #[error("mount on {}: {reason}", destination.display())]
    Mount {
        /// Where in the container.
        destination: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A namespace that cannot be joined from inside the guest.
    #[error("namespace {kind} at {}: {reason}", path.display())]
    Namespace {
        /// OCI type.
        kind: String,
        /// The path asked for.
        path: PathBuf,
        /// Why not.
        reason: &'static str,
    },
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

/// Translates.
///
/// # Errors
/// The specification asks for what a guest cannot do.
pub fn guest_spec(spec: &Spec, input: Input<'_>) -> Result<GuestSpec, GuestSpecError> {
    let mut answer = GuestSpec {
        spec: spec.clone(),
        join_namespaces: BTreeMap::new(),
        binds: Vec::new(),
        warnings: Vec::new(),
    };
    answer.root(input)?;
    answer.mounts(input)?;
    answer.process()?;
    answer.linux(input)?;
    answer.hooks();
    Ok(answer)
}

impl GuestSpec {
    fn root(&mut self, input: Input<'_>) -> Result<(), GuestSpecError> {
        let mut root = self.spec.root().clone().ok_or(GuestSpecError::Missing("root"))?;
        root.set_path(share::guest_rootfs(input.container));
        self.spec.set_root(Some(root));
        Ok(())
    }

    fn mounts(&mut self, input: Input<'_>) -> Result<(), GuestSpecError> {
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
        let refused = |reason: String| GuestSpecError::Mount {
            destination: mount.destination().clone(),
            reason,
        };
        let options = mount.options().clone().unwrap_or_default();
        let has = |names: &[&str]| options.iter().any(|option| names.contains(&option.as_str()));
        if has(&["shared", "rshared"]) {
            return Err(refused(
                "a guest cannot propagate mounts to the host (shared propagation)".to_owned(),
            ));
        }
        let kind = mount.typ().clone().unwrap_or_default();
        if kind != "bind" && !has(&["bind", "rbind"]) {
            return if GUEST_FILE_SYSTEMS.contains(&kind.as_str()) {
                Ok(())
            } else {
                Err(refused(format!(
                    "file system type {kind:?} of the host is not available in the guest"
                )))
            };
        }
        let source = mount.source().clone().unwrap_or_default();
        if !source.is_absolute() || source.components().any(|part| part == Component::ParentDir) {
            return Err(refused(format!(
                "source {} is not a plain absolute path",
                source.display()
            )));
        }
        if mount.destination() == Path::new("/dev/shm") || source == Path::new("/dev/shm") {
            self.warnings.push(format!(
                "{} is a tmpfs of the guest's own",
                mount.destination().display()
            ));
            mount.set_typ(Some("tmpfs".to_owned()));
            mount.set_source(Some(PathBuf::from("shm")));
            let size = options.iter().find(|option| option.starts_with("size="));
            let mut shm = SHM_OPTIONS.map(str::to_owned).to_vec();
            shm.push(size.map_or_else(|| SHM_SIZE.to_owned(), Clone::clone));
            mount.set_options(Some(shm));
            return Ok(());
        }
        if KERNEL_DIRECTORIES.iter().any(|directory| source.starts_with(directory)) {
            self.warnings.push(format!(
                "{} on {} is the guest's own",
                source.display(),
                mount.destination().display()
            ));
            return Ok(());
        }
        let number = self.binds.len();
        self.binds.push(BindSource {
            number,
            source,
            destination: mount.destination().clone(),
            read_only: has(&["ro", "rro"]),
            recursive: has(&["rbind"]),
        });
        mount.set_source(Some(share::guest_bind(input.container, number)));
        Ok(())
    }

    fn process(&mut self) -> Result<(), GuestSpecError> {
        let mut process = self.spec.process().clone().ok_or(GuestSpecError::Missing("process"))?;
        let labels = [process.apparmor_profile().is_some(), process.selinux_label().is_some()];
        if labels.contains(&true) {
            self.warnings
                .push("the guest has neither AppArmor nor SELinux: the labels are left out".to_owned());
        }
        process.set_apparmor_profile(None).set_selinux_label(None);
        self.spec.set_process(Some(process));
        Ok(())
    }

    fn linux(&mut self, input: Input<'_>) -> Result<(), GuestSpecError> {
        let mut linux = self.spec.linux().clone().ok_or(GuestSpecError::Missing("linux"))?;
        let mut own = Vec::new();
        let mut network = false;
        for namespace in linux.namespaces().iter().flatten() {
            network |= namespace.typ() == LinuxNamespaceType::Network;
            if self.keeps(namespace, input)? {
                own.push(
                    LinuxNamespaceBuilder::default()
                        .typ(namespace.typ())
                        .build()
                        .unwrap_or_default(),
                );
            }
        }
        if !network {
            self.warnings
                .push("the host's network is not available: the container has the VM's own".to_owned());
        }
        linux.set_namespaces(Some(own));
        linux.set_cgroups_path(Some(Path::new("/").join(input.container.as_str())));
        linux.set_mount_label(None);
        if let Some(resources) = linux.resources_mut() {
            guest_resources(resources);
        }
        if linux.intel_rdt().is_some() {
            self.warnings
                .push("Intel RDT is not available in the guest: left out".to_owned());
            linux.set_intel_rdt(None);
        }
        if input.disable_guest_seccomp {
            linux.set_seccomp(None);
        }
        self.spec.set_linux(Some(linux));
        Ok(())
    }

    /// Whether the container gets a namespace of this type of its own.
    fn keeps(&mut self, namespace: &LinuxNamespace, input: Input<'_>) -> Result<bool, GuestSpecError> {
        let typ = namespace.typ();
        // The VM's network is the container's: there is one network per VM.
        if typ == LinuxNamespaceType::Network {
            return Ok(false);
        }
        let Some(path) = namespace.path().clone().filter(|path| !path.as_os_str().is_empty()) else {
            return Ok(true);
        };
        let kind = serde_json::to_value(typ)
            .ok()
            .and_then(|kind| Some(kind.as_str()?.to_owned()))
            .unwrap_or_default();
        if typ == LinuxNamespaceType::Mount {
            return Err(GuestSpecError::Namespace {
                kind,
                path,
                reason: "a container has its own mount namespace",
            });
        }
        if input.container.as_str() != input.sandbox.as_str() {
            self.join_namespaces.insert(kind, input.sandbox.as_str().to_owned());
            return Ok(false);
        }
        if path.starts_with("/proc") {
            let reason = "it belongs to a process of the host, which a guest cannot join";
            return Err(GuestSpecError::Namespace { kind, path, reason });
        }
        // CRI-O pins a pod's namespaces to files: they stand for the pod's own, which are the guest's.
        self.warnings.push(format!(
            "namespace {kind} at {} is a new one of the guest",
            path.display()
        ));
        Ok(true)
    }

    /// The host runs the others: see [`crate::hooks`].
    #[allow(deprecated)]
    fn hooks(&mut self) {
        let Some(mut hooks) = self.spec.hooks().clone() else {
            return;
        };
        hooks
            .set_prestart(None)
            .set_create_runtime(None)
            .set_poststart(None)
            .set_poststop(None);
        self.spec.set_hooks(Some(hooks));
    }
}

/// Leaves out what names the host's CPUs and memory nodes (`cpuset.cpus` and `cpuset.mems`): the guest numbers its own from
/// 0, and would refuse the container for a CPU that it does not have.
pub fn guest_resources(resources: &mut LinuxResources) {
    if let Some(cpu) = resources.cpu_mut() {
        cpu.set_cpus(None).set_mems(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn translate(mut change: serde_json::Value, sandbox: &str) -> Result<GuestSpec, GuestSpecError> {
        let mut spec = json!({
            "ociVersion": "1.0.2",
            "root": {"path": "/host/rootfs", "readonly": true},
            "process": {"cwd": "/", "args": ["sh"], "user": {"uid": 0, "gid": 0}, "apparmorProfile": "p"},
            "linux": {"cgroupsPath": "../../x", "namespaces": [{"type": "pid"}, {"type": "network"}]}
        });
        spec.as_object_mut().unwrap().append(change.as_object_mut().unwrap());
        let (container, sandbox) = (ContainerId::new("me").unwrap(), SandboxId::new(sandbox).unwrap());
        let input = Input {
            container: &container,
            sandbox: &sandbox,
            disable_guest_seccomp: false,
        };
        guest_spec(&serde_json::from_value(spec).unwrap(), input)
    }

    fn mount(mount: impl Into<serde_json::Value>) -> Result<GuestSpec, GuestSpecError> {
        translate(json!({ "mounts": [mount.into()] }), "me")
    }

    #[test]
    fn root_cgroup_network_and_labels_are_the_guests() {
        let guest = translate(json!({}), "me").unwrap();
        let root = guest.spec.root().clone().unwrap();
        assert_eq!(root.path(), Path::new("/run/tatami/shared/me/rootfs"));
        assert_eq!(root.readonly(), Some(true));
        let linux = guest.spec.linux().clone().unwrap();
        assert_eq!(linux.cgroups_path().as_deref(), Some(Path::new("/me")));
        assert_eq!(linux.namespaces().as_ref().unwrap().len(), 1);
        assert_eq!(guest.spec.process().as_ref().unwrap().apparmor_profile(), &None);
        assert_eq!(guest.warnings.len(), 1);
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
    fn the_hosts_cpu_numbers_stay_on_the_host() {
        let linux = json!({"linux": {"resources": {"cpu": {"quota": 1000, "cpus": "30-31", "mems": "1"}}}});
        let guest = translate(linux, "me").unwrap();
        let resources = guest.spec.linux().clone().unwrap().resources().clone().unwrap();
        let cpu = resources.cpu().clone().unwrap();
        assert_eq!((cpu.quota(), cpu.cpus(), cpu.mems()), (Some(1000), &None, &None));
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

    #[test]
    fn a_container_of_a_pod_joins_the_pods_namespaces() {
        let linux = json!({"linux": {"namespaces": [
            {"type": "ipc", "path": "/proc/7/ns/ipc"}, {"type": "uts", "path": "/proc/7/ns/uts"},
            {"type": "network", "path": "/proc/7/ns/net"}, {"type": "mount"}
        ]}});
        let guest = translate(linux.clone(), "pod").unwrap();
        assert_eq!(guest.join_namespaces.keys().collect::<Vec<_>>(), ["ipc", "uts"]);
        assert!(guest.join_namespaces.values().all(|container| container == "pod"));
        assert!(matches!(translate(linux, "me"), Err(GuestSpecError::Namespace { .. })));
    }

    #[test]
    fn only_the_hooks_of_the_container_reach_the_guest() {
        let hook = json!([{"path": "/bin/true"}]);
        let hooks =
            json!({"hooks": {"prestart": hook, "createRuntime": hook, "createContainer": hook, "poststop": hook}});
        let guest = translate(hooks, "me").unwrap();
        assert_eq!(
            serde_json::to_value(guest.spec.hooks()).unwrap(),
            json!({"createContainer": [{"path": "/bin/true"}]})
        );
    }
}
