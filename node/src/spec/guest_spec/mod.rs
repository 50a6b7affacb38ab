//! Converts the OCI specification that containerd wrote for the host into the one that the guest carries out.
//!
//! Pure except [`read`]: no other part opens a file. The result also contains the work for the host (bind sources). Each
//! part of the specification with more than a few fields has its own file.

mod cgroup;
mod contradictions;
mod error;
mod id_map;
mod inherited;
mod left_out;
mod mounts;
mod namespaces;
mod pause;
mod process;
mod read;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxResources, Spec};

pub use error::GuestSpecError;
pub use inherited::Inherited;
pub use mounts::{BindSource, HostOptions, Over, PlacedBind};
pub use read::{ReadError, read, read_exec};

use crate::spec::bundle::{is_pod_sandbox, is_pods};
use crate::spec::guest_path::guest_rootfs;
use lifecycle::id::{ContainerId, SandboxId};

/// Kata's annotations that configure the VM.
const OF_VM: &str = "io.katacontainers.config.";

/// What to know besides the specification.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// The container whose specification it is.
    pub container: &'a ContainerId,
    /// The sandbox it belongs to; its first container has the same id.
    pub sandbox: &'a SandboxId,
    /// Kata's `disable_guest_seccomp`.
    pub disable_guest_seccomp: bool,
    /// Sources below `/dev` that are files of the host and no devices.
    pub host_files: &'a BTreeSet<PathBuf>,
}

/// The specification for the guest, and the work for the host.
#[derive(Debug, Clone, PartialEq)]
pub struct GuestSpec {
    /// For the guest: `root.path` is where [`crate::files::share::SharedTree`] puts it; so are the sources of bind mounts once they
    /// are placed ([`GuestSpec::place`]).
    pub spec: Spec,
    /// OCI type of a namespace to the host's path of the one that is joined: whose it is, the sandbox knows.
    pub join_namespaces: BTreeMap<String, PathBuf>,
    /// The host's path of the network namespace of a container that is not the sandbox's first.
    pub network_of: Option<PathBuf>,
    /// What the host has to attach.
    pub binds: Vec<BindSource>,
    /// What was left out, and why. One sentence each.
    pub warnings: Vec<String>,
    /// Whether it is a pod's sandbox, whose process is the guest's own: the host mounts no root for it.
    pub pause: bool,
}

/// Translates.
///
/// # Errors
/// The specification asks for what a guest cannot do.
pub fn guest_spec(spec: &Spec, input: Input<'_>) -> Result<GuestSpec, GuestSpecError> {
    contradictions::check(spec)?;
    let mut answer = GuestSpec {
        spec: spec.clone(),
        join_namespaces: BTreeMap::new(),
        network_of: None,
        binds: Vec::new(),
        warnings: Vec::new(),
        pause: is_pods_sandbox(spec, input),
    };
    answer.root(input)?;
    if answer.pause {
        answer.keep_only_the_guests_mounts();
    }
    answer.own_cgroup();
    answer.mounts(input)?;
    answer.process()?;
    answer.linux(input)?;
    answer.hooks();
    let others = left_out::of_spec(&mut answer.spec);
    answer.warnings.extend(others);
    answer.warnings.extend(vms_annotations(spec, input));
    if answer.pause {
        answer.become_pause()?;
    }
    Ok(answer)
}

/// Annotations for the VM of a container that is in another one's, and of no pod.
fn vms_annotations(spec: &Spec, input: Input<'_>) -> Vec<String> {
    let is_first = input.container.as_str() == input.sandbox.as_str();
    let annotations = spec.annotations().as_ref().filter(|all| !is_first && !is_pods(all));
    let keys = annotations.into_iter().flat_map(|all| all.keys());
    let of_vm = keys.filter(|key| key.starts_with(OF_VM));
    of_vm
        .map(|key| format!("{key} is left out: the container is in the VM of {}", input.sandbox))
        .collect()
}

/// Whether the container is a pod's sandbox.
fn is_pods_sandbox(spec: &Spec, input: Input<'_>) -> bool {
    input.container.as_str() == input.sandbox.as_str() && spec.annotations().as_ref().is_some_and(is_pod_sandbox)
}

impl GuestSpec {
    fn root(&mut self, input: Input<'_>) -> Result<(), GuestSpecError> {
        let mut root = self.spec.root().clone().ok_or(GuestSpecError::Missing("root"))?;
        root.set_path(guest_rootfs(input.container));
        self.spec.set_root(Some(root));
        Ok(())
    }

    fn linux(&mut self, input: Input<'_>) -> Result<(), GuestSpecError> {
        let mut linux = self.spec.linux().clone().ok_or(GuestSpecError::Missing("linux"))?;
        let own = self.own_namespaces(linux.namespaces().as_deref().unwrap_or_default(), input)?;
        linux.set_namespaces(Some(own));
        linux.set_cgroups_path(Some(Path::new("/").join(input.container.as_str())));
        if let Some(resources) = linux.resources_mut() {
            self.warnings.extend(guest_resources(resources));
        }
        self.warnings.extend(left_out::of_linux(&mut linux)?);
        if input.disable_guest_seccomp {
            linux.set_seccomp(None);
        }
        contradictions::check_seccomp(&linux)?;
        self.spec.set_linux(Some(linux));
        Ok(())
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
            .set_create_container(None)
            .set_poststart(None)
            .set_poststop(None);
        self.spec.set_hooks(Some(hooks));
    }
}

/// What a unified key of cpuset begins with, and those of them that are limits of the sandbox on the host.
const SET_KEYS: &str = "cpuset.";
const HOSTS_SET_KEYS: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];

/// Leaves out what the guest has no controller for, and what names the host's CPUs and memory nodes (`cpu.cpus`, `cpu.mems`, unified keys of `cpuset`): the guest numbers its
/// own from 0, and would refuse the container for a CPU that it does not have. The answer is what holds on the host neither, one
/// sentence each.
#[must_use]
pub fn guest_resources(resources: &mut LinuxResources) -> Vec<String> {
    if let Some(cpu) = resources.cpu_mut() {
        cpu.set_cpus(None).set_mems(None);
    }
    let mut warnings = left_out::of_resources(resources);
    if let Some(unified) = resources.unified_mut() {
        unified.retain(|key, _| {
            if key.starts_with(SET_KEYS) && !HOSTS_SET_KEYS.contains(&key.as_str()) {
                warnings.push(format!("{key} is about the host's CPUs: left out"));
            }
            !key.starts_with(SET_KEYS)
        });
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    pub(super) fn translate(change: serde_json::Value, sandbox: &str) -> Result<GuestSpec, GuestSpecError> {
        translate_with(change, sandbox, &BTreeSet::new())
    }

    pub(super) fn translate_with(
        mut change: serde_json::Value,
        sandbox: &str,
        host_files: &BTreeSet<PathBuf>,
    ) -> Result<GuestSpec, GuestSpecError> {
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
            host_files,
        };
        guest_spec(&serde_json::from_value(spec).unwrap(), input)
    }

    #[test]
    fn root_cgroup_network_and_labels_are_the_guests() {
        let guest = translate(json!({}), "me").unwrap();
        let root = guest.spec.root().clone().unwrap();
        assert_eq!(root.path(), Path::new("/run/tatami/shared/me/rootfs"));
        assert_eq!(root.readonly(), Some(true));
        let linux = guest.spec.linux().clone().unwrap();
        assert_eq!(linux.cgroups_path().as_deref(), Some(Path::new("/me")));
        let kinds: Vec<_> = linux
            .namespaces()
            .iter()
            .flatten()
            .map(|one| one.typ().to_string())
            .collect();
        assert_eq!(kinds, ["pid", "cgroup"]);
        assert_eq!(guest.spec.process().as_ref().unwrap().apparmor_profile(), &None);
        let of_apparmor = guest.warnings.iter().filter(|warning| warning.contains("AppArmor"));
        assert_eq!(of_apparmor.count(), 1);
    }

    #[test]
    fn the_hosts_cpu_numbers_stay_on_the_host() {
        let linux = json!({"linux": {"resources": {"cpu": {"quota": 1000, "cpus": "30-31", "mems": "1"}}}});
        let guest = translate(linux, "me").unwrap();
        let resources = guest.spec.linux().clone().unwrap().resources().clone().unwrap();
        let cpu = resources.cpu().clone().unwrap();
        assert_eq!((cpu.quota(), cpu.cpus(), cpu.mems()), (Some(1000), &None, &None));

        let keys = json!({"cpuset.cpus": "30", "cpuset.mems": "1", "cpuset.cpus.partition": "root", "pids.max": "9"});
        let guest = translate(json!({"linux": {"resources": {"unified": keys}}}), "me").unwrap();
        let resources = guest.spec.linux().clone().unwrap().resources().clone().unwrap();
        assert_eq!(
            resources.unified().clone().unwrap().into_keys().collect::<Vec<_>>(),
            ["pids.max"]
        );
        let told = "cpuset.cpus.partition is about the host's CPUs: left out";
        assert!(
            guest.warnings.iter().any(|warning| warning == told),
            "{:?}",
            guest.warnings
        );
    }

    #[test]
    fn an_annotation_for_the_vm_is_named_if_the_container_is_in_another_ones() {
        let annotated = |more: serde_json::Value| {
            let mut all = json!({ "io.katacontainers.config.hypervisor.default_memory": "512", "other": "" });
            all.as_object_mut()
                .unwrap()
                .append(&mut more.as_object().unwrap().clone());
            json!({ "annotations": all })
        };
        let named = |change: serde_json::Value, sandbox: &str| {
            let guest = translate(change, sandbox).unwrap();
            guest
                .warnings
                .iter()
                .filter(|warning| warning.contains("default_memory"))
                .count()
        };
        assert_eq!(named(annotated(json!({})), "first"), 1);
        assert_eq!(named(annotated(json!({})), "me"), 0);
        let member = json!({ "io.kubernetes.cri.container-type": "container" });
        assert_eq!(named(annotated(member), "first"), 0);
    }

    #[test]
    fn only_the_hooks_of_the_container_reach_the_guest() {
        let hook = json!([{"path": "/bin/true"}]);
        let hooks = json!({"hooks": {"prestart": hook, "createRuntime": hook, "createContainer": hook, "startContainer": hook, "poststop": hook}});
        let guest = translate(hooks, "me").unwrap();
        assert_eq!(
            serde_json::to_value(guest.spec.hooks()).unwrap(),
            json!({"startContainer": [{"path": "/bin/true"}]})
        );
    }
}
