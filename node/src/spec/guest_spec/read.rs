//! Reads config.json, and the `process` of an exec, as leniently as runc: unknown fields and null count as absent.
//!
//! It owns the difference between the JSON that runc accepts and the JSON that the types of the specification accept. It
//! knows nothing about the guest.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Capability, Spec};
use serde_json::{Value, json};

use super::Inherited;
use crate::host::settings;

/// Largest config.json that is read, in bytes. containerd's own are a few ten thousand.
const CONFIG_MAX: u64 = 16 << 20;

/// Why a specification cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what they are")]
pub enum ReadError {
    #[error("cannot read {}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot understand {what}")]
    Json {
        /// The file, or the process of an exec.
        what: String,
        #[source]
        source: serde_json::Error,
    },
}

/// The specification in a file, and what of it was left out: one sentence each.
///
/// # Errors
/// The file cannot be read, or is none.
pub fn read(path: &Path) -> Result<(Spec, Vec<String>), ReadError> {
    let mut text = Vec::new();
    let read = File::open(path).and_then(|file| file.take(CONFIG_MAX).read_to_end(&mut text));
    read.map_err(|source| ReadError::File {
        path: path.to_owned(),
        source,
    })?;
    parse(&text, &path.display().to_string())
}

fn parse(text: &[u8], what: &str) -> Result<(Spec, Vec<String>), ReadError> {
    let failed = |source| ReadError::Json {
        what: what.to_owned(),
        source,
    };
    let mut value: Value = serde_json::from_slice(text).map_err(failed)?;
    drop_nulls(&mut value);
    value.get_mut("linux").map(seccomp);
    let warnings = value.get_mut("process").map(process).unwrap_or_default();
    let spec = serde_json::from_value(value).map_err(failed)?;
    Ok((spec, warnings))
}

/// The `process` of an exec as the guest takes it, with what it has of its container's, and what of it was left out.
///
/// # Errors
/// It is no JSON.
pub fn read_exec(text: &[u8], container: &Inherited) -> Result<(Vec<u8>, Vec<String>), ReadError> {
    let failed = |source| ReadError::Json {
        what: "the process of the exec".to_owned(),
        source,
    };
    let mut value: Value = serde_json::from_slice(text).map_err(failed)?;
    drop_nulls(&mut value);
    container.add_to(&mut value);
    let mut warnings = process(&mut value);
    warnings.extend(super::process::leave_out(&mut value));
    Ok((serde_json::to_vec(&value).map_err(failed)?, warnings))
}

/// A field that is null is one that is not there, as for every program in Go.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn process(process: &mut Value) -> Vec<String> {
    let Some(fields) = process.as_object_mut() else {
        return Vec::new();
    };
    let user = fields.entry("user").or_insert_with(|| json!({}));
    if let Some(user) = user.as_object_mut() {
        user.entry("uid").or_insert(json!(0));
        user.entry("gid").or_insert(json!(0));
    }
    let rlimits = fields.entry("rlimits").or_insert_with(|| json!([]));
    if let Some(rlimits) = rlimits.as_array_mut() {
        inherit(rlimits, &settings::inherited_rlimits());
    }
    if let Some(flags) = process.pointer_mut("/scheduler/flags").and_then(Value::as_array_mut) {
        flags.iter_mut().for_each(scheduler_flag);
    }
    if let Some(cpus) = process.get_mut("execCPUAffinity").and_then(Value::as_object_mut) {
        // The types take no empty list, which asks for nothing.
        cpus.retain(|_, list| list != "");
    }
    let unknown = process.get_mut("capabilities").map(unknown_capabilities);
    let unknown = unknown.filter(|names| !names.is_empty());
    unknown
        .map(|names| format!("ignoring unknown or unavailable capabilities: [{}]", names.join(" ")))
        .into_iter()
        .collect()
}

/// A profile without a default action and without rules is none; a rule without names is about no call.
fn seccomp(linux: &mut Value) {
    let is_empty =
        |field: Option<&Value>| field.is_none_or(|field| field == "" || field.as_array().is_some_and(Vec::is_empty));
    let Some(fields) = linux.as_object_mut() else { return };
    let none = |profile: &Value| is_empty(profile.get("defaultAction")) && is_empty(profile.get("syscalls"));
    if fields.get("seccomp").is_some_and(none) {
        fields.remove("seccomp");
    }
    let rules = linux.pointer_mut("/seccomp/syscalls").and_then(Value::as_array_mut);
    for rule in rules.into_iter().flatten().filter_map(Value::as_object_mut) {
        rule.entry("names").or_insert_with(|| json!([]));
    }
}

/// Adds limits that a process inherits where it asks for none of the kind.
fn inherit(rlimits: &mut Vec<Value>, inherited: &[(&str, u64, u64)]) {
    for (kind, soft, hard) in inherited {
        if rlimits.iter().all(|given| given["type"] != *kind) {
            rlimits.push(json!({ "type": kind, "soft": soft, "hard": hard }));
        }
    }
}

/// The types' spelling of the flags that they spell otherwise than the specification.
fn scheduler_flag(flag: &mut Value) {
    let spelled = match flag.as_str() {
        Some("SCHED_FLAG_RESET_ON_FORK") => oci_spec::runtime::LinuxSchedulerFlag::SchedResetOnFork,
        Some("SCHED_FLAG_DL_OVERRUN") => oci_spec::runtime::LinuxSchedulerFlag::SchedFlagDLOverrun,
        _ => return,
    };
    // A flag without fields is always a text.
    if let Ok(spelled) = serde_json::to_value(spelled) {
        *flag = spelled;
    }
}

/// Removes from each set what is no capability, and names it once.
fn unknown_capabilities(sets: &mut Value) -> Vec<String> {
    let mut unknown = Vec::new();
    for set in sets.as_object_mut().into_iter().flat_map(|sets| sets.values_mut()) {
        let Some(names) = set.as_array_mut() else { continue };
        names.retain(|name| {
            let known = is_capability(name);
            if let (false, Some(name)) = (known, name.as_str()) {
                unknown.push(name.to_owned());
            }
            known
        });
    }
    unknown.sort_unstable();
    unknown.dedup();
    unknown
}

/// The types take a name without its prefix, too, which runc does not know.
fn is_capability(name: &Value) -> bool {
    let parsed: Result<Capability, _> = serde_json::from_value(name.clone());
    parsed.is_ok_and(|capability| serde_json::to_value(capability).is_ok_and(|spelled| spelled == *name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(process: &Value) -> (Spec, Vec<String>) {
        let spec = json!({ "ociVersion": "1.3.0", "process": process });
        parse(spec.to_string().as_bytes(), "config.json").unwrap()
    }

    #[test]
    fn a_capability_that_nobody_knows_is_left_out_with_a_warning() {
        let sets = json!({ "bounding": ["CAP_KILL", "CAP_NEW"], "permitted": ["CAP_NEW", "KILL", "cap_chown"] });
        let (spec, warnings) = parsed(&json!({ "cwd": "/", "capabilities": sets }));
        let sets = spec.process().clone().unwrap().capabilities().clone().unwrap();
        assert_eq!(sets.bounding().as_ref().unwrap().len(), 1);
        assert!(sets.permitted().as_ref().unwrap().is_empty());
        assert_eq!(
            warnings,
            ["ignoring unknown or unavailable capabilities: [CAP_NEW KILL cap_chown]"]
        );
    }

    #[test]
    fn a_profile_that_asks_for_nothing_is_none_and_a_rule_may_have_no_names() {
        let read = |seccomp: Value| {
            let spec = json!({ "ociVersion": "1.3.0", "linux": { "seccomp": seccomp } });
            let (spec, _) = parse(spec.to_string().as_bytes(), "config.json").unwrap();
            spec.linux().as_ref().unwrap().seccomp().clone()
        };
        assert!(read(json!({})).is_none() && read(json!({ "defaultAction": "", "syscalls": null })).is_none());
        let rules = json!([{ "action": "SCMP_ACT_ERRNO" }, { "names": null, "action": "SCMP_ACT_ERRNO" }]);
        let profile = read(json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules })).unwrap();
        assert!(profile.syscalls().iter().flatten().all(|rule| rule.names().is_empty()));
    }

    #[test]
    fn null_is_not_there_and_nobody_is_root() {
        let (spec, warnings) = parsed(&json!({ "cwd": "/", "user": null, "rlimits": null, "capabilities": null }));
        let process = spec.process().clone().unwrap();
        assert_eq!((process.user().uid(), process.user().gid()), (0, 0));
        assert!(process.capabilities().is_none() && warnings.is_empty());
    }

    #[test]
    fn a_limit_is_inherited_where_none_is_asked_for() {
        let mut rlimits = vec![json!({ "type": "RLIMIT_NPROC", "soft": 1, "hard": 2 })];
        inherit(
            &mut rlimits,
            &[("RLIMIT_NPROC", 7, 8), ("RLIMIT_SIGPENDING", 9, u64::MAX)],
        );
        assert_eq!(rlimits.len(), 2);
        assert_eq!(rlimits[0]["soft"], 1);
        assert_eq!(
            rlimits[1],
            json!({ "type": "RLIMIT_SIGPENDING", "soft": 9, "hard": u64::MAX })
        );
        let (spec, _) = parsed(&json!({ "cwd": "/" }));
        let rlimits = spec.process().clone().unwrap().rlimits().clone().unwrap();
        assert_eq!(rlimits.len(), settings::inherited_rlimits().len());
    }

    #[test]
    fn the_flags_of_the_specification_are_understood() {
        let flags = [
            "SCHED_FLAG_RESET_ON_FORK",
            "SCHED_FLAG_DL_OVERRUN",
            "SCHED_FLAG_RECLAIM",
        ];
        let scheduler = json!({ "policy": "SCHED_DEADLINE", "flags": flags });
        let (spec, _) = parsed(&json!({ "cwd": "/", "scheduler": scheduler }));
        let scheduler = spec.process().clone().unwrap().scheduler().clone().unwrap();
        assert_eq!(scheduler.flags().as_ref().unwrap().len(), 3);
    }

    #[test]
    fn an_exec_keeps_what_the_guest_uses() {
        let process =
            json!({ "args": ["a"], "cwd": "/", "capabilities": { "bounding": ["CAP_NEW"] }, "selinuxLabel": "a:b" });
        let (bytes, warnings) = read_exec(process.to_string().as_bytes(), &Inherited::default()).unwrap();
        let process: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(process["args"], json!(["a"]));
        assert!(process["selinuxLabel"].is_null());
        assert_eq!(warnings.len(), 2, "{warnings:?}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = (parse(&bytes, "x"), read_exec(&bytes, &Inherited::default()));
        }
    }

    /// What follows from a specification, too: sizes, annotations, memory that may be locked.
    #[test]
    fn fuzz_specification() {
        fuzz::run("specification", |bytes| {
            let _ = read_exec(bytes, &Inherited::default());
            let Ok((spec, _)) = parse(bytes, "config.json") else {
                return;
            };
            let mut config = config::Config::default();
            let annotations = spec.annotations().clone().unwrap_or_default();
            let _ = config::annotations::apply(&mut config, &annotations.into_iter().collect());
            let _ = crate::limits::sizing::Sizing::new(&config, &spec).boot();
            let policy = crate::limits::memlock::SandboxPolicy::new((&config).into(), spec.annotations().as_ref());
            drop(policy);
        });
    }
}
