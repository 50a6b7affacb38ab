//! Applies the host's answer to Hello: random seed, clock, name, shares, kernel modules, sysctls. It knows no container.

use std::io;
use std::path::Path;

use protocol::agent::{SandboxSetup, Share};
use protocol::{SHARE_MOUNTPOINT, SHARE_TAG};
use rustix::mount::{MountFlags, mount, mount_bind};
use rustix::time::{ClockId, Timespec, clock_settime};

use crate::guest::inherited::{inherit, sysctl_path};
use crate::guest::modules::ModuleError;

/// Why the sandbox cannot be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetupError {
    /// The random number generator does not take the host's bytes.
    #[error("reseed the random number generator")]
    Random(#[source] io::Error),
    #[error("set the clock to {0} ns")]
    Clock(u64, #[source] io::Error),
    #[error("set the hostname to {0:?}")]
    Hostname(String, #[source] io::Error),
    /// There is no such sysctl, or it does not take the value.
    #[error("set sysctl {0} to {1:?}")]
    Sysctl(String, String, #[source] io::Error),
    /// What the containers may have together cannot be set anew.
    #[error("set what all containers may have together")]
    Reserve(#[source] crate::cgroup::Error),
    #[error("{0:?} is not the name of a sysctl")]
    SysctlName(String),
    #[error(transparent)]
    Modules(#[from] ModuleError),
    /// What the guest itself has of the host cannot be put in its place.
    #[error("mount on {}", protocol::GUEST_SANDBOX_MOUNTS)]
    SandboxMounts(#[source] io::Error),
    #[error("mount virtio-fs {0} on {1}")]
    Share(String, String, #[source] io::Error),
}

/// Does all of it. `has_share`: the share is mounted already.
///
/// # Errors
/// The first step that failed.
pub(crate) fn set_up(setup: &SandboxSetup, has_share: bool) -> Result<(), SetupError> {
    // First: what the kernel draws until then is the same in all copies of a template.
    crate::guest::random::reseed(&setup.random_seed).map_err(SetupError::Random)?;
    set_clock(setup.clock_ns)?;
    if !setup.hostname.is_empty() {
        rustix::system::sethostname(setup.hostname.as_bytes())
            .map_err(|error| SetupError::Hostname(setup.hostname.clone(), error.into()))?;
    }
    for (name, value) in &setup.inherited_sysctls {
        inherit(name, value);
        of_interfaces(name).iter().for_each(|name| inherit(name, value));
    }
    // There may be more threads now.
    crate::cgroup::renew_reserve().map_err(SetupError::Reserve)?;
    let shares = setup.shares.iter();
    shares
        .filter(|share| !(has_share && share.mountpoint == SHARE_MOUNTPOINT))
        .try_for_each(mount_share)?;
    if setup.sandbox_mounts {
        show_sandbox_mounts().map_err(SetupError::SandboxMounts)?;
    }
    crate::guest::modules::prepare(&setup.kernel_modules)?;
    // After the modules, which have parameters of their own there.
    for (name, value) in &setup.sysctls {
        set_sysctl(name, value)?;
        of_interfaces(name)
            .iter()
            .try_for_each(|name| set_sysctl(name, value))?;
    }
    Ok(())
}

/// Mounts the share before the host has said so. The answer is whether it is there: a guest may have none, and a template has it later.
pub(crate) fn mount_share_early() -> bool {
    let share = Share {
        tag: SHARE_TAG.to_owned(),
        mountpoint: SHARE_MOUNTPOINT.to_owned(),
        ..Share::default()
    };
    let mounted = mount_share(&share);
    if let Err(error) = &mounted {
        tracing::debug!(error = base::chain(error), "the share is not mounted yet");
    }
    mounted.is_ok()
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

/// What an interface begins with, and the setting of each that has begun already: in a new network namespace they would come later.
fn of_interfaces(name: &str) -> Vec<String> {
    let Some(setting) = name.strip_prefix("net.ipv4.conf.default.") else {
        return Vec::new();
    };
    let interfaces = std::fs::read_dir("/proc/sys/net/ipv4/conf").into_iter().flatten();
    interfaces
        .filter_map(|interface| interface.ok()?.file_name().into_string().ok())
        .filter(|interface| interface != "all" && interface != "default")
        .map(|interface| format!("net/ipv4/conf/{interface}/{setting}"))
        .collect()
}

fn mount_share(share: &Share) -> Result<(), SetupError> {
    let fail = |error| SetupError::Share(share.tag.clone(), share.mountpoint.clone(), error);
    std::fs::create_dir_all(&share.mountpoint).map_err(fail)?;
    mount(&share.tag, &share.mountpoint, "virtiofs", MountFlags::empty(), None).map_err(|error| fail(error.into()))
}

fn show_sandbox_mounts() -> io::Result<()> {
    std::fs::create_dir_all(protocol::GUEST_SANDBOX_MOUNTS)?;
    let source = Path::new(SHARE_MOUNTPOINT).join(protocol::SANDBOX_MOUNTS);
    Ok(mount_bind(source, protocol::GUEST_SANDBOX_MOUNTS)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_is_of_every_interface_and_nothing_else_is() {
        let all = of_interfaces("net.ipv4.conf.default.rp_filter");
        assert!(all.contains(&"net/ipv4/conf/lo/rp_filter".to_owned()), "{all:?}");
        assert!(of_interfaces("net.ipv4.conf.all.rp_filter").is_empty() && of_interfaces("fs.nr_open").is_empty());
    }
}
