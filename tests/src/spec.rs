//! OCI specs for `ctr run --config`, which can say what `ctr run`'s flags cannot.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::{Error, Node, Result};

/// An OCI runtime spec, changed by JSON pointer: tests name fields as the specification does.
#[derive(Debug, Clone)]
pub struct Spec(Value);

/// What `ctr run` and CRI give a container that asks for nothing.
const CAPABILITIES: [&str; 8] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
];

impl Spec {
    /// An ordinary container that runs `args` on the root file system `root`.
    pub fn new<S: AsRef<str>>(root: &Path, cgroup: &str, args: &[S]) -> Self {
        let args: Vec<_> = args.iter().map(AsRef::as_ref).collect();
        Self(json!({
            "ociVersion": "1.0.2",
            "process": {
                "args": args,
                "cwd": "/",
                "env": ["PATH=/bin:/sbin"],
                "user": { "uid": 0, "gid": 0 },
                "noNewPrivileges": true,
                "capabilities": {
                    "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES,
                },
                "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": 1024, "hard": 1024 }],
            },
            "root": { "path": root },
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                  "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
                { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                  "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
                { "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
                  "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"] },
                { "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
                  "options": ["nosuid", "noexec", "nodev"] },
                { "destination": "/sys", "type": "sysfs", "source": "sysfs",
                  "options": ["nosuid", "noexec", "nodev", "ro"] },
            ],
            "linux": {
                "cgroupsPath": cgroup,
                "namespaces": [
                    { "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" }, { "type": "network" },
                ],
                "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            },
        }))
    }

    /// Sets the field at a JSON pointer (RFC 6901) such as `/process/cwd`; objects on the way are made.
    pub fn set(mut self, pointer: &str, value: impl Into<Value>) -> Result<Self> {
        *self.field(pointer)? = value.into();
        Ok(self)
    }

    /// Appends to the list at a JSON pointer; the list is made if there is none.
    pub fn push(mut self, pointer: &str, value: impl Into<Value>) -> Result<Self> {
        let field = self.field(pointer)?;
        if field.is_null() {
            *field = json!([]);
        }
        field
            .as_array_mut()
            .ok_or_else(|| Error::unexpected(format!("{pointer} is no list")))?
            .push(value.into());
        Ok(self)
    }

    /// Lets the program read its own cgroup at `/sys/fs/cgroup`, as the root of a cgroup namespace of its own.
    pub fn own_cgroup(self) -> Result<Self> {
        self.push(
            "/mounts",
            json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
            "options": ["nosuid", "noexec", "nodev", "ro"] }),
        )?
        .push("/linux/namespaces", json!({ "type": "cgroup" }))
    }

    pub fn bind(self, source: &Path, destination: &str, options: &[&str]) -> Result<Self> {
        let options: Vec<_> = ["rbind"].iter().chain(options).collect();
        self.push(
            "/mounts",
            json!({ "destination": destination, "type": "bind", "source": source, "options": options }),
        )
    }

    /// The field at a JSON pointer; null if there is none.
    pub fn get(&self, pointer: &str) -> &Value {
        self.0.pointer(pointer).unwrap_or(&Value::Null)
    }

    pub fn annotation(mut self, key: &str, value: &str) -> Result<Self> {
        let annotations = self.field("/annotations")?;
        if annotations.is_null() {
            *annotations = json!({});
        }
        annotations[key] = json!(value);
        Ok(self)
    }

    /// A container of the sandbox that the test calls `pod`, by the two annotations that CRI sends with each: `kind` is `sandbox` for
    /// the first, `container` for the others.
    pub fn of_pod(self, node: &Node, kind: &str) -> Result<Self> {
        self.annotation("io.kubernetes.cri.container-type", kind)?
            .annotation("io.kubernetes.cri.sandbox-id", &node.id("pod"))
    }

    /// A container to which its guest belongs: every capability that the tests need, every device, the guest's processes, a writable /sys.
    pub fn of_the_guest(mut self) -> Result<Self> {
        let all = [
            "CHOWN",
            "DAC_OVERRIDE",
            "DAC_READ_SEARCH",
            "FOWNER",
            "FSETID",
            "KILL",
            "IPC_LOCK",
            "MKNOD",
            "SETFCAP",
            "SETGID",
            "SETUID",
            "SYS_ADMIN",
            "SYS_CHROOT",
            "SYS_MODULE",
            "SYS_PTRACE",
            "SYS_RAWIO",
            "SYS_RESOURCE",
        ];
        let all: Vec<_> = all.iter().map(|name| format!("CAP_{name}")).collect();
        for set in ["bounding", "effective", "permitted"] {
            self = self.set(&format!("/process/capabilities/{set}"), all.clone())?;
        }
        let mount = |kind: &str, destination: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": kind, "options": options });
        self.set("/linux/resources/devices", json!([{ "allow": true, "access": "rwm" }]))?
            .set(
                "/linux/namespaces",
                json!([{ "type": "ipc" }, { "type": "uts" }, { "type": "mount" }, { "type": "network" }]),
            )?
            .push("/mounts", mount("sysfs", "/sys", &["nosuid", "nodev", "noexec"]))?
            .push("/mounts", mount("tmpfs", "/tmp", &["mode=1777"]))
    }

    fn field(&mut self, pointer: &str) -> Result<&mut Value> {
        let mut at = &mut self.0;
        for name in pointer.split('/').skip(1) {
            at = match at {
                Value::Array(list) => name
                    .parse::<usize>()
                    .ok()
                    .and_then(|index| list.get_mut(index))
                    .ok_or_else(|| Error::unexpected(format!("{pointer}: there is no element {name}")))?,
                other => {
                    if other.is_null() {
                        *other = json!({});
                    }
                    &mut other[name]
                }
            };
        }
        Ok(at)
    }

    /// The directory of the host that is the container's root.
    pub fn root(&self) -> PathBuf {
        PathBuf::from(self.0["root"]["path"].as_str().unwrap_or_default())
    }

    pub(crate) fn text(&self) -> String {
        self.0.to_string()
    }
}
