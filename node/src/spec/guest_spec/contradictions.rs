//! Refuses specifications that contradict themselves, before anything is created, for the same reasons as runc
//! (libcontainer/configs/validate and specconv).
//!
//! Pure: it reads only the specification.

use std::path::{Component, Path};

use oci_spec::runtime::{
    Linux, LinuxIOPriority, LinuxNamespaceType, LinuxSchedulerPolicy, LinuxSeccompAction, Mount, Process, Scheduler,
    Spec,
};

use super::error::GuestSpecError;

/// Looks for what cannot be meant.
///
/// # Errors
/// The first contradiction.
pub(super) fn check(spec: &Spec) -> Result<(), GuestSpecError> {
    spec.process().as_ref().map_or(Ok(()), check_process)?;
    let Some(linux) = spec.linux() else { return Ok(()) };
    check_namespaces(linux)?;
    if !has(linux, LinuxNamespaceType::Uts) {
        for (field, name) in [("hostname", spec.hostname()), ("domainname", spec.domainname())] {
            if name.as_ref().is_some_and(|name| !name.is_empty()) {
                return Err(refused(field, "it needs a UTS namespace of the container's own"));
            }
        }
    }
    check_sysctls(linux)?;
    check_propagation(linux)?;
    spec.mounts().iter().flatten().try_for_each(check_mount)
}

fn refused(field: &'static str, reason: impl Into<String>) -> GuestSpecError {
    GuestSpecError::Field {
        field,
        reason: reason.into(),
    }
}

fn check_process(process: &Process) -> Result<(), GuestSpecError> {
    let cwd = process.cwd();
    if cwd.as_os_str().is_empty() {
        return Err(refused("process.cwd", "it must not be empty"));
    }
    if !cwd.is_absolute() {
        return Err(refused(
            "process.cwd",
            format!("{} is not an absolute path", cwd.display()),
        ));
    }
    if process.args().iter().flatten().next().is_none() {
        return Err(refused("process.args", "it must not be empty"));
    }
    process.scheduler().as_ref().map_or(Ok(()), check_scheduler)?;
    process.io_priority().as_ref().map_or(Ok(()), check_io_priority)
}

fn check_scheduler(scheduler: &Scheduler) -> Result<(), GuestSpecError> {
    use LinuxSchedulerPolicy as Policy;
    let refuse = |reason: String| Err(refused("process.scheduler", reason));
    let nice = scheduler.nice().unwrap_or(0);
    if !(-20..=19).contains(&nice) {
        return refuse(format!("nice {nice} is not between -20 and 19"));
    }
    let priority = scheduler.priority().unwrap_or(0);
    if priority < 0 {
        return refuse(format!("priority {priority} is less than 0"));
    }
    if priority != 0 && !matches!(scheduler.policy(), Policy::SchedFifo | Policy::SchedRr) {
        return refuse("priority is only for SCHED_FIFO and SCHED_RR".to_owned());
    }
    let times = [scheduler.runtime(), scheduler.deadline(), scheduler.period()];
    let timed = times.iter().any(|time| time.is_some_and(|time| time != 0));
    if timed && *scheduler.policy() != Policy::SchedDeadline {
        return refuse("runtime, deadline and period are only for SCHED_DEADLINE".to_owned());
    }
    Ok(())
}

fn check_io_priority(wanted: &LinuxIOPriority) -> Result<(), GuestSpecError> {
    let priority = wanted.priority();
    if !(0..8).contains(&priority) {
        let reason = format!("priority {priority} is not between 0 and 7");
        return Err(refused("process.ioPriority", reason));
    }
    Ok(())
}

/// Nobody would answer: the listener is a socket of the host, the process is in the guest.
pub(super) fn check_seccomp(linux: &Linux) -> Result<(), GuestSpecError> {
    let Some(seccomp) = linux.seccomp() else {
        return Ok(());
    };
    let rules = seccomp.syscalls().iter().flatten().map(|rule| rule.action());
    let mut actions = rules.chain([seccomp.default_action()]);
    if actions.any(|action| action == LinuxSeccompAction::ScmpActNotify) {
        let reason = "SCMP_ACT_NOTIFY needs a listener, which is not supported: its socket is on the host, the process in the guest";
        return Err(refused("linux.seccomp", reason));
    }
    Ok(())
}

/// The types of propagation (mount_namespaces(7)); none is asked for by an empty text.
const PROPAGATIONS: [&str; 9] = [
    "",
    "private",
    "rprivate",
    "shared",
    "rshared",
    "slave",
    "rslave",
    "unbindable",
    "runbindable",
];

fn check_propagation(linux: &Linux) -> Result<(), GuestSpecError> {
    match linux.rootfs_propagation() {
        Some(wanted) if !PROPAGATIONS.contains(&wanted.as_str()) => {
            Err(refused("linux.rootfsPropagation", format!("{wanted:?} is not known")))
        }
        _ => Ok(()),
    }
}

fn has(linux: &Linux, kind: LinuxNamespaceType) -> bool {
    linux.namespaces().iter().flatten().any(|listed| listed.typ() == kind)
}

fn check_namespaces(linux: &Linux) -> Result<(), GuestSpecError> {
    let listed: Vec<_> = linux.namespaces().iter().flatten().map(|one| one.typ()).collect();
    for (at, kind) in listed.iter().enumerate() {
        if listed[..at].contains(kind) {
            return Err(refused("linux.namespaces", format!("{kind} is there twice")));
        }
    }
    let maps = [linux.uid_mappings(), linux.gid_mappings()];
    if maps.into_iter().flatten().any(|map| !map.is_empty()) && !has(linux, LinuxNamespaceType::User) {
        return Err(refused(
            "linux.uidMappings and gidMappings",
            "they need a user namespace, which is not among linux.namespaces",
        ));
    }
    let offsets = linux.time_offsets().as_ref().is_some_and(|offsets| !offsets.is_empty());
    if offsets && !has(linux, LinuxNamespaceType::Time) {
        return Err(refused(
            "linux.timeOffsets",
            "they need a time namespace, which is not among linux.namespaces",
        ));
    }
    Ok(())
}

fn check_sysctls(linux: &Linux) -> Result<(), GuestSpecError> {
    let mut names = linux.sysctl().iter().flatten().map(|(name, _)| name.replace('/', "."));
    if names.any(|name| name == "kernel.hostname") {
        return Err(refused(
            "linux.sysctl",
            "kernel.hostname conflicts with the field hostname",
        ));
    }
    Ok(())
}

/// A mount over the whole root hides everything that is mounted before, and the program.
fn check_mount(mount: &Mount) -> Result<(), GuestSpecError> {
    if is_root(mount.destination()) {
        return Err(GuestSpecError::Mount {
            destination: mount.destination().clone(),
            reason: "nothing can be mounted on the container's root".to_owned(),
        });
    }
    Ok(())
}

/// Whether a path, cleaned as runc cleans it, is the root.
fn is_root(path: &Path) -> bool {
    let depth = path.components().fold(0_usize, |depth, part| match part {
        Component::Normal(_) => depth + 1,
        Component::ParentDir => depth.saturating_sub(1),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => depth,
    });
    depth == 0
}

#[cfg(test)]
mod tests {
    use super::super::tests::translate;
    use serde_json::{Value, json};

    fn refusal(change: Value) -> String {
        translate(change, "me").unwrap_err().to_string()
    }

    #[test]
    fn what_contradicts_itself_is_refused_by_its_field() {
        let namespaces = |extra: Value| json!([{"type": "pid"}, {"type": "mount"}, extra]);
        let linux = |linux: Value| json!({ "linux": linux });
        let process =
            |cwd: &str, args: Value| json!({ "process": { "cwd": cwd, "args": args, "user": {"uid": 0, "gid": 0} } });
        let with = |mut fields: Value| {
            let mut process = json!({ "cwd": "/", "args": ["a"], "user": {"uid": 0, "gid": 0} });
            process.as_object_mut().unwrap().append(fields.as_object_mut().unwrap());
            json!({ "process": process })
        };
        for (change, named) in [
            (
                linux(json!({"namespaces": namespaces(json!({"type": "pid"}))})),
                "linux.namespaces",
            ),
            (
                linux(json!({"uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}]})),
                "linux.uidMappings",
            ),
            (
                linux(json!({"gidMappings": [{"containerID": 0, "hostID": 1, "size": 1}]})),
                "gidMappings",
            ),
            (
                linux(json!({"timeOffsets": {"monotonic": {"secs": 1}}})),
                "linux.timeOffsets",
            ),
            (linux(json!({"sysctl": {"kernel/hostname": "x"}})), "kernel.hostname"),
            (json!({"hostname": "a"}), "hostname"),
            (json!({"domainname": "a"}), "domainname"),
            (process("tmp", json!(["a"])), "process.cwd"),
            (process("", json!(["a"])), "process.cwd"),
            (process("/", json!([])), "process.args"),
            (
                with(json!({"scheduler": {"policy": "SCHED_OTHER", "nice": 20}})),
                "process.scheduler: nice 20",
            ),
            (
                with(json!({"scheduler": {"policy": "SCHED_BATCH", "priority": 1}})),
                "process.scheduler: priority",
            ),
            (
                with(json!({"scheduler": {"policy": "SCHED_FIFO", "priority": -1}})),
                "process.scheduler: priority -1",
            ),
            (
                with(json!({"scheduler": {"policy": "SCHED_OTHER", "runtime": 1}})),
                "process.scheduler: runtime",
            ),
            (
                with(json!({"ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 8}})),
                "process.ioPriority: priority 8",
            ),
            (linux(json!({"rootfsPropagation": "lone"})), "linux.rootfsPropagation"),
            (
                linux(json!({"seccomp": {"defaultAction": "SCMP_ACT_NOTIFY"}})),
                "linux.seccomp: SCMP_ACT_NOTIFY",
            ),
            (
                linux(json!({"seccomp": {"defaultAction": "SCMP_ACT_ALLOW",
                    "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]}})),
                "linux.seccomp: SCMP_ACT_NOTIFY",
            ),
            (json!({"mounts": [{"destination": "/", "type": "tmpfs"}]}), "/"),
            (
                json!({"mounts": [{"destination": "/x/../.", "type": "bind", "source": "/tmp"}]}),
                "/x/../.",
            ),
        ] {
            let said = refusal(change);
            assert!(said.contains(named), "{named}: {said}");
        }
    }

    #[test]
    fn what_has_its_namespace_is_taken() {
        let namespaces = json!([{"type": "uts"}, {"type": "user"}, {"type": "time"}]);
        let maps = json!([{"containerID": 0, "hostID": 1, "size": 1}]);
        let linux = json!({
            "namespaces": namespaces, "uidMappings": maps, "gidMappings": maps, "timeOffsets": {"monotonic": {"secs": 1}},
            "rootfsPropagation": "", "seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/nobody"}
        });
        translate(json!({ "hostname": "a", "domainname": "b", "linux": linux }), "me").unwrap();
    }
}
