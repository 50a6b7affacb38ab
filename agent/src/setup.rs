//! Carries out what the host answers to Hello: clock, name, sysctls, shares. It knows no container.

use std::io;
use std::path::{Component, Path, PathBuf};

use protocol::agent::{SandboxSetup, Share};
use rustix::mount::{MountFlags, mount};
use rustix::time::{ClockId, Timespec, clock_settime};

/// Why the sandbox cannot be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetupError {
    /// The clock cannot be set.
    #[error("set the clock to {0} ns")]
    Clock(u64, #[source] io::Error),
    /// The name cannot be set.
    #[error("set the hostname to {0:?}")]
    Hostname(String, #[source] io::Error),
    /// There is no such sysctl, or it does not take the value.
    #[error("set sysctl {0} to {1:?}")]
    Sysctl(String, String, #[source] io::Error),
    /// Not the name of a sysctl.
    #[error("{0:?} is not the name of a sysctl")]
    SysctlName(String),
    /// The root of a pod's sandbox cannot be made.
    #[error("make the root of the sandbox's process")]
    Pause(#[source] io::Error),
    /// A share cannot be mounted.
    #[error("mount virtio-fs {0} on {1}")]
    Share(String, String, #[source] io::Error),
}

/// Does all of it.
///
/// # Errors
/// The first step that failed.
pub(crate) fn set_up(setup: &SandboxSetup) -> Result<(), SetupError> {
    set_clock(setup.clock_ns)?;
    if !setup.hostname.is_empty() {
        rustix::system::sethostname(setup.hostname.as_bytes())
            .map_err(|error| SetupError::Hostname(setup.hostname.clone(), error.into()))?;
    }
    for (name, value) in &setup.sysctls {
        set_sysctl(name, value)?;
    }
    crate::pause::prepare().map_err(SetupError::Pause)?;
    setup.shares.iter().try_for_each(mount_share)
}

fn set_clock(nanoseconds: u64) -> Result<(), SetupError> {
    if nanoseconds == 0 {
        return Ok(());
    }
    let time = Timespec {
        tv_sec: (nanoseconds / 1_000_000_000).cast_signed(),
        tv_nsec: (nanoseconds % 1_000_000_000).cast_signed(),
    };
    clock_settime(ClockId::Realtime, time).map_err(|error| SetupError::Clock(nanoseconds, error.into()))
}

fn set_sysctl(name: &str, value: &str) -> Result<(), SetupError> {
    let path = sysctl_path(name).ok_or_else(|| SetupError::SysctlName(name.to_owned()))?;
    std::fs::write(path, value).map_err(|error| SetupError::Sysctl(name.to_owned(), value.to_owned(), error))
}

/// `a.b` is `a/b`; a name with slashes keeps its dots, as sysctl(8) has it (interfaces have dots in their names).
fn sysctl_path(name: &str) -> Option<PathBuf> {
    let relative = if name.contains('/') {
        name.to_owned()
    } else {
        name.replace('.', "/")
    };
    let relative = Path::new(&relative);
    let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
    (plain && !name.is_empty()).then(|| Path::new("/proc/sys").join(relative))
}

fn mount_share(share: &Share) -> Result<(), SetupError> {
    let fail = |error| SetupError::Share(share.tag.clone(), share.mountpoint.clone(), error);
    std::fs::create_dir_all(&share.mountpoint).map_err(fail)?;
    mount(&share.tag, &share.mountpoint, "virtiofs", MountFlags::empty(), None).map_err(|error| fail(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn dots_are_directories_unless_there_are_slashes() {
        assert_eq!(
            sysctl_path("kernel.perf_event_mlock_kb").unwrap(),
            Path::new("/proc/sys/kernel/perf_event_mlock_kb")
        );
        assert_eq!(
            sysctl_path("net/ipv4/conf/eth0.1/forwarding").unwrap(),
            Path::new("/proc/sys/net/ipv4/conf/eth0.1/forwarding")
        );
        assert_eq!(sysctl_path(""), None);
    }

    proptest! {
        #[test]
        fn no_name_leads_out_of_proc_sys(name in "[a-z./]*") {
            if let Some(path) = sysctl_path(&name) {
                prop_assert!(path.starts_with("/proc/sys"));
                prop_assert!(!path.components().any(|part| part == Component::ParentDir));
            }
        }
    }
}
