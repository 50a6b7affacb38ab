//! The output of `-info`: the features structure of the OCI runtime specification (features.md). CRI uses it to offer
//! recursive read-only mounts and user namespaces.
//!
//! It describes what a guest supports, whatever the host is. It knows no sandbox.

use protobuf::well_known_types::any::Any;
use serde_json::{Value, json};

/// The name under which containerd registers the structure, whose value is JSON (containerd's typeurl).
const TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// The versions of the specification that a config.json may be of.
const VERSIONS: [&str; 2] = ["1.0.0", "1.3.0"];

/// Those that are run: all that there are.
const HOOKS: [&str; 6] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

/// NOTIFY is not among them: its listener would be on the host.
const ACTIONS: [&str; 8] = [
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_LOG",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_TRAP",
];

const OPERATORS: [&str; 7] = [
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_LE",
    "SCMP_CMP_LT",
    "SCMP_CMP_MASKED_EQ",
    "SCMP_CMP_NE",
];

/// All that Linux has, by number (include/uapi/linux/capability.h).
const CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// The structure as containerd reads it.
///
/// # Errors
/// It cannot be written as JSON.
pub fn features() -> Result<Any, serde_json::Error> {
    Ok(Any {
        type_url: TYPE.to_owned(),
        value: serde_json::to_vec(&structure())?,
        ..Any::default()
    })
}

/// Mount options that the host carries out.
const OF_THE_HOST: [&str; 2] = ["idmap", "ridmap"];

fn structure() -> Value {
    let [oldest, newest] = VERSIONS;
    let mut options = [&OF_THE_HOST[..], &protocol::MOUNT_OPTIONS[..]].concat();
    options.sort_unstable();
    json!({
        "ociVersionMin": oldest,
        "ociVersionMax": newest,
        "hooks": HOOKS,
        "mountOptions": options,
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": &CAPABILITIES[..],
            // On the host, where the sandbox's cgroup is.
            "cgroup": { "v1": true, "v2": true, "systemd": true, "systemdUser": false, "rdma": false },
            "seccomp": {
                "enabled": true,
                "actions": ACTIONS,
                "operators": OPERATORS,
                "archs": ["SCMP_ARCH_X86", "SCMP_ARCH_X86_64", "SCMP_ARCH_X32"],
                "knownFlags": [
                    "SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
                    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
                ],
                "supportedFlags": [
                    "SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
                ],
            },
            "apparmor": { "enabled": false },
            "selinux": { "enabled": false },
            "intelRdt": { "enabled": false },
            "mountExtensions": { "idmap": { "enabled": true } },
            "netDevices": { "enabled": false },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::Features;

    #[test]
    fn the_types_of_the_specification_read_it() {
        let any = features().unwrap();
        let features: Features = serde_json::from_slice(&any.value).unwrap();
        assert!(features.mount_options().as_ref().unwrap().contains(&"rro".to_owned()));
        let linux = features.linux().clone().unwrap();
        assert_eq!(linux.namespaces().as_ref().unwrap().len(), 8);
        for capability in CAPABILITIES {
            let name = json!(capability);
            assert!(
                serde_json::from_value::<oci_spec::runtime::Capability>(name).is_ok(),
                "{capability}"
            );
        }
        let hooks = features.hooks().clone().unwrap();
        assert_eq!(hooks.len(), 6, "{hooks:?}");
    }
}
