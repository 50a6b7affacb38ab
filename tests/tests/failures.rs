//! Every failure on the way up is one error that names its cause, in time, and leaves nothing behind.

use std::time::Duration;

use framework::{Node, Result};

/// Longer than any time-out that the tests configure.
const IN_TIME: Duration = Duration::from_secs(40);
/// Timeout for a VM that spins until it is given up: the limit is of its own time, and others run on this machine.
const BUSY: Duration = Duration::from_secs(240);

#[test]
fn a_program_that_does_not_exist_is_named() -> Result<()> {
    let node = Node::start()?;
    let said = node
        .run("lost")
        .arg("--rm")
        .program(["no-such-program"])
        .limit(IN_TIME)
        .fails()?;
    assert!(said.contains("no-such-program"), "{said}");
    node.discard("lost")?;
    // The machine is none the worse for it.
    assert_eq!(node.run("next").arg("--rm").program(["echo", "well"]).ok()?, "well\n");
    node.nothing_left()
}

#[test]
fn a_root_that_does_not_exist_is_named() -> Result<()> {
    let node = Node::start()?;
    let spec = node.spec("rootless", &["true"])?.set("/root/path", "/no/such/root")?;
    let said = node.run_spec("rootless", &spec)?.arg("--rm").limit(IN_TIME).fails()?;
    assert!(said.contains("/no/such/root"), "{said}");
    node.discard("rootless")?;
    node.nothing_left()
}

mod kata_only {
    use super::*;

    /// Runs a container under a configuration with `dropin` and gives the error that the user sees.
    fn refused(dropin: &str, names: &[&str]) -> Result<()> {
        refused_within(IN_TIME, dropin, names)
    }

    fn refused_within(limit: Duration, dropin: &str, names: &[&str]) -> Result<()> {
        let node = Node::start_configured(dropin)?;
        let said = node.run("refused").arg("--rm").program(["true"]).limit(limit).fails()?;
        for name in names {
            assert!(said.contains(name), "no {name:?} in: {said}");
        }
        node.discard("refused")?;
        node.nothing_left()
    }

    #[test]
    fn a_missing_qemu_is_named() -> Result<()> {
        refused(
            "[hypervisor.qemu]\npath = \"/no/such/qemu\"\nvalid_hypervisor_paths = [\"/no/such/qemu\"]\n",
            &["/no/such/qemu"],
        )
    }

    #[test]
    fn a_missing_kernel_is_named() -> Result<()> {
        refused(
            "[hypervisor.qemu]\nkernel = \"/no/such/vmlinuz\"\n",
            &["/no/such/vmlinuz"],
        )
    }

    #[test]
    fn a_missing_virtiofsd_is_named() -> Result<()> {
        refused(
            "[hypervisor.qemu]\nvirtio_fs_daemon = \"/no/such/virtiofsd\"\n",
            &["/no/such/virtiofsd"],
        )
    }

    #[test]
    fn a_file_that_is_no_kernel_is_named() -> Result<()> {
        refused("[hypervisor.qemu]\nkernel = \"/etc/passwd\"\n", &["/etc/passwd"])
    }

    #[test]
    fn a_guest_that_never_calls_is_given_up_in_time() -> Result<()> {
        // The kernel finds no such init in the initrd, panics, and does nothing more.
        refused_within(
            BUSY,
            "[hypervisor.qemu]\nkernel_params = \"rdinit=/no/such/init init=/no/such/init panic=0\"\n\
             [agent.kata]\ndial_timeout = 5\n",
            &["guest", "within 5 s"],
        )
    }

    #[test]
    fn a_guest_that_panics_is_given_up_at_once_with_the_end_of_its_console() -> Result<()> {
        refused(
            "[hypervisor.qemu]\nkernel_params = \"rdinit=/no/such/init init=/no/such/init\"\n",
            &["Kernel panic"],
        )
    }

    #[test]
    fn runtime_rs_time_for_its_agent_raises_ours() -> Result<()> {
        refused_within(
            BUSY,
            "[hypervisor.qemu]\nkernel_params = \"rdinit=/no/such/init init=/no/such/init panic=0\"\n\
             [agent.kata]\ndial_timeout = 2\nreconnect_timeout_ms = 8100\n",
            &["guest", "within 9 s"],
        )
    }

    #[test]
    fn a_configuration_that_is_not_valid_is_named_with_its_key() -> Result<()> {
        refused(
            "[hypervisor.qemu]\ndefault_memory = \"much\"\n",
            &["90-test.toml", "default_memory"],
        )
    }
}
