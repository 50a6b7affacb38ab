//! Checks whether a process that waits at the gate has the requested limits and capabilities. It asks the kernel, not the
//! child that set them.

use std::io;

use nix::unistd::Pid;
use oci_spec::runtime::{PosixRlimit, PosixRlimitType, Process};

use super::{
    capabilities,
    capabilities::Masks,
    request::{LaunchRequest, Target},
    rlimits,
};
use crate::proc::{Limits, Status};

/// CAP_SYS_ADMIN (include/uapi/linux/capability.h): may be held until the program is executed, for the seccomp filter.
const SYS_ADMIN: u64 = 1 << 21;

/// CAP_IPC_LOCK.
const IPC_LOCK: u64 = 1 << 14;

#[derive(Debug)]
pub(super) struct Expected {
    limits: Vec<PosixRlimit>,
    capabilities: Masks,
    filtered: bool,
}

impl Expected {
    pub(super) fn of(request: &LaunchRequest) -> Self {
        let (spec, process) = match &request.target {
            Target::Container { spec, .. } => (spec, spec.process().as_ref()),
            Target::Exec { spec, process, .. } => (spec, Some(&**process)),
        };
        let wanted = process.and_then(|process| process.capabilities().as_ref());
        let linux = spec.linux().as_ref();
        Self {
            limits: process
                .and_then(|process| process.rlimits().clone())
                .unwrap_or_default(),
            capabilities: capabilities::masks(wanted),
            filtered: linux.is_some_and(|linux| linux.seccomp().is_some())
                && !process.and_then(Process::no_new_privileges).unwrap_or(false),
        }
    }

    /// Compares with what the kernel says.
    ///
    /// # Errors
    /// A sentence about the first difference, or that the process cannot be looked at.
    pub(super) fn check(&self, pid: Pid) -> Result<(), String> {
        let unseen = |error: io::Error| format!("process {pid} cannot be looked at before its program runs: {error}");
        let limits = Limits::of(pid.as_raw()).map_err(unseen)?;
        let status = Status::of(pid.as_raw()).map_err(unseen)?;
        self.compare(&limits, &status)
            .map_err(|difference| format!("process {pid} was set up wrong: {difference}"))?;
        let (soft, hard) = limits.get(name(PosixRlimitType::RlimitMemlock)).unwrap_or_default();
        let has = |key: &str| status.mask(key).is_some_and(|mask| mask & IPC_LOCK != 0);
        tracing::info!(
            %pid,
            memlock_soft = soft,
            memlock_hard = hard,
            ipc_lock_effective = has("CapEff"),
            ipc_lock_ambient = has("CapAmb"),
            ipc_lock_bounding = has("CapBnd"),
            "has the limits and capabilities that were asked for"
        );
        Ok(())
    }

    fn compare(&self, limits: &Limits, status: &Status) -> Result<(), String> {
        // The last of two entries of one type is the one that was set.
        for (at, limit) in self.limits.iter().enumerate() {
            if self.limits[at + 1..].iter().any(|later| later.typ() == limit.typ()) {
                continue;
            }
            let wanted = (limit.soft(), limit.hard());
            if limits.get(name(limit.typ())) != Some(wanted) {
                let has = shown(limits.get(name(limit.typ())));
                return Err(format!("{} is {has} instead of {}", limit.typ(), shown(Some(wanted))));
            }
        }
        for (kind, soft, hard) in rlimits::defaults(&self.limits) {
            // Where a default cannot be had it is less: never the agent's own.
            let is = limits.get(name(kind));
            if !is.is_some_and(|(its_soft, its_hard)| its_soft <= soft && its_hard <= hard) {
                return Err(format!(
                    "{kind} is {} instead of {}",
                    shown(is),
                    shown(Some((soft, hard)))
                ));
            }
        }
        let held = if self.filtered { SYS_ADMIN } else { 0 };
        let wanted = &self.capabilities;
        for (key, wanted, besides) in [
            ("CapBnd", wanted.bounding, 0),
            ("CapPrm", wanted.permitted, held),
            ("CapEff", wanted.effective, held),
            ("CapInh", wanted.inheritable, 0),
            ("CapAmb", wanted.ambient, 0),
        ] {
            let is = status.mask(key).unwrap_or(0);
            if is & !besides != wanted & !besides || is & wanted != wanted {
                return Err(format!("{key} is {is:#x} instead of {wanted:#x}"));
            }
        }
        Ok(())
    }
}

fn shown(limits: Option<(u64, u64)>) -> String {
    let number = |limit: u64| {
        if limit == u64::MAX {
            "unlimited".to_owned()
        } else {
            limit.to_string()
        }
    };
    limits.map_or_else(
        || "unknown".to_owned(),
        |(soft, hard)| format!("{}:{}", number(soft), number(hard)),
    )
}

/// The name of a limit in `/proc/PID/limits` (fs/proc/base.c, `lnames`).
fn name(kind: PosixRlimitType) -> &'static str {
    match kind {
        PosixRlimitType::RlimitCpu => "Max cpu time",
        PosixRlimitType::RlimitFsize => "Max file size",
        PosixRlimitType::RlimitData => "Max data size",
        PosixRlimitType::RlimitStack => "Max stack size",
        PosixRlimitType::RlimitCore => "Max core file size",
        PosixRlimitType::RlimitRss => "Max resident set",
        PosixRlimitType::RlimitNproc => "Max processes",
        PosixRlimitType::RlimitNofile => "Max open files",
        PosixRlimitType::RlimitMemlock => "Max locked memory",
        PosixRlimitType::RlimitAs => "Max address space",
        PosixRlimitType::RlimitLocks => "Max file locks",
        PosixRlimitType::RlimitSigpending => "Max pending signals",
        PosixRlimitType::RlimitMsgqueue => "Max msgqueue size",
        PosixRlimitType::RlimitNice => "Max nice priority",
        PosixRlimitType::RlimitRtprio => "Max realtime priority",
        PosixRlimitType::RlimitRttime => "Max realtime timeout",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn expected(limits: serde_json::Value, filtered: bool) -> Expected {
        Expected {
            limits: serde_json::from_value(limits).unwrap(),
            capabilities: Masks {
                bounding: IPC_LOCK,
                permitted: IPC_LOCK,
                ..Masks::default()
            },
            filtered,
        }
    }

    fn limits(memlock: &str) -> String {
        let defaults = rlimits::defaults(&[]);
        let line = |kind, soft: &str, hard: &str| format!("{:<25} {soft:<20} {hard:<20} \n", name(kind));
        defaults
            .iter()
            .map(|(kind, soft, hard)| match kind {
                PosixRlimitType::RlimitMemlock => line(*kind, memlock, memlock),
                kind => line(*kind, &soft.to_string(), &hard.to_string()),
            })
            .collect()
    }

    fn status(permitted: u64, ambient: u64) -> String {
        format!("CapInh:\t0\nCapPrm:\t{permitted:x}\nCapEff:\t0\nCapBnd:\t4000\nCapAmb:\t{ambient:x}\n")
    }

    fn compare(expected: &Expected, limits: &str, status: &str) -> Result<(), String> {
        expected.compare(&Limits::from(limits), &Status::from(status))
    }

    #[test]
    fn a_process_that_has_what_was_asked_for_passes() {
        let asked = json!([
            { "type": "RLIMIT_MEMLOCK", "soft": 1, "hard": 1 },
            { "type": "RLIMIT_MEMLOCK", "soft": 4096, "hard": 4096 },
        ]);
        let good = compare(&expected(asked, false), &limits("4096"), &status(IPC_LOCK, 0));
        assert_eq!(good, Ok(()));
        // A default that could not be had is less.
        assert_eq!(
            compare(&expected(json!([]), false), &limits("0"), &status(IPC_LOCK, 0)),
            Ok(())
        );
    }

    #[test]
    fn every_difference_is_named() {
        let asked = || json!([{ "type": "RLIMIT_MEMLOCK", "soft": 4096, "hard": 4096 }]);
        let said = |limits: &str, status: &str| compare(&expected(asked(), false), limits, status).unwrap_err();
        assert_eq!(
            said(&limits("8192"), &status(IPC_LOCK, 0)),
            "RLIMIT_MEMLOCK is 8192:8192 instead of 4096:4096"
        );
        assert_eq!(
            said(&limits("unlimited"), &status(IPC_LOCK, 0)),
            "RLIMIT_MEMLOCK is unlimited:unlimited instead of 4096:4096"
        );
        assert_eq!(
            said("", &status(IPC_LOCK, 0)),
            "RLIMIT_MEMLOCK is unknown instead of 4096:4096"
        );
        assert_eq!(said(&limits("4096"), &status(0, 0)), "CapPrm is 0x0 instead of 0x4000");
        assert_eq!(
            said(&limits("4096"), &status(IPC_LOCK, IPC_LOCK)),
            "CapAmb is 0x4000 instead of 0x0"
        );
        let leaked = compare(&expected(json!([]), false), &limits("1073741824"), &status(IPC_LOCK, 0));
        assert_eq!(
            leaked.unwrap_err(),
            "RLIMIT_MEMLOCK is 1073741824:1073741824 instead of 8388608:8388608"
        );
    }

    #[test]
    fn what_the_filter_needs_may_be_there_until_it_is_loaded() {
        let both = status(IPC_LOCK | SYS_ADMIN, 0);
        assert_eq!(compare(&expected(json!([]), true), &limits("0"), &both), Ok(()));
        assert!(compare(&expected(json!([]), false), &limits("0"), &both).is_err());
    }
}
