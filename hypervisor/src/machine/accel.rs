//! The accelerator that runs the guest's instructions: the kernel's KVM, or QEMU's translator TCG.
//!
//! A `/dev/kvm` that can be opened is not enough: a KVM without hardware virtualization (shadow page tables for special
//! guests) can be opened and creates VMs, but an ordinary kernel hangs in it.

use std::fs::OpenOptions;

use config::Accelerator;

/// The accelerator of one VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// `-accel kvm`
    Kvm,
    /// `-accel tcg`
    Tcg,
}

impl Accel {
    /// As in the configuration and in QEMU's arguments.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Accel::Kvm => "kvm",
            Accel::Tcg => "tcg",
        }
    }
}

/// KVM was asked for and cannot be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "the accelerator is configured as kvm, but {0}: set hypervisor.qemu.accelerator to \"auto\", or use a host that has it"
)]
pub struct AccelError(String);

/// What this host offers.
#[derive(Debug)]
struct Host {
    /// Why `/dev/kvm` cannot be opened, if so.
    device: Result<(), String>,
    /// Whether the CPU can run a guest.
    cpu: bool,
}

/// Picks the accelerator for this host. Where TCG is taken because KVM cannot be, the second part says why not.
///
/// # Errors
/// KVM is wanted, and cannot be used.
pub fn accelerator(wanted: Accelerator) -> Result<(Accel, Option<String>), AccelError> {
    decide(wanted, || Host {
        device: open_kvm(),
        cpu: cpu_virtualizes(),
    })
}

/// The same for a VM that is about to start: the reason goes into the log.
pub(crate) fn choose(wanted: Accelerator) -> Result<Accel, AccelError> {
    let (accel, warning) = accelerator(wanted)?;
    if let Some(why) = warning {
        tracing::warn!("the guest's instructions are emulated (TCG), which is slow: {why}");
    }
    Ok(accel)
}

fn decide(wanted: Accelerator, host: impl FnOnce() -> Host) -> Result<(Accel, Option<String>), AccelError> {
    if wanted == Accelerator::Tcg {
        return Ok((Accel::Tcg, None));
    }
    let host = host();
    let unusable = match host.device {
        Err(why) => why,
        Ok(()) if !host.cpu => String::from("the CPU has no hardware virtualization (neither vmx nor svm)"),
        Ok(()) => return Ok((Accel::Kvm, None)),
    };
    match wanted {
        Accelerator::Kvm => Err(AccelError(unusable)),
        Accelerator::Auto | Accelerator::Tcg => Ok((Accel::Tcg, Some(unusable))),
    }
}

fn open_kvm() -> Result<(), String> {
    match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("/dev/kvm cannot be opened: {error}")),
    }
}

#[cfg(target_arch = "aarch64")]
fn cpu_virtualizes() -> bool {
    // The kernel offers /dev/kvm only where it was started at EL2.
    true
}

#[cfg(not(target_arch = "aarch64"))]
fn cpu_virtualizes() -> bool {
    crate::machine::cpuinfo::cpuinfo().is_some_and(|cpuinfo| has_virtualization(&cpuinfo))
}

fn has_virtualization(cpuinfo: &str) -> bool {
    crate::machine::cpuinfo::has_flag(cpuinfo, "vmx") || crate::machine::cpuinfo::has_flag(cpuinfo, "svm")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(device: Result<(), String>, cpu: bool) -> impl FnOnce() -> Host {
        move || Host { device, cpu }
    }

    #[test]
    fn kvm_is_used_where_device_and_cpu_allow() {
        let (accel, warning) = decide(Accelerator::Auto, host(Ok(()), true)).unwrap();
        assert_eq!((accel, warning), (Accel::Kvm, None));
    }

    #[test]
    fn a_kvm_without_hardware_virtualization_is_not_used() {
        let (accel, warning) = decide(Accelerator::Auto, host(Ok(()), false)).unwrap();
        assert_eq!(accel, Accel::Tcg);
        assert!(warning.unwrap().contains("vmx"));
    }

    #[test]
    fn a_forced_kvm_that_is_unusable_says_why() {
        let error = decide(Accelerator::Kvm, host(Err(String::from("no such device")), true)).unwrap_err();
        assert!(error.to_string().contains("no such device"), "{error}");
    }

    #[test]
    fn a_forced_tcg_does_not_look_at_the_host() {
        let (accel, warning) = decide(Accelerator::Tcg, || panic!("looked")).unwrap();
        assert_eq!((accel, warning), (Accel::Tcg, None));
    }

    #[test]
    fn the_flag_is_a_whole_word_of_the_flags() {
        assert!(has_virtualization("processor\t: 0\nflags\t\t: fpu svm sse\n"));
        assert!(!has_virtualization("model name\t: svm\nflags\t\t: fpu svm_lock\n"));
    }
}
