//! Converts CRI's `PodSandboxConfig` into an OCI specification. containerd passes it if the shim manages the sandboxes
//! (`sandboxer = "shim"`). So a pod is the same, whoever manages its sandbox.
//!
//! Only the used fields of the message are read. Numbers and meanings are those of Kubernetes'
//! `cri-api/pkg/apis/runtime/v1/api.proto`. The specification is the one that containerd's own sandboxer writes for its
//! pause container, without the parts that concern only the host.

use std::collections::BTreeMap;
use std::path::Path;

use protobuf::well_known_types::any::Any;
use protobuf::{CodedInputStream, rt};
use serde_json::{Value, json};

use crate::id::SandboxId;

/// The end of the message's type URL.
const TYPE: &str = "runtime.v1.PodSandboxConfig";
/// `NamespaceMode` NODE.
const NODE: u64 = 2;
/// What containerd gives a sandbox: the least weight.
const SHARES: u64 = 2;

#[derive(Debug, thiserror::Error)]
pub enum PodConfigError {
    #[error("the sandbox's options are {0:?} and not a {TYPE}")]
    Kind(String),
    #[error("the sandbox's options cannot be decoded")]
    Decode(#[from] protobuf::Error),
}

/// One message: its fields as they are on the wire, in order.
#[derive(Debug, Default)]
struct Message(Vec<(u32, Field)>);

#[derive(Debug)]
enum Field {
    Number(u64),
    Bytes(Vec<u8>),
}

impl Message {
    fn parse(bytes: &[u8]) -> Result<Self, protobuf::Error> {
        let mut input = CodedInputStream::from_bytes(bytes);
        let mut fields = Vec::new();
        while let Some(tag) = input.read_raw_tag_or_eof()? {
            match tag & 7 {
                0 => fields.push((tag >> 3, Field::Number(input.read_raw_varint64()?))),
                2 => fields.push((tag >> 3, Field::Bytes(input.read_bytes()?))),
                _ => rt::skip_field_for_tag(tag, &mut input)?,
            }
        }
        Ok(Self(fields))
    }

    fn bytes(&self, number: u32) -> impl Iterator<Item = &[u8]> {
        self.0.iter().filter_map(move |(at, field)| match field {
            Field::Bytes(bytes) if *at == number => Some(bytes.as_slice()),
            Field::Bytes(_) | Field::Number(_) => None,
        })
    }

    /// A text; empty where it is not given. The last one counts.
    fn text(&self, number: u32) -> String {
        let text = self.bytes(number).last().unwrap_or_default();
        String::from_utf8_lossy(text).into_owned()
    }

    /// A number; 0 where it is not given.
    fn number(&self, number: u32) -> u64 {
        let mut numbers = self.0.iter().filter_map(|(at, field)| match field {
            Field::Number(value) if *at == number => Some(*value),
            Field::Bytes(_) | Field::Number(_) => None,
        });
        numbers.next_back().unwrap_or_default()
    }

    /// A message; an empty one where it is not given.
    fn message(&self, number: u32) -> Result<Self, protobuf::Error> {
        Self::parse(self.bytes(number).last().unwrap_or_default())
    }

    /// A map of texts: on the wire a list of messages with a key and a value.
    fn map(&self, number: u32) -> Result<BTreeMap<String, String>, protobuf::Error> {
        let entries = self.bytes(number).map(|entry| {
            let entry = Self::parse(entry)?;
            Ok((entry.text(1), entry.text(2)))
        });
        entries.collect()
    }
}

/// The OCI specification of a pod's sandbox, as JSON. `netns` is empty for a pod with the host's network.
///
/// # Errors
/// The options are no `PodSandboxConfig`.
pub fn specification(options: &Any, netns: &str, sandbox: &SandboxId) -> Result<Value, PodConfigError> {
    if !options.type_url.ends_with(TYPE) {
        return Err(PodConfigError::Kind(options.type_url.clone()));
    }
    let config = Message::parse(&options.value)?;
    let linux = config.message(8)?;
    let modes = linux.message(2)?.message(1)?;
    let mut namespaces = vec![json!({ "type": "mount" })];
    if netns.is_empty() {
        // With the host's network the pod has the host's name, too: there is no UTS namespace of its own.
    } else {
        namespaces.push(json!({ "type": "network", "path": netns }));
        namespaces.push(json!({ "type": "uts" }));
    }
    for (kind, number) in [("pid", 2), ("ipc", 3)] {
        if modes.number(number) != NODE {
            namespaces.push(json!({ "type": kind }));
        }
    }
    let cgroup = cgroups_path(&linux.text(1), sandbox);
    // A name needs a namespace of its own.
    let hostname = if netns.is_empty() {
        String::new()
    } else {
        config.text(2)
    };
    Ok(json!({
        "ociVersion": "1.0.2",
        "hostname": hostname,
        "root": { "path": "rootfs", "readonly": true },
        "process": {
            "user": { "uid": 0, "gid": 0 }, "cwd": "/", "args": [protocol::PAUSE_PROGRAM], "env": [],
            "noNewPrivileges": true, "capabilities": {},
        },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"] },
        ],
        "annotations": annotations(&config, &linux, sandbox)?,
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": namespaces,
            "sysctl": linux.map(3)?,
            "resources": { "cpu": { "shares": SHARES }, "devices": [{ "allow": false, "access": "rwm" }] },
        },
    }))
}

/// By systemd's naming where the parent is a slice, as containerd's sandboxer writes it.
fn cgroups_path(parent: &str, sandbox: &SandboxId) -> String {
    match parent.rsplit('/').next() {
        Some(slice) if slice.ends_with(".slice") => format!("{slice}:cri-containerd:{sandbox}"),
        _ => Path::new(parent).join(sandbox.as_str()).display().to_string(),
    }
}

/// The pod's own annotations, and those by which containerd's sandboxer describes a sandbox.
fn annotations(
    config: &Message,
    linux: &Message,
    sandbox: &SandboxId,
) -> Result<BTreeMap<String, String>, protobuf::Error> {
    let (metadata, resources) = (config.message(1)?, linux.message(5)?);
    let mut annotations = config.map(7)?;
    let mut add = |key: &str, value: String| annotations.insert(format!("io.kubernetes.cri.{key}"), value);
    add("container-type", "sandbox".to_owned());
    add("sandbox-id", sandbox.to_string());
    add("sandbox-name", metadata.text(1));
    add("sandbox-uid", metadata.text(2));
    add("sandbox-namespace", metadata.text(3));
    add("sandbox-log-directory", config.text(3));
    for (key, number) in [
        ("sandbox-cpu-period", 1),
        ("sandbox-cpu-quota", 2),
        ("sandbox-cpu-shares", 3),
        ("sandbox-memory", 4),
    ] {
        // On the wire a negative number is its two's complement.
        add(key, resources.number(number).cast_signed().to_string());
    }
    Ok(annotations)
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::Spec;
    use proptest::prelude::*;

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, u8::try_from(bytes.len()).unwrap()], bytes].concat()
    }

    fn number(number: u8, value: u8) -> Vec<u8> {
        vec![number << 3, value]
    }

    fn options(value: Vec<u8>) -> Any {
        Any {
            type_url: TYPE.to_owned(),
            value,
            ..Any::default()
        }
    }

    fn entry(key: &str, value: &str) -> Vec<u8> {
        [field(1, key.as_bytes()), field(2, value.as_bytes())].concat()
    }

    fn id() -> SandboxId {
        SandboxId::new("pod").unwrap()
    }

    #[test]
    fn a_pod_becomes_the_specification_of_its_sandbox() {
        let modes = [number(1, 0), number(2, 1), number(3, 2)].concat();
        let linux = [
            field(1, b"/kubepods/p"),
            field(2, &field(1, &modes)),
            field(3, &entry("net.a", "1")),
            field(5, &number(4, 100)),
        ]
        .concat();
        let config = [
            field(1, &[field(1, b"name"), field(2, b"uid")].concat()),
            field(2, b"host"),
            field(7, &entry("io.katacontainers.x", "y")),
            field(8, &linux),
        ]
        .concat();
        let json = specification(&options(config), "/run/netns/a", &id()).unwrap();
        let spec: Spec = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(spec.hostname().as_deref(), Some("host"));
        let annotations = spec.annotations().as_ref().unwrap();
        assert_eq!(annotations["io.katacontainers.x"], "y");
        assert_eq!(annotations["io.kubernetes.cri.sandbox-name"], "name");
        assert_eq!(annotations["io.kubernetes.cri.sandbox-memory"], "100");
        let linux = &json["linux"];
        assert_eq!(linux["cgroupsPath"], "/kubepods/p/pod");
        assert_eq!(linux["sysctl"]["net.a"], "1");
        let kinds: Vec<_> = linux["namespaces"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| &one["type"])
            .collect();
        assert_eq!(kinds, ["mount", "network", "uts", "pid"]);
        assert_eq!(linux["namespaces"][1]["path"], "/run/netns/a");
    }

    #[test]
    fn a_pod_whose_cgroup_is_a_slice_is_named_as_systemd_names_it() {
        for (parent, path) in [
            ("/kubepods/pod1", "/kubepods/pod1/pod"),
            ("", "pod"),
            ("kubepods-pod1.slice", "kubepods-pod1.slice:cri-containerd:pod"),
            (
                "/kubepods.slice/kubepods-pod1.slice",
                "kubepods-pod1.slice:cri-containerd:pod",
            ),
        ] {
            assert_eq!(cgroups_path(parent, &id()), path);
        }
    }

    #[test]
    fn a_pod_of_the_hosts_network_has_no_namespace_for_it() {
        let json = specification(&options(Vec::new()), "", &id()).unwrap();
        let text = json["linux"]["namespaces"].to_string();
        assert!(!text.contains("network") && !text.contains("uts"), "{text}");
        assert!(serde_json::from_value::<Spec>(json).is_ok());
    }

    #[test]
    fn another_message_is_refused_by_its_name() {
        let error = specification(&Any::default(), "", &id()).unwrap_err();
        assert!(error.to_string().contains("PodSandboxConfig"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            if let Ok(json) = specification(&options(bytes), "/n", &id()) {
                prop_assert!(serde_json::from_value::<Spec>(json).is_ok());
            }
        }
    }

    #[test]
    fn fuzz_pod_config() {
        fuzz::run("pod-config", |bytes| {
            let options = Any {
                type_url: TYPE.to_owned(),
                value: bytes.to_vec(),
                ..Any::default()
            };
            let _ = specification(&options, "/run/netns/x", &SandboxId::new("pod").unwrap());
        });
    }
}
