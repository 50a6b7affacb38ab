//! The namespaces of a container: its own, those of the pod's first container, and the VM's network.

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType};

use super::{GuestSpec, GuestSpecError, Input};

/// The namespaces that a container shares with the host if it has none of its own, and what it would see there.
const SHARED: [(LinuxNamespaceType, &str); 4] = [
    (LinuxNamespaceType::Network, "network is"),
    (LinuxNamespaceType::Pid, "processes are"),
    (LinuxNamespaceType::Ipc, "IPC is"),
    (LinuxNamespaceType::Uts, "UTS namespace is"),
];

impl GuestSpec {
    /// The namespaces that the container gets for itself.
    pub(super) fn own_namespaces(
        &mut self,
        wanted: &[LinuxNamespace],
        input: Input<'_>,
    ) -> Result<Vec<LinuxNamespace>, GuestSpecError> {
        let mut own = Vec::new();
        for namespace in wanted {
            if self.keeps(namespace, input)? {
                own.push(new(namespace.typ()));
            }
        }
        let has = |kind| wanted.iter().any(|namespace| namespace.typ() == kind);
        // Without one, /proc/self/cgroup would show the guest's tree, and the mount only a part of it: whoever looks for its
        // limits (a JVM) would find none.
        if !has(LinuxNamespaceType::Cgroup) {
            own.push(new(LinuxNamespaceType::Cgroup));
        }
        for (kind, of_host) in SHARED {
            if !has(kind) {
                self.warnings.push(format!(
                    "the host's {of_host} not available: the container has the VM's own"
                ));
            }
        }
        Ok(own)
    }

    /// Whether the container gets a namespace of this type of its own.
    fn keeps(&mut self, namespace: &LinuxNamespace, input: Input<'_>) -> Result<bool, GuestSpecError> {
        let typ = namespace.typ();
        let path = namespace.path().clone().filter(|path| !path.as_os_str().is_empty());
        // The VM's network is the container's: there is one network per VM.
        if typ == LinuxNamespaceType::Network {
            self.network_of = path.filter(|_| input.container.as_str() != input.sandbox.as_str());
            return Ok(false);
        }
        let Some(path) = path else {
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
            self.join_namespaces.insert(kind, path);
            return Ok(false);
        }
        if path.starts_with("/proc") {
            let reason = "it belongs to a process of the host or of another VM, which a guest cannot join. A container whose network namespace is that of a \
                          container of this runtime, too, is in its VM, where the two can share others";
            return Err(GuestSpecError::Namespace { kind, path, reason });
        }
        // CRI-O pins a pod's namespaces to files: they stand for the pod's own, which are the guest's.
        self.warnings.push(format!(
            "namespace {kind} at {} is a new one of the guest",
            path.display()
        ));
        Ok(true)
    }
}

fn new(kind: LinuxNamespaceType) -> LinuxNamespace {
    LinuxNamespaceBuilder::default().typ(kind).build().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::tests::translate;
    use super::*;
    use serde_json::json;

    #[test]
    fn a_container_of_a_pod_joins_the_pods_namespaces() {
        let linux = json!({"linux": {"namespaces": [
            {"type": "ipc", "path": "/proc/7/ns/ipc"}, {"type": "uts", "path": "/proc/7/ns/uts"},
            {"type": "network", "path": "/proc/7/ns/net"}, {"type": "mount"}
        ]}});
        let guest = translate(linux.clone(), "pod").unwrap();
        let joined = [("ipc", "/proc/7/ns/ipc"), ("uts", "/proc/7/ns/uts")];
        assert_eq!(
            guest.join_namespaces.into_iter().collect::<Vec<_>>(),
            joined.map(|(kind, path)| (kind.to_owned(), path.into()))
        );
        assert!(matches!(translate(linux, "me"), Err(GuestSpecError::Namespace { .. })));
    }

    #[test]
    fn each_namespace_of_the_host_that_is_not_to_be_had_is_named_once() {
        let guest = translate(json!({"linux": {"namespaces": [{"type": "mount"}]}}), "me").unwrap();
        for of_host in ["network is", "processes are", "IPC is", "UTS namespace is"] {
            let told = format!("the host's {of_host} not available: the container has the VM's own");
            assert_eq!(
                guest.warnings.iter().filter(|warning| **warning == told).count(),
                1,
                "{of_host}"
            );
        }
    }
}
