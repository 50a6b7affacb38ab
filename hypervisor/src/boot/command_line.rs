//! The guest kernel's command line.
//!
//! Order matters: the kernel uses the last of several values, so the operator's parameters come last.

use config::Hypervisor;

use crate::boot_error::CommandLineError;
use crate::helpers::virtiofsd::arguments;
use crate::machine::accel::Accel;
use crate::machine::arch;
use crate::machine::request::VmRequest;

/// Drivers make interfaces when they start (`dummy0`, `ifb0`, `ifb1`, `bond0`, `tunl0` and other tunnels' fall-back devices), which would be
/// in every pod. `fb_tunnels` is in the kernel's
/// `Documentation/admin-guide/kernel-parameters.txt`, the others are parameters of the drivers.
const NO_SPARE_INTERFACES: &str = "dummy.numdummies=0 ifb.numifbs=0 bonding.max_bonds=0 fb_tunnels=none";

/// Plugged memory is for what can be moved (programs, files), as long as there is a quarter of other memory, so that it can be
/// given back (the kernel's Documentation/admin-guide/mm/memory-hotplug.rst, `online_policy`).
const PLUGGED_MEMORY: &str = "memory_hotplug.online_policy=auto-movable";

/// Joins the parameters of the architecture, the port or what stands for it, the caller's and the configuration's.
pub(crate) fn build(
    config: &Hypervisor,
    request: &VmRequest,
    accel: Accel,
    port: &str,
) -> Result<String, CommandLineError> {
    let arch = arch::HOST;
    let mut words = vec![format!("console={}", arch.console)];
    // A panic restarts at once, and a restart ends QEMU.
    words.extend([String::from("panic=-1"), arch.kernel_params.to_owned()]);
    words.extend([NO_SPARE_INTERFACES, PLUGGED_MEMORY].map(String::from));
    words.extend(arch::emulation_parameters(accel));
    if let Some(files) = arguments::files_to_remember(config) {
        words.push(format!("fuse.max_inodes={files}"));
    }
    if !config.enable_debug {
        // Each line on the console costs visible time.
        words.push(String::from("quiet"));
    }
    words.push(port.to_owned());
    words.extend(request.kernel_params.iter().cloned());
    words.push(config.kernel_params.trim().to_owned());
    words.retain(|word| !word.is_empty());
    let line = words.join(" ");
    if line.len() > arch.max_command_line {
        return Err(CommandLineError {
            length: line.len(),
            limit: arch.max_command_line,
        });
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use base::scale::Scale;

    use super::*;
    use crate::machine::request::NetworkNamespace;

    fn request() -> VmRequest {
        VmRequest {
            id: String::from("a"),
            run_dir: "/r".into(),
            shared_dir: "/r/shared".into(),
            share_tag: String::from("share"),
            netns: NetworkNamespace::Empty,
            nics: Vec::new(),
            cgroup_procs: Vec::new(),
            score: base::spawn::Score::Inherited,
            start_timeout: std::time::Duration::from_secs(1),
            scale: Scale::default(),
            kernel_params: vec![String::from("caller=1")],
            host_port: 1024,
            port_parameter: String::from("x.port"),
        }
    }

    #[test]
    fn the_operators_parameters_come_last() {
        let config = Hypervisor {
            kernel_params: String::from(" loglevel=8 "),
            ..Hypervisor::default()
        };
        let line = build(&config, &request(), Accel::Kvm, "x.port=77").unwrap();
        assert!(line.ends_with("quiet x.port=77 caller=1 loglevel=8"), "{line}");
    }

    #[test]
    fn a_debug_kernel_is_not_quiet() {
        let config = Hypervisor {
            enable_debug: true,
            ..Hypervisor::default()
        };
        assert!(
            !build(&config, &request(), Accel::Kvm, "x.port=1")
                .unwrap()
                .contains("quiet")
        );
    }

    #[test]
    fn a_line_that_would_be_cut_off_is_refused() {
        let config = Hypervisor {
            kernel_params: "x".repeat(3000),
            ..Hypervisor::default()
        };
        assert!(build(&config, &request(), Accel::Kvm, "x.port=1").is_err());
    }
}
