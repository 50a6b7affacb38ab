//! Smaller attributes of a process: OOM score, personality, scheduling, I/O priority, keyring, standard streams.

use std::{
    ffi::CString,
    fs::File,
    os::fd::{AsFd, OwnedFd},
};

use oci_spec::runtime::{
    IOPriorityClass, LinuxIOPriority, LinuxPersonality, LinuxPersonalityDomain, LinuxSchedulerFlag,
    LinuxSchedulerPolicy, Process, Scheduler,
};
use rustix::process::Uid;

use super::{
    fault::{Context, Fault, Result},
    request::Stdio,
    sys,
};

/// How the kernel rates the process when memory runs out (proc_pid_oom_score_adj(5)); 0 unless the specification says
/// otherwise, so that the agent's own does not pass on. Must come before a user namespace.
pub(super) fn set_oom_score(process: &Process) -> Result<()> {
    let score = process.oom_score_adj().unwrap_or(0);
    std::fs::write("/proc/self/oom_score_adj", score.to_string())
        .or_refuse(|| format!("cannot set oomScoreAdj to {score}"))
}

/// personality(2).
pub(super) fn set_personality(wanted: Option<&LinuxPersonality>) -> Result<()> {
    let Some(wanted) = wanted else { return Ok(()) };
    // Flags are not defined by the specification, and the shim warns of them, as runc does.
    // PER_LINUX and PER_LINUX32 of linux/personality.h.
    let domain = match wanted.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => 8,
    };
    sys::personality(domain).or_refuse(|| "cannot set the personality")
}

/// ioprio_set(2).
pub(super) fn set_io_priority(wanted: Option<&LinuxIOPriority>) -> Result<()> {
    const CLASS_SHIFT: libc::c_int = 13;
    let Some(wanted) = wanted else { return Ok(()) };
    let class = match wanted.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    let level = i32::try_from(wanted.priority())
        .ok()
        .filter(|level| (0..8).contains(level))
        .ok_or_else(|| Fault::Refused(format!("ioPriority {} is not between 0 and 7", wanted.priority())))?;
    sys::set_io_priority((class << CLASS_SHIFT) | level).or_refuse(|| "cannot set ioPriority")
}

/// sched_setattr(2), with the combinations that runc refuses. A policy that needs real time is refused by the kernel where it
/// cannot be had.
pub(super) fn set_scheduler(wanted: Option<&Scheduler>) -> Result<()> {
    let Some(wanted) = wanted else { return Ok(()) };
    sys::set_scheduler(&scheduler_attributes(wanted)?)
        .or_refuse(|| format!("cannot set the scheduler {}", wanted.policy()))
}

fn scheduler_attributes(wanted: &Scheduler) -> Result<libc::sched_attr> {
    use LinuxSchedulerPolicy as Policy;
    let refuse = |what: &str| Err(Fault::Refused(format!("process.scheduler: {what}")));
    let nice = wanted.nice().unwrap_or(0);
    if !(-20..=19).contains(&nice) {
        return refuse(&format!("nice {nice} is not between -20 and 19"));
    }
    let priority = wanted.priority().unwrap_or(0);
    let Ok(sched_priority) = u32::try_from(priority) else {
        return refuse(&format!("priority {priority} is less than 0"));
    };
    if priority != 0 && !matches!(wanted.policy(), Policy::SchedFifo | Policy::SchedRr) {
        return refuse("priority is only for SCHED_FIFO and SCHED_RR");
    }
    let times = [wanted.runtime(), wanted.deadline(), wanted.period()].map(|time| time.unwrap_or(0));
    if times != [0; 3] && *wanted.policy() != Policy::SchedDeadline {
        return refuse("runtime, deadline and period are only for SCHED_DEADLINE");
    }
    let flags = wanted
        .flags()
        .iter()
        .flatten()
        .fold(0, |flags, flag| flags | scheduler_flag(*flag));
    Ok(libc::sched_attr {
        size: u32::try_from(size_of::<libc::sched_attr>()).unwrap_or(u32::MAX),
        // Numbers of linux/sched.h.
        sched_policy: match wanted.policy() {
            Policy::SchedOther => 0,
            Policy::SchedFifo => 1,
            Policy::SchedRr => 2,
            Policy::SchedBatch => 3,
            Policy::SchedIso => 4,
            Policy::SchedIdle => 5,
            Policy::SchedDeadline => 6,
        },
        sched_flags: flags,
        sched_nice: nice,
        sched_priority,
        sched_runtime: times[0],
        sched_deadline: times[1],
        sched_period: times[2],
    })
}

/// SCHED_FLAG_* of linux/sched.h.
fn scheduler_flag(flag: LinuxSchedulerFlag) -> u64 {
    match flag {
        LinuxSchedulerFlag::SchedResetOnFork => 0x01,
        LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
        LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
        LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
        LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
        LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
        LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
    }
}

/// A session keyring of the container's own (keyrings(7)), named as runc names it. A kernel may lack keyrings.
pub(super) fn join_keyring(id: &str) -> Result<()> {
    /// The user may search it: without this a process that changed its user could not.
    const ALL_OF_POSSESSOR_AND_USER_SEARCH: u32 = 0x3f08_0000;
    let name = CString::new(format!("_ses.{id}")).map_err(|why| Fault::refused("the container's id", why))?;
    match sys::join_session_keyring(&name) {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        joined => {
            let serial = joined.or_fail(|| "cannot join the container's session keyring")?;
            // A keyring that another user of the container made stays as that one set it.
            match sys::set_key_permissions(serial, ALL_OF_POSSESSOR_AND_USER_SEARCH) {
                Err(error) if error.raw_os_error() == Some(libc::EACCES) => Ok(()),
                set => set.or_fail(|| "cannot set the permissions of the session keyring"),
            }
        }
    }
}

/// The standard streams at hand, /dev/null of the guest where there is none.
pub(super) fn streams(stdio: &Stdio, null: &File) -> Result<[OwnedFd; 3]> {
    let copy = |stream: Option<&OwnedFd>| {
        stream
            .map_or(null.as_fd(), AsFd::as_fd)
            .try_clone_to_owned()
            .or_fail(|| "cannot copy a standard stream")
    };
    match stdio {
        Stdio::Pipes { stdin, stdout, stderr } => {
            Ok([copy(stdin.as_ref())?, copy(stdout.as_ref())?, copy(stderr.as_ref())?])
        }
        Stdio::Terminal => Ok([copy(None)?, copy(None)?, copy(None)?]),
    }
}

/// Gives the streams to the user, who may want to open /dev/stdout again. What cannot be given stays as it is.
pub(super) fn give_streams(streams: &[OwnedFd; 3], uid: u32) {
    for stream in streams {
        let is_null = rustix::fs::fstat(stream)
            .is_ok_and(|stat| (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)) == (1, 3));
        if !is_null {
            // A descriptor on a file system of somebody else's cannot be given away, and need not be; as with runc.
            let _ = rustix::fs::fchown(stream, Some(Uid::from_raw(uid)), None);
        }
    }
}

/// Puts the streams where a program expects them.
pub(super) fn place_streams(streams: &[OwnedFd; 3]) -> Result<()> {
    nix::unistd::dup2_stdin(&streams[0])
        .and_then(|()| nix::unistd::dup2_stdout(&streams[1]))
        .and_then(|()| nix::unistd::dup2_stderr(&streams[2]))
        .or_fail(|| "cannot place the standard streams")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scheduler(json: &str) -> Result<(u32, i32, u32, u64)> {
        let attributes = scheduler_attributes(&serde_json::from_str(json).unwrap())?;
        Ok((
            attributes.sched_policy,
            attributes.sched_nice,
            attributes.sched_priority,
            attributes.sched_flags,
        ))
    }

    #[test]
    fn a_scheduler_has_the_kernels_numbers() {
        assert_eq!(scheduler(r#"{"policy":"SCHED_BATCH","nice":5}"#).unwrap(), (3, 5, 0, 0));
        assert_eq!(
            scheduler(r#"{"policy":"SCHED_FIFO","priority":9}"#).unwrap(),
            (1, 0, 9, 0)
        );
        let reset = r#"{"policy":"SCHED_IDLE","flags":["SCHED_RESET_ON_FORK"]}"#;
        assert_eq!(scheduler(reset).unwrap(), (5, 0, 0, 1));
    }

    #[test]
    fn what_contradicts_itself_is_refused_as_runc_does() {
        for json in [
            r#"{"policy":"SCHED_OTHER","nice":20}"#,
            r#"{"policy":"SCHED_BATCH","priority":1}"#,
            r#"{"policy":"SCHED_FIFO","priority":-1}"#,
            r#"{"policy":"SCHED_OTHER","runtime":1}"#,
        ] {
            assert!(
                scheduler(json).unwrap_err().to_string().contains("process.scheduler"),
                "{json}"
            );
        }
    }
}
