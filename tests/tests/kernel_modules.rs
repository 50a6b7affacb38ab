//! What few programs need of the kernel is there when something asks for it: the guest loads it as a module.
//!
//! What a server's file system comes to is the refusal of a port on which nobody listens: the kernel knows the file system.

use framework::{Node, Result, Spec, disk::RawImage};
use serde_json::{Value, json};

const CONNECTION_REFUSED: i32 = 111;

/// A program with all rights, as `ctr run --privileged` gives them, in a specification that tests can change.
fn privileged(node: &Node, name: &str, program: &[&str]) -> Result<Spec> {
    let mut spec = node
        .spec(name, program)?
        .set("/linux/resources/devices", json!([{ "allow": true, "access": "rwm" }]))?
        .set("/linux/maskedPaths", json!([]))?
        .set("/linux/readonlyPaths", json!([]))?;
    for set in ["bounding", "effective", "permitted"] {
        for capability in [
            "CAP_SYS_ADMIN",
            "CAP_SYS_MODULE",
            "CAP_NET_ADMIN",
            "CAP_NET_RAW",
            "CAP_MKNOD",
        ] {
            spec = spec.push(&format!("/process/capabilities/{set}"), capability)?;
        }
    }
    Ok(spec)
}

/// What the probe says of each name, from a container with all rights.
fn ask(node: &Node, names: &[&str]) -> Result<Value> {
    let program = [&["guest-probe", "ask"], names].concat();
    let spec = privileged(node, "ask", &program)?;
    node.run_spec("ask", &spec)?.arg("--rm").output()?.success()?.json()
}

/// What any kernel of today has, as a host's without modules has it too.
#[test]
fn a_program_has_multipath_tcp() -> Result<()> {
    let node = Node::start()?;
    let answers = ask(&node, &["socket:mptcp"])?;
    assert_eq!(answers["socket:mptcp"], 0, "{answers}");
    node.nothing_left()
}

mod kata_only {
    use super::*;

    #[test]
    fn an_image_with_quotas_and_names_without_case_is_mounted() -> Result<()> {
        let node = Node::start()?;
        let data = node.dir().join("data");
        std::fs::create_dir(&data)?;
        let features = ["-O", "quota,casefold", "-E", "encoding=utf8"];
        RawImage::ext4_with(&data.join("image"), 16 << 20, &features)?;
        let mount = format!("--mount=type=bind,src={},dst=/data,options=rbind:rw", data.display());
        let said = node
            .run("fold")
            .args(["--rm", "--privileged", &mount])
            .sh("mkdir -p /mnt; mount -o loop /data/image /mnt && guest-probe casefold /mnt; umount /mnt")
            .ok()?;
        assert_eq!(said, "folded\n");
        node.nothing_left()
    }

    #[test]
    fn proc_modules_is_there() -> Result<()> {
        let node = Node::start()?;
        node.run("modules").arg("--rm").program(["cat", "/proc/modules"]).ok()?;
        node.nothing_left()
    }

    #[test]
    fn file_systems_of_servers_reach_their_servers() -> Result<()> {
        let node = Node::start()?;
        let names = ["mount:nfs", "mount:nfs4", "mount:cifs", "mount:9p"];
        let answers = ask(&node, &names)?;
        for name in names {
            assert_eq!(answers[name], CONNECTION_REFUSED, "{answers}");
        }
        node.nothing_left()
    }

    #[test]
    fn protocols_targets_types_and_devices_are_there_when_they_are_asked_for() -> Result<()> {
        let node = Node::start()?;
        let names = [
            "socket:sctp",
            "target:TTL",
            "ipset:hash:mac",
            "ipset:hash:net,net",
            "dm:snapshot",
            "dm:thin-pool",
            "dm:mirror",
            "dm:raid",
            // How nbd-client finds the driver.
            "family:nbd",
            // /dev/md0 and /dev/ppp.
            "block:9",
            "char:108",
        ];
        let answers = ask(&node, &names)?;
        for name in names {
            assert_eq!(answers[name], 0, "{name}: {answers}");
        }
        node.nothing_left()
    }

    #[test]
    fn file_systems_of_images_are_known() -> Result<()> {
        const NO_SUCH_FILE: i32 = 2;
        let node = Node::start()?;
        let names = ["mount:xfs", "mount:squashfs", "mount:iso9660", "mount:vfat"];
        let answers = ask(&node, &names)?;
        for name in names {
            assert_eq!(answers[name], NO_SUCH_FILE, "{answers}");
        }
        node.nothing_left()
    }

    #[test]
    fn a_name_that_no_module_has_is_refused_without_a_process() -> Result<()> {
        let node = Node::start()?;
        let said = node
            .run("vain")
            .arg("--rm")
            .program(["guest-probe", "ask-in-vain", "5000"])
            .ok()?;
        let made: u32 = said
            .trim()
            .parse()
            .map_err(|_| framework::Error::unexpected(said.clone()))?;
        // What the guest does meanwhile is no more than a few.
        assert!(made < 20, "{made} processes for 5000 sockets");
        node.nothing_left()
    }

    #[test]
    fn what_was_not_built_with_the_kernel_is_not_loaded() -> Result<()> {
        const KEY_REJECTED: &str = "129\n";
        let node = Node::start()?;
        let spec = privileged(&node, "foreign", &["guest-probe", "load-module", "/bin/busybox"])?;
        assert_eq!(node.run_spec("foreign", &spec)?.arg("--rm").ok()?, KEY_REJECTED);
        node.nothing_left()
    }

    /// bond0, which the driver makes by itself where nothing says otherwise, is not there.
    #[test]
    fn a_bond_is_made_and_no_interface_that_nobody_asked_for() -> Result<()> {
        let node = Node::start()?;
        let script =
            "ip link add bond7 type bond && ls /sys/class/net && grep -c '^bonding ' /proc/modules; ip link del bond7";
        let spec = privileged(&node, "bond", &["sh", "-c", script])?;
        let said = node.run_spec("bond", &spec)?.arg("--rm").ok()?;
        let said: Vec<&str> = said
            .split_whitespace()
            .filter(|word| *word != "bonding_masters")
            .collect();
        assert_eq!(said, ["bond7", "lo", "1"]);
        node.nothing_left()
    }

    #[test]
    fn the_machine_says_what_it_is() -> Result<()> {
        let node = Node::start()?;
        let said = node
            .run("dmi")
            .arg("--rm")
            .program(["cat", "/sys/class/dmi/id/sys_vendor"])
            .ok()?;
        assert_eq!(said, "QEMU\n");
        node.nothing_left()
    }

    #[test]
    fn a_privileged_container_has_the_node_of_a_device_whose_driver_is_a_module() -> Result<()> {
        let node = Node::start()?;
        let spec = privileged(
            &node,
            "ppp",
            &["sh", "-c", ": <>/dev/ppp && grep -c '^ppp_generic ' /proc/modules"],
        )?;
        assert_eq!(node.run_spec("ppp", &spec)?.arg("--rm").ok()?, "1\n");
        node.nothing_left()
    }

    const ANNOTATION: &str = "io.katacontainers.config.agent.kernel_modules";

    #[test]
    fn modules_that_an_annotation_names_are_loaded_with_their_parameters() -> Result<()> {
        let node = Node::start()?;
        let program = ["cat", "/sys/module/nbd/parameters/nbds_max"];
        // What is built in is there already.
        let spec = node
            .spec("asked", &program)?
            .annotation(ANNOTATION, "overlay; nbd nbds_max=3")?;
        assert_eq!(node.run_spec("asked", &spec)?.arg("--rm").ok()?, "3\n");
        node.nothing_left()
    }

    #[test]
    fn a_module_has_its_parameters_also_if_an_earlier_entry_needs_it() -> Result<()> {
        let node = Node::start()?;
        let program = ["cat", "/sys/module/sunrpc/parameters/tcp_slot_table_entries"];
        let spec = node
            .spec("needed", &program)?
            .annotation(ANNOTATION, "nfs; sunrpc tcp_slot_table_entries=64")?;
        assert_eq!(node.run_spec("needed", &spec)?.arg("--rm").ok()?, "64\n");
        node.nothing_left()
    }

    #[test]
    fn a_module_that_there_is_not_is_an_error_that_names_it() -> Result<()> {
        let node = Node::start()?;
        let spec = node.spec("unknown", &["true"])?.annotation(ANNOTATION, "e1000e")?;
        let said = node.run_spec("unknown", &spec)?.arg("--rm").fails()?;
        assert!(said.contains("the kernel has no module \"e1000e\""), "{said}");
        node.nothing_left()
    }
}
