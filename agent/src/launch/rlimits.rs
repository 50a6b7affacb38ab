//! Resource limits of a process: the specification's, else fixed defaults. The agent's own limits are never inherited.

use oci_spec::runtime::{PosixRlimit, PosixRlimitType};
use rustix::{
    io::Errno,
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

use super::fault::{Context, Result};

/// No limit (RLIM_INFINITY, getrlimit(2)).
const NONE: u64 = u64::MAX;

/// What the kernel gives its first process (include/asm-generic/resource.h), but for NOFILE, which is what a container gets
/// from containerd and Docker where nothing is asked for: they set none, and systemd gives their services 1024:524288
/// (containerd's pull request 8924, moby's 45534). NPROC and SIGPENDING depend on the memory: the agent leaves them as
/// they are.
const DEFAULTS: [(PosixRlimitType, u64, u64); 14] = [
    (PosixRlimitType::RlimitCpu, NONE, NONE),
    (PosixRlimitType::RlimitFsize, NONE, NONE),
    (PosixRlimitType::RlimitData, NONE, NONE),
    (PosixRlimitType::RlimitStack, 8 << 20, NONE),
    (PosixRlimitType::RlimitCore, 0, NONE),
    (PosixRlimitType::RlimitRss, NONE, NONE),
    (PosixRlimitType::RlimitNofile, 1024, 524_288),
    (PosixRlimitType::RlimitMemlock, 8 << 20, 8 << 20),
    (PosixRlimitType::RlimitAs, NONE, NONE),
    (PosixRlimitType::RlimitLocks, NONE, NONE),
    (PosixRlimitType::RlimitMsgqueue, 819_200, 819_200),
    (PosixRlimitType::RlimitNice, 0, 0),
    (PosixRlimitType::RlimitRtprio, 0, 0),
    (PosixRlimitType::RlimitRttime, NONE, NONE),
];

/// The defaults of what the specification does not limit: kind, soft and hard.
pub(super) fn defaults(wanted: &[PosixRlimit]) -> Vec<(PosixRlimitType, u64, u64)> {
    let unset = |kind| wanted.iter().all(|limit| limit.typ() != kind);
    DEFAULTS.into_iter().filter(|(kind, ..)| unset(*kind)).collect()
}

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
    for (kind, soft, hard) in defaults(wanted) {
        let limit = Rlimit {
            current: bytes(soft),
            maximum: bytes(hard),
        };
        set_default(resource_of(kind), limit)?;
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
    (limit != NONE).then_some(limit)
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
