//! Resource limits of a process: the specification's, else fixed defaults, never the agent's own.

use oci_spec::runtime::{PosixRlimit, PosixRlimitType};
use rustix::{
    io::Errno,
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

use super::fault::{Context, Result};

/// What the kernel gives its first process (include/asm-generic/resource.h), but for NOFILE, which is what a service
/// gets on a host with systemd. NPROC and SIGPENDING depend on the memory: the agent leaves them as they are.
const DEFAULTS: [(Resource, Option<u64>, Option<u64>); 14] = [
    (Resource::Cpu, None, None),
    (Resource::Fsize, None, None),
    (Resource::Data, None, None),
    (Resource::Stack, Some(8 << 20), None),
    (Resource::Core, Some(0), None),
    (Resource::Rss, None, None),
    (Resource::Nofile, Some(1024), Some(524_288)),
    (Resource::Memlock, Some(8 << 20), Some(8 << 20)),
    (Resource::As, None, None),
    (Resource::Locks, None, None),
    (Resource::Msgqueue, Some(819_200), Some(819_200)),
    (Resource::Nice, Some(0), Some(0)),
    (Resource::Rtprio, Some(0), Some(0)),
    (Resource::Rttime, None, None),
];

/// Raises the maxima that the specification asks more of, while the process still has the guest's privileges: a
/// capability over a user namespace is not enough for that (setrlimit(2)). What the set-up itself may use stays as it is.
pub(super) fn make_room(wanted: &[PosixRlimit]) -> Result<()> {
    for limit in wanted {
        let (resource, hard) = (resource_of(limit.typ()), bytes(limit.hard()));
        let Rlimit { current, maximum } = getrlimit(resource);
        // None is without a limit.
        if maximum.is_some_and(|maximum| hard.is_none_or(|hard| hard > maximum)) {
            match setrlimit(resource, Rlimit { current, maximum: hard }) {
                // Said when the limit itself is set, with its name.
                Err(Errno::PERM) => {}
                raised => raised.or_refuse(|| format!("cannot raise {} to {}", limit.typ(), limit.hard()))?,
            }
        }
    }
    Ok(())
}

/// Sets all limits of the calling process.
pub(super) fn set(wanted: &[PosixRlimit]) -> Result<()> {
    for (resource, soft, hard) in DEFAULTS {
        if wanted.iter().all(|limit| resource_of(limit.typ()) != resource) {
            set_default(
                resource,
                Rlimit {
                    current: soft,
                    maximum: hard,
                },
            )?;
        }
    }
    for limit in wanted {
        let (soft, hard) = (bytes(limit.soft()), bytes(limit.hard()));
        setrlimit(
            resource_of(limit.typ()),
            Rlimit {
                current: soft,
                maximum: hard,
            },
        )
        .or_refuse(|| format!("cannot set {} to {}:{}", limit.typ(), limit.soft(), limit.hard()))?;
    }
    Ok(())
}

/// A default that is more than the process may have gives way to the limit that is there.
fn set_default(resource: Resource, limit: Rlimit) -> Result<()> {
    match setrlimit(resource, limit) {
        Err(Errno::PERM) => {
            let maximum = getrlimit(resource).maximum;
            let current = match (limit.current, maximum) {
                (Some(current), Some(maximum)) => Some(current.min(maximum)),
                (current, maximum) => current.or(maximum),
            };
            setrlimit(resource, Rlimit { current, maximum })
        }
        other => other,
    }
    .or_fail(|| format!("cannot set the default of {resource:?}"))
}

/// RLIM_INFINITY is no number to rustix.
fn bytes(limit: u64) -> Option<u64> {
    (limit != u64::MAX).then_some(limit)
}

fn resource_of(kind: PosixRlimitType) -> Resource {
    match kind {
        PosixRlimitType::RlimitCpu => Resource::Cpu,
        PosixRlimitType::RlimitFsize => Resource::Fsize,
        PosixRlimitType::RlimitData => Resource::Data,
        PosixRlimitType::RlimitStack => Resource::Stack,
        PosixRlimitType::RlimitCore => Resource::Core,
        PosixRlimitType::RlimitRss => Resource::Rss,
        PosixRlimitType::RlimitNproc => Resource::Nproc,
        PosixRlimitType::RlimitNofile => Resource::Nofile,
        PosixRlimitType::RlimitMemlock => Resource::Memlock,
        PosixRlimitType::RlimitAs => Resource::As,
        PosixRlimitType::RlimitLocks => Resource::Locks,
        PosixRlimitType::RlimitSigpending => Resource::Sigpending,
        PosixRlimitType::RlimitMsgqueue => Resource::Msgqueue,
        PosixRlimitType::RlimitNice => Resource::Nice,
        PosixRlimitType::RlimitRtprio => Resource::Rtprio,
        PosixRlimitType::RlimitRttime => Resource::Rttime,
    }
}
