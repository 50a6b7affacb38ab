//! A container reaches the devices of its specification and those that every container has, and no others.

use framework::{Node, Result, disk::RawImage};
use serde_json::json;

/// Opening a device of the kernel's that needs no capability, made by the container itself.
const SCRIPT: &str =
    "echo nothing >/dev/null && head -c 4 /dev/zero | wc -c; mknod /dev/own c 10 229 && : <>/dev/own && echo opened";

#[test]
fn a_device_is_opened_only_where_a_rule_allows_it() -> Result<()> {
    let node = Node::start()?;
    let denied = node.spec("denied", &["sh", "-c", SCRIPT])?;
    let output = node.run_spec("denied", &denied)?.arg("--rm").output()?;
    assert_eq!(output.stdout(), "4\n");
    assert!(
        output.stderr().contains("/dev/own: Operation not permitted"),
        "{}",
        output.stderr()
    );
    let allowed = node.spec("allowed", &["sh", "-c", SCRIPT])?.push(
        "/linux/resources/devices",
        json!({ "allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw" }),
    )?;
    let said = node.run_spec("allowed", &allowed)?.arg("--rm").ok()?;
    assert_eq!(said, "4\nopened\n");
    node.nothing_left()
}

const LOOP: &str = "mount -o loop /data/image /mnt && echo inside > /mnt/file && umount /mnt && \
                    mount -o loop,ro /data/image /mnt && cat /mnt/file && umount /mnt";

/// It has the node's devices on runc, and the guest's here.
#[test]
fn a_privileged_container_mounts_an_image_by_a_loop_device() -> Result<()> {
    let node = Node::start()?;
    let data = node.dir().join("data");
    std::fs::create_dir(&data)?;
    let image = RawImage::ext4(&data.join("image"), 8 << 20)?;
    let mount = format!("--mount=type=bind,src={},dst=/data,options=rbind:rw", data.display());
    let said = node
        .run("loop")
        .args(["--rm", "--privileged", &mount])
        .sh(&format!("mkdir -p /mnt; {LOOP}"))
        .ok()?;
    assert_eq!(said, "inside\n");
    assert_eq!(image.file("file")?, "inside\n");
    node.nothing_left()
}

mod kata_only {
    use super::*;

    /// The list is what the host had when it was made. On runc the node is made, and leads nowhere.
    #[test]
    fn a_device_of_the_host_that_goes_while_a_privileged_container_is_created_is_left_out() -> Result<()> {
        let node = Node::start()?;
        let image = RawImage::with(&node.dir().join("disk"), "x", 8 << 20)?;
        let (goes, stays) = (image.loop_device_alone()?, image.loop_device()?);
        let detach = format!("losetup --detach {}", goes.path().display());
        let hook =
            json!({ "path": "/bin/sh", "args": ["sh", "-c", detach], "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"] });
        let mut spec = node.spec("goes", &["sh", "-c", "ls /dev/goes /dev/stays; head -c 1 /dev/stays"])?;
        for (device, name) in [(&goes, "/dev/goes"), (&stays, "/dev/stays")] {
            spec = device.given_to(spec, name, "rwm")?;
        }
        let spec = spec
            .set("/linux/resources/devices", json!([{ "allow": true, "access": "rwm" }]))?
            .push("/hooks/createRuntime", hook)?;
        let output = node.run_spec("goes", &spec)?.arg("--rm").output()?.success()?;
        assert_eq!(output.stdout(), "/dev/stays\nx", "{}", output.stderr());
        assert!(output.stderr().contains("/dev/goes"), "{}", output.stderr());
        node.nothing_left()
    }

    /// As CRI sends it with `privileged_without_host_devices`.
    #[test]
    fn it_does_so_where_no_device_of_the_host_is_listed() -> Result<()> {
        let node = Node::start()?;
        let data = node.dir().join("data");
        std::fs::create_dir(&data)?;
        let image = RawImage::ext4(&data.join("image"), 8 << 20)?;
        let mut spec = node
            .spec("loop", &["sh", "-c", &format!("mkdir -p /mnt; {LOOP}")])?
            .bind(&data, "/data", &["rw"])?
            .set("/linux/resources/devices", json!([{ "allow": true, "access": "rwm" }]))?;
        for set in ["bounding", "effective", "permitted"] {
            spec = spec.push(&format!("/process/capabilities/{set}"), "CAP_SYS_ADMIN")?;
        }
        assert_eq!(node.run_spec("loop", &spec)?.arg("--rm").ok()?, "inside\n");
        assert_eq!(image.file("file")?, "inside\n");
        node.nothing_left()
    }
}
