//! The manifest of docs/kubernetes.md, carried out as the kubelet carries it out: there is no kubelet here.
//!
//! The structures have the fields that the manifest uses and no others, so that a field which is added to it fails the test
//! until what the kubelet makes of it is written here.

use std::fs;

use framework::{
    Error, Result,
    cri::{
        Pod, PodNode, eventually,
        messages::{ContainerConfig, LinuxContainerResources, PodSandboxConfig},
        pod::resources,
    },
    host_cgroup::HostMemory,
    locate,
};
use serde::Deserialize;

const KIB: i64 = 1 << 10;
const MIB: i64 = KIB << 10;

#[derive(Deserialize)]
#[serde(tag = "kind", deny_unknown_fields)]
enum Object {
    RuntimeClass(RuntimeClass),
    Pod(PodManifest),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RuntimeClass {
    api_version: String,
    metadata: Metadata,
    handler: String,
    overhead: Overhead,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Overhead {
    pod_fixed: Amounts,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Amounts {
    memory: String,
    cpu: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PodManifest {
    api_version: String,
    metadata: Metadata,
    spec: PodSpec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PodSpec {
    runtime_class_name: String,
    restart_policy: String,
    containers: Vec<ContainerSpec>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ContainerSpec {
    name: String,
    image: String,
    command: Vec<String>,
    resources: Resources,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Resources {
    limits: Amounts,
}

impl Amounts {
    /// As much of Kubernetes' "quantity" as the manifest needs: Mi and Gi, cores and thousandths.
    fn parsed(&self) -> Result<(i64, i64)> {
        let wrong = |what: &str| Error::unexpected(format!("{what} is no amount that this test knows"));
        let number = |text: &str| text.parse::<i64>().map_err(|_| wrong(text));
        let bytes = match (self.memory.strip_suffix("Mi"), self.memory.strip_suffix("Gi")) {
            (Some(number_of), _) => number(number_of)? * MIB,
            (_, Some(number_of)) => number(number_of)? * KIB * MIB,
            _ => return Err(wrong(&self.memory)),
        };
        let milli = match self.cpu.strip_suffix('m') {
            Some(thousandths) => number(thousandths)?,
            None => number(&self.cpu)? * 1000,
        };
        Ok((bytes, milli))
    }

    /// What the kubelet makes of limits without requests, which are the requests then (its `milliCPUToQuota` and
    /// `MilliCPUToShares`).
    fn to_cri(&self) -> Result<LinuxContainerResources> {
        let (bytes, milli) = self.parsed()?;
        Ok(LinuxContainerResources {
            memory_limit_in_bytes: bytes,
            cpu_period: 100_000,
            cpu_quota: milli * 100,
            cpu_shares: milli * 1024 / 1000,
            ..LinuxContainerResources::default()
        })
    }
}

fn manifest() -> Result<(RuntimeClass, PodManifest)> {
    let text = fs::read_to_string(locate::workspace().join("docs/kubernetes.md"))?;
    let block = text
        .split("\n```yaml\n")
        .nth(1)
        .and_then(|rest| rest.split("\n```").next());
    let block = block.ok_or_else(|| Error::unexpected("docs/kubernetes.md has no manifest"))?;
    let (mut class, mut pod) = (None, None);
    for document in serde_yaml_ng::Deserializer::from_str(block) {
        let object =
            Object::deserialize(document).map_err(|error| Error::unexpected(format!("the manifest: {error}")))?;
        match object {
            Object::RuntimeClass(found) => class = Some(found),
            Object::Pod(found) => pod = Some(found),
        }
    }
    class
        .zip(pod)
        .ok_or_else(|| Error::unexpected("the manifest has not both a RuntimeClass and a Pod"))
}

/// `RunPodSandbox`: the pod's limits are the sum of its containers'; the overhead is told beside them.
fn sandbox(node: &PodNode, pod: &PodManifest, class: &RuntimeClass) -> Result<PodSandboxConfig> {
    let mut config = node.pod(&pod.metadata.name);
    let linux = config.linux.get_or_insert_default();
    let mut sum = LinuxContainerResources::default();
    for container in &pod.spec.containers {
        let one = container.resources.limits.to_cri()?;
        sum.memory_limit_in_bytes += one.memory_limit_in_bytes;
        sum.cpu_period = one.cpu_period;
        sum.cpu_quota += one.cpu_quota;
        sum.cpu_shares += one.cpu_shares;
    }
    linux.resources = Some(sum);
    linux.overhead = Some(class.overhead.pod_fixed.to_cri()?);
    Ok(config)
}

/// `CreateContainer`. `image` is what the test has of it: busybox.
fn container(pod: &Pod<'_>, spec: &ContainerSpec) -> Result<ContainerConfig> {
    assert_eq!(spec.image, "busybox");
    let command: Vec<&str> = spec.command.iter().map(String::as_str).collect();
    let mut config = pod.container(&spec.name, &command);
    *resources(&mut config) = spec.resources.limits.to_cri()?;
    Ok(config)
}

mod kata_only {
    use super::*;

    #[test]
    fn the_manifest_of_the_documents_runs_and_uses_all_that_it_may_within_its_overhead() -> Result<()> {
        let (class, pod) = manifest()?;
        assert_eq!(
            (class.api_version.as_str(), pod.api_version.as_str()),
            ("node.k8s.io/v1", "v1")
        );
        assert_eq!(pod.spec.runtime_class_name, class.metadata.name);
        // The node's runtime has this name; the kubelet passes it on as it is.
        assert_eq!(class.handler, "kata");
        assert_eq!(pod.spec.restart_policy, "Never");

        let node = PodNode::start()?;
        let config = sandbox(&node, &pod, &class)?;
        let linux = config.linux.clone().unwrap_or_default();
        let limit = |resources: Option<LinuxContainerResources>| resources.unwrap_or_default().memory_limit_in_bytes;
        // The pod's cgroup, as the kubelet makes it before it asks for the sandbox.
        let pods = HostMemory::make(&linux.cgroup_parent)?;
        pods.allow(limit(linux.resources).unsigned_abs() + limit(linux.overhead).unsigned_abs())?;

        let running = node.run(&config)?;
        let [hello] = pod.spec.containers.as_slice() else {
            return Err(Error::unexpected("the manifest's pod has not one container"));
        };
        let started = running.start(&container(&running, hello)?)?;
        // `kubectl logs hello`: the guest's kernel and not the node's.
        let said = eventually("the container has said hello", || Ok(started.log()?.first().cloned()))?;
        let kernel = said.text.strip_prefix("Hello from Linux ").unwrap_or_default();
        let own = fs::read_to_string("/proc/sys/kernel/osrelease")?;
        assert!(kernel.contains("-tatami") && kernel != own.trim(), "{said:?}");

        // All that the container may use fits into what the pod has on the node, again and again.
        let (bytes, _) = hello.resources.limits.parsed()?;
        let most = (bytes - 6 * MIB).to_string();
        started.exec(&["guest-probe", "touch-memory", &most])?;
        started.exec(&["guest-probe", "touch-memory", &most])?;
        assert_eq!(started.sh("echo here")?, "here\n");
        assert!(pods.used()? > 64 << 20, "the pod's memory is counted elsewhere");
        running.remove()?;
        node.nothing_left()
    }
}
