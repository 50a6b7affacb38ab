//! What an exec has of its container's process where its own `process` lacks it, as with runc (libcontainer's `newInitConfig`). Limits
//! are not among it.

use oci_spec::runtime::Spec;
use serde_json::{Map, Value, json};

/// Fields that an exec may have itself.
const WHERE_LACKING: [&str; 4] = ["capabilities", "scheduler", "ioPriority", "execCPUAffinity"];

/// It is the container's, whatever the exec says.
const ALWAYS: &str = "oomScoreAdj";

/// The fields of a container's `process` that its execs inherit.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Inherited {
    fields: Map<String, Value>,
    /// `process.user.umask`
    umask: Option<Value>,
}

impl Inherited {
    /// Of a specification as it was read, before anything of it was made the guest's.
    #[must_use]
    pub fn of(spec: &Spec) -> Self {
        let Ok(Value::Object(mut fields)) = serde_json::to_value(spec.process()) else {
            return Self::default();
        };
        let umask = fields.get("user").and_then(|user| user.get("umask")).cloned();
        fields.retain(|name, _| name == ALWAYS || WHERE_LACKING.contains(&name.as_str()));
        Self { fields, umask }
    }

    /// Adds them to the `process` of an exec.
    pub(super) fn add_to(&self, process: &mut Value) {
        let Some(fields) = process.as_object_mut() else {
            return;
        };
        fields.remove(ALWAYS);
        for (name, value) in &self.fields {
            fields.entry(name).or_insert_with(|| value.clone());
        }
        if let Some(umask) = &self.umask
            && let Some(user) = fields.entry("user").or_insert_with(|| json!({})).as_object_mut()
        {
            user.entry("umask").or_insert_with(|| umask.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(process: Value) -> Value {
        let own = json!({
            "cwd": "/", "args": ["a"], "user": {"uid": 7, "gid": 7, "umask": 23}, "env": ["A=b"], "noNewPrivileges": true,
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 3, "hard": 4}], "capabilities": {"bounding": ["CAP_KILL"]},
            "scheduler": {"policy": "SCHED_BATCH"}, "ioPriority": {"class": "IOPRIO_CLASS_IDLE", "priority": 0},
            "oomScoreAdj": 333,
        });
        let spec = json!({ "ociVersion": "1.0.2", "process": own });
        let mut process = process;
        Inherited::of(&serde_json::from_value(spec).unwrap()).add_to(&mut process);
        process
    }

    #[test]
    fn what_an_exec_lacks_is_its_containers() {
        let process = with(json!({ "args": ["x"], "cwd": "/" }));
        assert_eq!(process["capabilities"]["bounding"], json!(["CAP_KILL"]));
        assert_eq!(process["scheduler"]["policy"], "SCHED_BATCH");
        assert_eq!(process["ioPriority"]["class"], "IOPRIO_CLASS_IDLE");
        assert_eq!(
            (&process["oomScoreAdj"], &process["user"]),
            (&json!(333), &json!({"umask": 23}))
        );
        for own in ["env", "noNewPrivileges", "rlimits"] {
            assert!(process[own].is_null(), "{own}");
        }
    }

    #[test]
    fn what_an_exec_has_is_its_own_but_for_its_score() {
        let process = with(json!({ "user": {"umask": 7}, "capabilities": {}, "oomScoreAdj": -5 }));
        assert_eq!(
            (&process["user"]["umask"], &process["capabilities"]),
            (&json!(7), &json!({}))
        );
        assert_eq!(process["oomScoreAdj"], 333);
    }
}
