//! How much memory a container's processes may lock: RLIMIT_MEMLOCK and CAP_IPC_LOCK of the first process and of every
//! exec.
//!
//! [`decide`] is the policy, and pure: it takes specification, configuration and annotations, and returns the limit and
//! the capability sets (docs/decisions/0007-locked-memory.md). The rest applies the result where a process is described.

mod annotations;
mod decision;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use config::{CapIpcLock, Config, Memlock, PerfEventKb};
use oci_spec::runtime::{LinuxCapabilities, PosixRlimit, Spec};
use protocol::diagnostics::MemlockPolicy;
use serde::de::DeserializeOwned;
use serde_json::Value;

pub use self::annotations::{Annotations, CAP_IPC_LOCK, MEMLOCK};
pub use self::decision::{Decision, Described, LimitFrom, decide};

/// The guest's sysctl for what each user may have of perf buffers on each CPU.
const PERF_EVENT_MLOCK_KB: &str = "kernel.perf_event_mlock_kb";

/// Why a process cannot have what is asked for. The text has the key, the value, and what is allowed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what they are")]
pub enum MemlockError {
    #[error("{asked} = \"{value}\" is not allowed: {key} is false")]
    NotAllowed {
        asked: String,
        /// Its value; the beginning of it if it is long.
        value: String,
        key: &'static str,
    },
    #[error("{asked} = \"{value}\": must be {allowed}")]
    Value {
        asked: String,
        /// Its value; the beginning of it if it is long.
        value: String,
        allowed: String,
    },
    /// A soft limit above the hard one.
    #[error("{asked} = {value}: the soft limit must be at most the hard one")]
    SoftAboveHard { asked: String, value: String },
    #[error(
        "{asked} = {value}: must be at most {max}, which is runtime.memlock.max (runtime.memlock.on_excess is deny)"
    )]
    AboveCeiling { asked: String, value: String, max: String },
    #[error("{field} of the process cannot be read")]
    Json {
        field: &'static str,
        #[source]
        source: serde_json::Error,
    },
}

/// What the configuration says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rules {
    /// `[runtime.memlock]`
    pub memlock: Memlock,
    /// `[runtime.cap_ipc_lock]`
    pub cap_ipc_lock: CapIpcLock,
}

impl From<&Config> for Rules {
    fn from(config: &Config) -> Self {
        Self {
            memlock: config.memlock.clone(),
            cap_ipc_lock: config.cap_ipc_lock.clone(),
        }
    }
}

impl Rules {
    /// The sysctls of the guest as a whole. The kernel's own value is not set, so that a kernel without perf boots too.
    #[must_use]
    pub fn sysctls(&self) -> HashMap<String, String> {
        let kb = self.memlock.perf_event_mlock_kb;
        let wanted = (kb != PerfEventKb::KERNEL_DEFAULT).then(|| (PERF_EVENT_MLOCK_KB.to_owned(), kb.to_string()));
        wanted.into_iter().collect()
    }
}

/// The policy of one sandbox: what holds for all of its containers.
#[derive(Debug, Clone, Default)]
pub struct SandboxPolicy {
    rules: Arc<Rules>,
    pod: Annotations,
}

impl SandboxPolicy {
    /// `annotations` are those of the sandbox's first container, which are the pod's.
    #[must_use]
    pub fn new(rules: Rules, annotations: Option<&HashMap<String, String>>) -> Self {
        Self {
            rules: Arc::new(rules),
            pod: Annotations::of(annotations),
        }
    }

    /// What the configuration says.
    #[must_use]
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The policy of the sandbox's own container: its annotations are the pod's, and count once.
    #[must_use]
    pub fn of_first(&self) -> ContainerPolicy {
        let Self { rules, pod } = self.clone();
        ContainerPolicy {
            container: pod,
            sandbox: Self {
                rules,
                pod: Annotations::default(),
            },
            limit_from: LimitFrom::default(),
        }
    }

    /// The policy of a container with these annotations.
    #[must_use]
    pub fn of_container(&self, annotations: Option<&HashMap<String, String>>) -> ContainerPolicy {
        ContainerPolicy {
            sandbox: self.clone(),
            container: Annotations::of(annotations),
            limit_from: LimitFrom::default(),
        }
    }
}

/// The policy of one container, for its first process and for every exec.
#[derive(Debug, Clone, Default)]
pub struct ContainerPolicy {
    sandbox: SandboxPolicy,
    container: Annotations,
    /// Of the first process.
    limit_from: LimitFrom,
}

impl ContainerPolicy {
    /// What decides about the container, for whoever has to name the key that would help.
    #[must_use]
    pub fn to_message(&self) -> MemlockPolicy {
        let Rules { memlock, cap_ipc_lock } = self.sandbox.rules();
        let written = |annotations: &Annotations| annotations.cap_ipc_lock.clone().unwrap_or_default();
        MemlockPolicy {
            default_bytes: memlock.default.as_rlimit(),
            max_bytes: memlock.max.as_rlimit(),
            memlock_annotation: memlock.allow_annotation,
            cap_ipc_lock: cap_ipc_lock.policy.to_string(),
            cap_ipc_lock_annotation: cap_ipc_lock.allow_annotation,
            limit_from: self.limit_from.as_str().to_owned(),
            container_cap_ipc_lock: written(&self.container),
            pod_cap_ipc_lock: written(&self.sandbox.pod),
            ..Default::default()
        }
    }

    fn decide(
        &self,
        rlimits: &[PosixRlimit],
        capabilities: Option<&LinuxCapabilities>,
    ) -> Result<Decision, MemlockError> {
        let process = Described { rlimits, capabilities };
        decide(process, self.sandbox.rules(), &self.container, &self.sandbox.pod)
    }

    /// Changes the specification of a container's first process. The answer is what there is to say about it.
    ///
    /// # Errors
    /// It, an annotation or the configuration asks for what is not allowed; nothing is changed then.
    pub fn apply(&mut self, spec: &mut Spec) -> Result<Vec<String>, MemlockError> {
        let Some(mut process) = spec.process().clone() else {
            return Ok(Vec::new());
        };
        let mut rlimits = process.rlimits().clone().unwrap_or_default();
        let decision = self.decide(&rlimits, process.capabilities().as_ref())?;
        self.limit_from = decision.from;
        decision.limit(&mut rlimits);
        process.set_rlimits(Some(rlimits));
        process.set_capabilities(decision.capabilities);
        spec.set_process(Some(process));
        Ok(decision.notes)
    }

    /// The OCI `process` object of an exec, as JSON, with the limit and the capabilities that it gets. What this program
    /// does not know of it stays as it is.
    ///
    /// # Errors
    /// It, an annotation or the configuration asks for what is not allowed.
    pub fn apply_to_exec(&self, process: &[u8]) -> Result<(Vec<u8>, Vec<String>), MemlockError> {
        let in_field = |field| move |source| MemlockError::Json { field, source };
        let mut object: BTreeMap<String, Value> =
            serde_json::from_slice(process).map_err(in_field("the specification"))?;
        let mut rlimits: Vec<PosixRlimit> = field(&object, "rlimits")?.unwrap_or_default();
        let capabilities = field(&object, "capabilities")?;
        let decision = self.decide(&rlimits, capabilities.as_ref())?;
        decision.limit(&mut rlimits);
        let rlimits = serde_json::to_value(rlimits).map_err(in_field("rlimits"))?;
        object.insert("rlimits".to_owned(), rlimits);
        if let Some(capabilities) = decision.capabilities {
            let capabilities = serde_json::to_value(capabilities).map_err(in_field("capabilities"))?;
            object.insert("capabilities".to_owned(), capabilities);
        }
        let json = serde_json::to_vec(&object).map_err(in_field("the specification"))?;
        Ok((json, decision.notes))
    }
}

fn field<T: DeserializeOwned>(object: &BTreeMap<String, Value>, name: &'static str) -> Result<Option<T>, MemlockError> {
    let value = object.get(name).filter(|value| !value.is_null()).cloned();
    let parsed = value.map(serde_json::from_value).transpose();
    parsed.map_err(|source| MemlockError::Json { field: name, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn policy(annotations: &[(&str, &str)]) -> ContainerPolicy {
        let annotations = annotations
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        SandboxPolicy::default().of_container(Some(&annotations))
    }

    #[test]
    fn an_exec_keeps_what_is_not_understood_and_gets_limit_and_capability() {
        let process = json!({
            "args": ["sh"], "new": {"field": 1}, "capabilities": {"bounding": ["CAP_CHOWN"]},
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2}],
        });
        let policy = policy(&[(MEMLOCK, "1MiB:2MiB"), (CAP_IPC_LOCK, "ambient")]);
        let (json, _) = policy.apply_to_exec(process.to_string().as_bytes()).unwrap();
        let exec: Value = serde_json::from_slice(&json).unwrap();
        assert_eq!((&exec["args"], &exec["new"]), (&json!(["sh"]), &json!({"field": 1})));
        assert_eq!(
            exec["rlimits"],
            json!([
                {"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2},
                {"type": "RLIMIT_MEMLOCK", "soft": 1_048_576, "hard": 2_097_152},
            ])
        );
        assert_eq!(exec["capabilities"]["ambient"], json!(["CAP_IPC_LOCK"]));
        assert_eq!(exec["capabilities"]["bounding"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn an_exec_that_cannot_be_read_is_refused() {
        for text in [
            "",
            "[]",
            r#"{"rlimits": 3}"#,
            r#"{"capabilities": {"bounding": ["CAP_NONE"]}}"#,
        ] {
            assert!(policy(&[]).apply_to_exec(text.as_bytes()).is_err(), "{text}");
        }
        let (json, _) = policy(&[]).apply_to_exec(b"{\"rlimits\": null}").unwrap();
        assert!(String::from_utf8(json).unwrap().contains("RLIMIT_MEMLOCK"));
    }

    #[test]
    fn the_sysctl_is_set_where_it_is_not_the_kernels_own() {
        let mut rules = Rules::default();
        assert!(rules.sysctls().is_empty());
        rules.memlock.perf_event_mlock_kb = PerfEventKb::new(0).unwrap();
        assert_eq!(
            rules.sysctls(),
            HashMap::from([("kernel.perf_event_mlock_kb".to_owned(), "0".to_owned())])
        );
    }

    #[test]
    fn what_decides_is_told_and_the_sandboxs_own_annotations_once() {
        let written = HashMap::from([(CAP_IPC_LOCK.to_owned(), "drop".to_owned())]);
        let sandbox = SandboxPolicy::new(Rules::default(), Some(&written));
        let said = |policy: &ContainerPolicy| {
            let message = policy.to_message();
            (message.container_cap_ipc_lock, message.pod_cap_ipc_lock)
        };
        assert_eq!(said(&sandbox.of_first()), ("drop".to_owned(), String::new()));
        assert_eq!(said(&sandbox.of_container(None)), (String::new(), "drop".to_owned()));

        let limit = HashMap::from([(MEMLOCK.to_owned(), "1MiB".to_owned())]);
        let given = json!([{ "type": "RLIMIT_MEMLOCK", "soft": 1, "hard": 1 }]);
        let (pod, none) = (
            SandboxPolicy::new(Rules::default(), Some(&limit)),
            SandboxPolicy::default(),
        );
        for (mut policy, rlimits, from) in [
            (pod.of_container(Some(&limit)), given, "specification"),
            (pod.of_container(Some(&limit)), json!([]), "container"),
            (pod.of_first(), json!([]), "container"),
            (pod.of_container(None), json!([]), "pod"),
            (none.of_container(None), json!([]), "configuration"),
        ] {
            let process = json!({ "cwd": "/", "user": { "uid": 0, "gid": 0 }, "rlimits": rlimits });
            let spec = json!({ "ociVersion": "1.0.2", "process": process });
            policy.apply(&mut serde_json::from_value(spec).unwrap()).unwrap();
            assert_eq!(policy.to_message().limit_from, from);
        }
    }

    #[test]
    fn a_pods_annotation_holds_for_its_containers_unless_they_have_their_own() {
        let pod = HashMap::from([(MEMLOCK.to_owned(), "1MiB".to_owned())]);
        let sandbox = SandboxPolicy::new(Rules::default(), Some(&pod));
        let own = HashMap::from([(MEMLOCK.to_owned(), "2MiB".to_owned())]);
        for (annotations, bytes) in [(None, 1 << 20), (Some(&own), 2 << 20)] {
            let decision = sandbox.of_container(annotations).decide(&[], None).unwrap();
            assert_eq!(decision.soft.as_rlimit(), bytes);
        }
    }
}
